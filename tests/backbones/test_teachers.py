"""Teachers: options of the one ViT, with a projection, their attention and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiled import run
from vadapt.backbones.teachers import TEACHERS, kind_of, tower
from vadapt.errors import ConfigError
from vadapt.nn.activations import gelu_exact, gelu_quick
from vadapt.partition import count, split


@pytest.fixture(scope="module")
def micro():
    return tower("vit_micro", image_size=32, rngs=nnx.Rngs(0))


def test_features_are_the_backbones_and_attention_sums_to_one(micro):
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    features, attention = map(np.asarray, run("__call__", micro, images))
    np.testing.assert_allclose(features, run("__call__", micro.backbone, images), atol=1e-5)
    assert attention.shape == (2, 17, 17)
    np.testing.assert_allclose(attention.sum(-1), 1.0, rtol=1e-5)
    assert attention.min() >= 0.0


# Trunk and projection of ViT-B/16; CLIP's has no patch bias, and a norm before the blocks.
@pytest.mark.parametrize(
    ("name", "width", "numbers"),
    [("dino_b16", 768, 85_798_656), ("slip_b16", 512, 86_191_872), ("clip_b16", 512, 86_192_640)],
)
def test_published_teachers_have_their_sizes(name, width, numbers):
    teacher = nnx.eval_shape(lambda: tower(name, image_size=224, rngs=nnx.Rngs(0)))
    assert teacher.width == kind_of(name).width == width
    assert count(split(teacher, "everything").trainable) == numbers


def test_unknown_teachers_are_refused():
    with pytest.raises(ConfigError, match="clip_b16"):
        kind_of("clip_b61")


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_statistics_are_of_channels_in_0_1(name):
    kind = kind_of(name)
    assert all(0.0 < value < 1.0 for value in (*kind.mean, *kind.std))


def test_own_statistics_normalise_each_channel(micro):
    grey = np.broadcast_to(np.array(micro.mean, np.float32), (1, 8, 8, 3))
    np.testing.assert_allclose(run("normalise", micro, grey), 0.0, atol=1e-6)


def test_quick_gelu_is_near_the_exact_one():
    x = jnp.linspace(-6.0, 6.0, 1001)
    gap = jax.jit(lambda x: jnp.abs(gelu_quick(x) - gelu_exact(x)).max())(x)
    assert 0.01 < gap < 0.021
