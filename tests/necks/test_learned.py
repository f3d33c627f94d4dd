"""Necks that train: their maps' sizes, what trains of them, and the types they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt.necks.learned import Deconvolutions, MapNorm, MultiLevelNeck
from vadapt.partition import Head, count, flatten, merge, split, variables

NECKS = {
    "deconvolutions": lambda: Deconvolutions(6, rngs=nnx.Rngs(0)),
    "multi_level": lambda: MultiLevelNeck([6] * 4, 6, rngs=nnx.Rngs(0)),
}


@pytest.fixture
def maps(rng):
    return [jnp.asarray(rng.normal(size=(2, 4, 7, 6)), jnp.float32) for _ in range(4)]


@pytest.mark.parametrize("name", NECKS)
def test_strides_are_quarter_half_one_and_double(name, maps):
    shapes = [x.shape for x in jax.eval_shape(lambda maps: NECKS[name]()(maps), maps)]
    assert shapes == [(2, 16, 28, 6), (2, 8, 14, 6), (2, 4, 7, 6), (2, 2, 3, 6)]


@pytest.mark.parametrize("name", NECKS)
def test_necks_train_with_the_head_and_every_number_has_a_gradient(name, maps):
    parts = split(NECKS[name](), Head)
    assert count(parts.frozen) == 0

    def loss(trainable):
        neck = merge(parts.graph, trainable, parts.frozen, parts.state)
        return sum(jnp.square(x).sum() for x in neck(maps))

    for path, gradient in flatten(jax.jit(jax.grad(loss))(parts.trainable)).items():
        assert bool(jnp.any(gradient)), path


@pytest.mark.parametrize("name", NECKS)
def test_types_stay(name, maps):
    parts = split(NECKS[name](), Head)

    def outputs(trainable, maps):
        trainable, maps = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (trainable, maps))
        return merge(parts.graph, trainable, parts.frozen, parts.state)(maps)

    found = jax.eval_shape(outputs, parts.trainable, maps)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}


def test_statistics_of_the_pyramid_do_not_train():
    state = split(NECKS["deconvolutions"]()).state
    assert set(flatten(state)) == {"between/mean", "between/var"}
    assert len(variables(NECKS["deconvolutions"]())) == 4 * 2 + 3 * 2 + 4


def test_a_map_is_normed_as_one(maps):
    normed = np.asarray(MapNorm(6, epsilon=1e-5)(3 * maps[0] + 2))
    np.testing.assert_allclose(normed.mean((1, 2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(normed.std((1, 2, 3)), 1, atol=1e-5)
    assert np.abs(normed.mean((1, 2))).max() > 1e-2
