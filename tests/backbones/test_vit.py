"""The plain ViT: sizes, features, positions on other grids, and the published counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiled import run
from vadapt.backbones.vit import VARIANTS, vit
from vadapt.errors import ConfigError, ShapeError
from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.nn.attention import Attention, RelativeBias
from vadapt.nn.mlp import swiglu_hidden
from vadapt.partition import Constant, count, split, variables
from vadapt.tasks.mae import MaskedAutoencoder

# Encoder parameters with position table; specs of MAE's released models (huge has patch 14).
TOTALS = {"small": 21_665_664, "base": 85_798_656, "large": 303_301_632, "huge": 630_764_800}


@pytest.fixture(scope="module")
def model():
    return vit("micro", depth=3, image_size=(16, 24), rngs=nnx.Rngs(0))


def pixels(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)


def ways_to_call(model, images):
    return {
        "several": model.features(images, layers=(2, 0), as_grid=True),
        "grid": model.features(images, as_grid=True),
        "early": model.features(images, layers=-3, as_grid=True),
        "tokens": model.features(images),
        "call": model(images),
    }


@pytest.fixture(scope="module")
def outputs(model):
    """What two images become, in every way to ask for it."""
    return jax.tree.map(np.asarray, run(ways_to_call, model, pixels(2, 16, 24)))


@pytest.mark.parametrize("variant", sorted(TOTALS))
def test_parameter_counts_are_the_published_ones(variant):
    shapes = nnx.eval_shape(lambda: vit(variant, positions="learned", rngs=nnx.Rngs(0)))
    assert count(nnx.to_pure_dict(nnx.state(shapes, nnx.Param))) == TOTALS[variant]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_gives_its_width(variant):
    config = VARIANTS[variant]
    side = 2 * config["patch_size"]

    def tokens():
        small = vit(variant, depth=1, image_size=side, rngs=nnx.Rngs(0))
        return small(jnp.zeros((1, side, side, 3)))

    assert jax.eval_shape(tokens).shape == (1, 5, config["width"])


def test_features_of_several_layers_come_in_the_order_asked(outputs):
    late, early = outputs["several"]
    assert late.shape == early.shape == (2, 2, 3, 96)
    assert np.array_equal(late, outputs["grid"])
    assert np.array_equal(early, outputs["early"])
    assert not np.allclose(late, early, atol=1e-2)


def test_last_features_are_what_the_model_returns(outputs):
    np.testing.assert_array_equal(outputs["tokens"], outputs["call"])


def test_grid_features_keep_raster_order(outputs):
    np.testing.assert_array_equal(outputs["grid"].reshape(2, 6, 96), outputs["tokens"][:, 1:])


def test_other_image_sizes_resize_the_positions(model):
    found = jax.eval_shape(lambda: model.features(jnp.zeros((1, 40, 8, 3)), as_grid=True))
    assert found.shape == (1, 5, 1, 96)


def embedded(model, images, keep):
    return model.embed(images, keep), model.embed(images)


def test_kept_patches_are_the_ones_asked_for(model):
    keep = jnp.array([[4, 1], [0, 5]])
    some, every = map(np.asarray, run(embedded, model, pixels(2, 16, 24), keep))
    assert np.array_equal(some[0, 1:], every[0, [5, 2]])
    assert np.array_equal(some[1, 1:], every[1, [1, 6]])
    assert np.array_equal(some[:, 0], every[:, 0])


def test_batch_order_does_not_matter(model):
    images, order = pixels(3, 16, 24), np.array([2, 0, 1])
    found, moved = run("__call__", model, images), run("__call__", model, images[order])
    np.testing.assert_allclose(np.asarray(found)[order], moved, atol=1e-5)


def test_bfloat16_weights_compute_in_bfloat16(model):
    parts = split(model, "everything")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parts.trainable)
    cast = nnx.merge(parts.graph, half, parts.frozen, parts.state)
    images = pixels(3, 16, 24)
    # JAX's own attention promotes its softmax to float32 implicitly.
    with jax.numpy_dtype_promotion("standard"):
        out = run("__call__", cast, images)
    assert out.dtype == jnp.bfloat16
    # bf16 keeps 8 bits; three blocks of unit-scale activations stay within a few of them.
    expected = run("__call__", model, images)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.15)


def without_and_with_key(model, images, key):
    return model(images), model(images), model(images, key=key)


def test_layer_scale_and_drop_path_are_there_when_asked():
    model = vit(
        "micro", depth=2, image_size=16, layer_scale=0.1, drop_path_rate=0.5, rngs=nnx.Rngs(0)
    )
    assert "blocks/1/mlp/scale/gamma" in variables(model)
    images = np.ones((64, 16, 16, 3), np.float32)
    one, other, kept = run(without_and_with_key, model, images, jax.random.key(0))
    assert np.array_equal(one, other)
    # Whole terms drop for some samples.
    assert np.unique(np.asarray(kept)[:, 0, 0].round(4)).size > 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("each", ["blocks/0/attn/inner/relative", "blocks/1/attn/inner/relative"]),
        ("shared", ["blocks/0/attn/inner/shared_relative"]),
        (
            "both",
            [
                "blocks/0/attn/inner/relative",
                "blocks/0/attn/inner/shared_relative",
                "blocks/1/attn/inner/relative",
            ],
        ),
    ],
)
def test_blocks_have_biases_by_offset_of_their_own_or_share_one_or_both(kind, expected):
    options = {"depth": 2, "image_size": 16, "relative_positions": kind}
    model = nnx.eval_shape(lambda: vit("micro", **options, rngs=nnx.Rngs(0)))
    assert [path for path in variables(model) if "relative" in path] == [
        f"{path}/table" for path in expected
    ]
    with pytest.raises(ConfigError, match="relative_positions 'al'"):
        vit("micro", relative_positions="al", rngs=nnx.Rngs(0))


def test_own_and_shared_biases_by_offset_add():
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    tables = jax.random.normal(jax.random.key(1), (2, 3 * 3 + 3, 2))

    @functools.partial(jax.jit, static_argnums=0)
    def weights(kinds, tables):
        biases = {kind: RelativeBias((2, 2), 2) for kind in kinds}
        for bias, table in zip(biases.values(), tables, strict=True):
            bias.table[...] = table
        return Attention(8, 2, **biases, rngs=nnx.Rngs(0)).weights(x)

    wanted = weights(("relative",), tables[:1] + tables[1:])
    np.testing.assert_allclose(weights(("relative", "shared_relative"), tables), wanted, atol=1e-6)
    assert np.abs(wanted - weights(("shared_relative",), tables[:1])).max() > 1e-3


def test_sincos_positions_never_train():
    model = vit("micro", depth=1, image_size=16, positions="sincos", rngs=nnx.Rngs(0))
    assert isinstance(model.pos_embed, Constant)
    assert "pos_embed" in split(model, "everything").state


def test_no_class_token_gives_patches_only():
    model = vit("micro", depth=1, image_size=16, class_token=False, rngs=nnx.Rngs(0))
    assert jax.eval_shape(lambda: model(jnp.zeros((1, 16, 16, 3)))).shape == (1, 4, 96)


def with_and_without_registers(model, images):
    tokens = model.embed(images)
    model.registers = None
    return tokens, model.embed(images)


def test_registers_stand_between_class_token_and_patches_and_have_no_position():
    options = {"depth": 1, "image_size": 16, "num_registers": 2, "position_resize": "cubic"}
    model = vit("micro", **options, rngs=nnx.Rngs(0))
    tokens, without = map(np.asarray, run(with_and_without_registers, model, pixels(2, 24, 16)))
    assert tokens.shape == (2, 1 + 2 + 6, 96)
    np.testing.assert_array_equal(tokens[1, 1:3], model.registers[...])
    first = np.asarray(model.cls_token[...]) + np.asarray(model.pos_embed[...])[0]
    np.testing.assert_array_equal(tokens[0, 0], first)
    np.testing.assert_array_equal(tokens[:, 3:], without[:, 1:])


def grid_and_tokens(model, images):
    return model.features(images, as_grid=True), model(images)


def test_registers_are_no_part_of_grids_and_patches_can_still_be_kept():
    model = vit("micro", depth=1, image_size=16, num_registers=3, rngs=nnx.Rngs(0))
    images = pixels(1, 16, 16)
    grid, tokens = map(np.asarray, run(grid_and_tokens, model, images))
    np.testing.assert_array_equal(grid.reshape(1, 4, 96), tokens[:, 4:])
    some, every = map(np.asarray, run(embedded, model, images, jnp.array([[3, 0]])))
    np.testing.assert_array_equal(some, every[:, [0, 1, 2, 3, 7, 4]])


def test_a_masked_autoencoder_takes_no_registers():
    backbone = vit("micro", depth=1, image_size=16, num_registers=3, rngs=nnx.Rngs(0))
    decoder = MAEDecoder(96, backbone.grid, 192, width=8, depth=1, num_heads=1, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="gives 4 tokens"):
        MaskedAutoencoder(backbone, decoder)


def test_the_class_token_can_be_added_twice():
    once = vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0))
    twice = vit("micro", depth=1, image_size=16, class_token_twice=True, rngs=nnx.Rngs(0))
    images = np.ones((1, 16, 16, 3), np.float32)
    gap = np.asarray(run("embed", twice, images)) - np.asarray(run("embed", once, images))
    np.testing.assert_allclose(gap[0, 0], once.cls_token[...], atol=1e-6)
    np.testing.assert_array_equal(gap[0, 1:], 0.0)


def gated(inner, x):
    gate, value = jnp.split(inner.w12(x), 2, axis=-1)
    return inner(x), inner.w3(gate * jax.nn.sigmoid(gate) * value)


def test_gated_mlps_weigh_about_as_much_as_plain_ones():
    options = {"swiglu": True, "mlp_hidden": swiglu_hidden(4 * 96)}
    model = vit("micro", depth=1, image_size=16, **options, rngs=nnx.Rngs(0))
    inner = model.blocks[0].mlp.inner
    assert inner.w12.kernel.shape == (96, 512)
    assert inner.w3.kernel.shape == (256, 96)
    x = np.random.default_rng(0).normal(size=(2, 3, 96)).astype(np.float32)
    found, expected = run(gated, inner, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("swiglu", [False, True])
def test_biases_can_be_left_out(swiglu):
    options = {"qkv_bias": False, "proj_bias": False, "mlp_bias": False, "swiglu": swiglu}
    model = vit("micro", depth=1, image_size=16, **options, rngs=nnx.Rngs(0))
    names = [name for name in variables(model) if "inner" in name]
    assert len(names) == 4
    assert all(name.endswith("kernel") for name in names)
    assert jax.eval_shape(lambda: model(jnp.zeros((1, 16, 16, 3)))).shape == (1, 5, 96)


def test_wrong_sizes_and_names_say_what_is_allowed(model):
    with pytest.raises(ShapeError, match="not a multiple of the patch size 8"):
        model(jnp.zeros((1, 16, 20, 3)))
    with pytest.raises(ConfigError, match="nearest: 'base'"):
        vit("bas", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="3 blocks"):
        model.features(jnp.zeros((1, 16, 24, 3)), layers=3)
    with pytest.raises(ConfigError, match="learned"):
        vit("micro", positions="learnd", rngs=nnx.Rngs(0))
