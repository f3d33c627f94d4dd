"""ConvNeXt: published counts, maps of any size, norms of maps that leave, drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from tests.compiled import run
from vadapt import models, remat
from vadapt.backbones.convnext import ConvNeXt, ConvNeXtBlock, convnext
from vadapt.errors import ConfigError
from vadapt.partition import count, merge, split, variables

# The published totals, less classifiers of 1000 classes.
COUNTS = {
    "convnext_tiny": 28_589_128 - 769_000,
    "convnext_small": 50_223_688 - 769_000,
    "convnext_base": 88_591_464 - 1_025_000,
    "convnext_large": 197_767_336 - 1_537_000,
}
WIDTHS = (4, 6, 8, 10)


def small(**options):
    options = {"depths": (1, 1, 2, 1), "widths": WIDTHS, "layer_scale": 1.0, **options}
    return drawn(lambda: ConvNeXt(**options, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    return small()


def pixels(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(name):
    model = nnx.eval_shape(lambda: models.create(name))
    assert count(split(model, "everything").trainable) == COUNTS[name]


@pytest.mark.parametrize("size", [(64, 96), (65, 99), (47, 32)])
def test_what_fills_no_step_is_left_out(model, size):
    assert model.strides == (4, 8, 16, 32)
    assert model.widths == WIDTHS
    maps = nnx.eval_shape(
        lambda: model.features(jnp.zeros((2, *size, 3)), (0, 1, 2, 3), as_grid=True)
    )
    for found, stride, width in zip(maps, model.strides, model.widths, strict=True):
        assert found.shape == (2, size[0] // stride, size[1] // stride, width)


def test_features_come_in_the_order_asked_as_maps_or_tokens(model):
    images = pixels(2, 32, 64)

    def several(model, images):
        return (
            model.features(images, layers=(3, 0), as_grid=True),
            model(images),
            model.features(images, layers=-4, as_grid=True),
            model.features(images, layers=0),
        )

    (late, early), last, first, tokens = run(several, model, images)
    np.testing.assert_array_equal(late, last)
    np.testing.assert_array_equal(early, first)
    np.testing.assert_array_equal(tokens, early.reshape(2, 8 * 16, 4))


def test_norms_are_applied_to_maps_that_leave_only():
    model, images, every = small(normed=(0, 1, 2, 3)), pixels(1, 64, 32), (0, 1, 2, 3)

    def several(model, images):
        normed = model.features(images, every, as_grid=True)
        plain = model.features(images, every, as_grid=True, norm=False)
        return normed, plain, [model.norms[str(i)](plain[i]) for i in every]

    normed, plain, by_hand = run(several, model, images)
    for x, y in zip(normed, by_hand, strict=True):
        np.testing.assert_array_equal(x, y)
    model.norms = nnx.Dict({})
    without = run("features", model, images, layers=every, as_grid=True)
    for x, y in zip(without, plain, strict=True):
        np.testing.assert_array_equal(x, y)


def test_classifiers_have_the_last_norm_alone(model):
    assert [name for name in variables(model) if name.startswith("norms")] == [
        "norms/3/bias",
        "norms/3/scale",
    ]


def test_layer_scale_starts_where_it_is_told():
    block = ConvNeXtBlock(8, layer_scale=1e-6, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(block.scale.gamma[...], jnp.full(8, 1e-6))
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    np.testing.assert_allclose(block(x), x, atol=1e-5)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    model = small(drop_path_rate=0.4)
    rates = [block.drop_path_rate for stage in model.stages for block in stage]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])
    images = jnp.ones((32, 32, 32, 3))
    np.testing.assert_array_equal(run("__call__", model, images), run("__call__", model, images))
    kept = run(lambda model, images, key: model(images, key=key), model, images, jax.random.key(0))
    assert jnp.unique(kept[:, 0, 0, 0].round(4)).size > 1  # whole terms drop for some samples


@pytest.mark.parametrize("policy", ["dots", "blocks"])
def test_gradients_are_the_same_with_rematerialisation(model, policy):
    parts = split(model)

    def gradient(policy):
        def loss(images):
            return (merge(*parts)(images) ** 3).sum()

        with remat.rematerialise(policy):
            return jax.jit(jax.grad(loss))(pixels(1, 32, 32))

    np.testing.assert_allclose(gradient(policy), gradient("none"), rtol=1e-4, atol=1e-6)


def test_bfloat16_weights_compute_in_bfloat16(model):
    parts = split(model, "everything")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parts.trainable)
    cast = merge(parts.graph, half, parts.frozen, parts.state)
    images = pixels(1, 64, 32)
    found = run("__call__", cast, images)
    assert found.dtype == jnp.bfloat16
    # bf16 keeps 8 bits; after the norm the maps are of unit scale.
    expected = run("__call__", model, images)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.15)


def test_wrong_settings_say_what_is_allowed(model):
    with pytest.raises(ConfigError, match="nearest: 'tiny'"):
        convnext("tini", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="4 depths, 3 widths"):
        small(widths=(4, 6, 8))
    with pytest.raises(ConfigError, match="norms for the stages \\(4,\\)"):
        small(normed=(4,))
    with pytest.raises(ConfigError, match="4 stages \\(0 to 3\\)"):
        model.features(pixels(1, 32, 32), layers=-5)
