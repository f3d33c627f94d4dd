"""ConvNeXt: published counts, maps of any size, norms of maps that leave, drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.abstract import named
from tests.backbones.drawn import drawn, in_bfloat16
from tests.compiled import run
from vadapt import remat
from vadapt.backbones.convnext import ConvNeXt, ConvNeXtBlock, convnext
from vadapt.errors import ConfigError
from vadapt.partition import count, split, variables

# The published totals, less classifiers of 1000 classes.
COUNTS = {
    "convnext_tiny": 28_589_128 - 769_000,
    "convnext_small": 50_223_688 - 769_000,
    "convnext_base": 88_591_464 - 1_025_000,
    "convnext_large": 197_767_336 - 1_537_000,
}
WIDTHS = (4, 6, 8, 10)
TWO_STAGES = {"depths": (1, 1), "widths": (4, 6), "normed": (1,)}


def small(**options):
    options = {"depths": (1, 1, 2, 1), "widths": WIDTHS, "layer_scale": 1.0, **options}
    return drawn(lambda: ConvNeXt(**options, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    return small()


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 3)), jnp.float32)


def ways_to_call(model, images):
    return {
        "several": model.features(images, layers=(3, 0), as_grid=True),
        "call": model(images),
        "early": model.features(images, layers=-4, as_grid=True),
        "tokens": model.features(images, layers=0),
    }


@pytest.fixture(scope="module")
def outputs(model):
    """What two images become, in every way to ask for it."""
    return jax.tree.map(np.asarray, run(ways_to_call, model, pixels(2, 32, 64)))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(name):
    assert count(split(named(name), "everything").trainable) == COUNTS[name]


@pytest.mark.parametrize("size", [(64, 96), (65, 99), (47, 32)])
def test_what_fills_no_step_is_left_out(model, size):
    assert model.strides == (4, 8, 16, 32)
    assert model.widths == WIDTHS
    maps = nnx.eval_shape(
        lambda: model.features(jnp.zeros((2, *size, 3)), (0, 1, 2, 3), as_grid=True)
    )
    for found, stride, width in zip(maps, model.strides, model.widths, strict=True):
        assert found.shape == (2, size[0] // stride, size[1] // stride, width)


def test_features_come_in_the_order_asked_as_maps_or_tokens(outputs):
    late, early = outputs["several"]
    np.testing.assert_array_equal(late, outputs["call"])
    np.testing.assert_array_equal(early, outputs["early"])
    np.testing.assert_array_equal(outputs["tokens"], early.reshape(2, 8 * 16, 4))


def with_and_without_norms(model, images):
    every = (0, 1, 2, 3)
    normed = model.features(images, every, as_grid=True)
    plain = model.features(images, every, as_grid=True, norm=False)
    by_hand = [model.norms[str(i)](plain[i]) for i in every]
    model.norms = nnx.Dict({})
    return normed, plain, by_hand, model.features(images, every, as_grid=True)


def test_norms_are_applied_to_maps_that_leave_only():
    model = small(normed=(0, 1, 2, 3))
    normed, plain, by_hand, without = run(with_and_without_norms, model, pixels(1, 64, 32))
    for x, y in zip(normed, by_hand, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(without, plain, strict=True):
        np.testing.assert_array_equal(x, y)


def test_classifiers_have_the_last_norm_alone(model):
    assert [name for name in variables(model) if name.startswith("norms")] == [
        "norms/3/bias",
        "norms/3/scale",
    ]


def test_layer_scale_starts_where_it_is_told():
    block = ConvNeXtBlock(8, layer_scale=1e-6, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(block.scale.gamma[...], np.full(8, 1e-6, np.float32))
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    np.testing.assert_allclose(run("__call__", block, x), x, atol=1e-5)


def without_and_with_key(model, images, key):
    return model(images), model(images), model(images, key=key)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    model = small(drop_path_rate=0.4)
    rates = [block.drop_path_rate for stage in model.stages for block in stage]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])
    model = small(drop_path_rate=0.4, **TWO_STAGES)
    images = np.ones((32, 32, 32, 3), np.float32)
    one, other, kept = run(without_and_with_key, model, images, jax.random.key(0))
    np.testing.assert_array_equal(one, other)
    # Whole terms drop for some samples.
    assert np.unique(np.asarray(kept)[:, 0, 0, 0].round(4)).size > 1


def gradient(model, images, policy):
    with remat.rematerialise(policy):
        return jax.grad(lambda images: (model(images) ** 3).sum())(images)


@pytest.mark.parametrize("policy", ["dots", "blocks"])
def test_gradients_are_the_same_with_rematerialisation(policy):
    model, images = small(**TWO_STAGES), pixels(1, 32, 32)
    found, expected = (run(gradient, model, images, policy=name) for name in (policy, "none"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_weights_compute_in_bfloat16(model, outputs):
    found = run("__call__", in_bfloat16(model), pixels(2, 32, 64))
    assert found.dtype == jnp.bfloat16
    # bf16 keeps 8 bits; after the norm the maps are of unit scale.
    np.testing.assert_allclose(np.asarray(found, np.float32), outputs["call"], atol=0.15)


def test_wrong_settings_say_what_is_allowed(model):
    with pytest.raises(ConfigError, match="nearest: 'tiny'"):
        convnext("tini", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="4 depths, 3 widths"):
        small(widths=(4, 6, 8))
    with pytest.raises(ConfigError, match="norms for the stages \\(4,\\)"):
        small(normed=(4,))
    with pytest.raises(ConfigError, match="4 stages \\(0 to 3\\)"):
        model.features(pixels(1, 32, 32), layers=-5)
