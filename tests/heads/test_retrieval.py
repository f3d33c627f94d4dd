"""The head for retrieval: exact counts, its pooling, what images are found by."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from tests.compiled import run
from vadapt.errors import ConfigError
from vadapt.heads import label_head
from vadapt.heads.retrieval import CategoryAwareness, GeM, instance_norm
from vadapt.partition import Head, count, split, variables


@pytest.fixture(scope="module")
def maps():
    return [jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 8)), jnp.float32)]


@pytest.fixture(scope="module")
def head():
    return drawn(lambda: label_head("retrieval", (4, 8), 6, rngs=nnx.Rngs(0)))


def test_counts_are_the_published_ones():
    whole = nnx.eval_shape(lambda: label_head("retrieval", (1024, 2048), 100, rngs=nnx.Rngs(0)))
    assert count(split(whole.awareness).trainable) == 29_366_272
    # With the power, the norm, and a classifier without a bias.
    assert count(split(whole).trainable) == 29_366_272 + 1 + 2 * 2048 + 2048 * 100
    trained = [v for v in variables(whole).values() if isinstance(v, nnx.Param)]
    assert all(isinstance(value, Head) for value in trained)


def test_channels_are_normed_within_an_image():
    x = np.random.default_rng(1).normal(3, 2, size=(2, 4, 5, 3))
    mean, variance = (f(x, axis=(1, 2), keepdims=True) for f in (np.mean, np.var))
    found = instance_norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)


@pytest.mark.parametrize(("power", "size"), [(1.0, 1.0), (3.0, 1.0), (3.0, 1e20), (0.5, 1e-3)])
def test_pooling_is_a_generalized_mean_at_any_size(power, size):
    x = np.abs(np.random.default_rng(2).normal(size=(2, 3, 4, 5))) * size
    x[0, 0, 0] = -1  # as after no ReLU
    found = GeM(power)(jnp.asarray(x, jnp.float32))
    expected = (np.maximum(x, 1e-6) ** power).mean(axis=(1, 2)) ** (1 / power)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_an_image_is_found_by_what_is_pooled_and_classified_by_that_normed(head, maps):
    found, logits = run(lambda head, maps: (head.embed(maps), head(maps).logits), head, maps)
    assert (found.shape, logits.shape) == ((2, 8), (2, 6))
    normed = run(lambda head, x: head.linear(head.norm(x)), head, found)
    np.testing.assert_allclose(logits, normed, atol=1e-5)
    alone = run(lambda head, maps: head.embed(maps), head, [x[:1] for x in maps])
    np.testing.assert_allclose(alone, found[:1], atol=1e-5)


def test_a_gate_without_channels_is_refused():
    with pytest.raises(ConfigError, match="a gate of 8 channels with reduction=9"):
        CategoryAwareness(8, reduction=9, rngs=nnx.Rngs(0))
