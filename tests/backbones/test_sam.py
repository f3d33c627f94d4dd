"""SAM's encoder: windows, padding and relative positions by brute force, other grids, adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.abstract import named
from tests.backbones.drawn import in_bfloat16
from tests.compiled import run
from vadapt import adapters, models
from vadapt.backbones.sam import MapAttention, SAMEncoder, sam
from vadapt.errors import ConfigError, ShapeError
from vadapt.nn.positions import resize_relative
from vadapt.partition import count, split, variables

# Of the published encoders, necks and tables included.
COUNTS = {"sam_base": 89_670_912, "sam_large": 308_278_272, "sam_huge": 637_026_048}
HEADS = 2


def randomised(module, scale=0.3):
    """The module with every variable drawn anew, in place: tables and biases start at zero."""
    rng = np.random.default_rng(0)
    for value in variables(module).values():
        value[...] = jnp.asarray(rng.normal(scale=scale, size=value.shape), jnp.float32)
    return module


def small(**options):
    """An encoder of a grid of 5x5, windows of 3x3 and one global block."""
    size = {"width": 16, "depth": 3, "num_heads": HEADS, "patch_size": 4, "image_size": 20}
    options = {**size, "window": 3, "global_blocks": (1,), "neck": 8, **options}
    return randomised(SAMEncoder(**options, rngs=nnx.Rngs(0)))


def images(height=20, width=20, batch=2):
    drawn = np.random.default_rng(0).normal(size=(batch, height, width, 3))
    return jnp.asarray(drawn, jnp.float32)


@pytest.fixture(scope="module")
def model():
    return small()


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def by_brute_force(attention, x, sides, tables):
    """Attention over all pairs of a padded map, those of different windows masked; float64."""
    (b, h, w, d), (p, q) = x.shape, sides
    padded = np.zeros((b, -(-h // p) * p, -(-w // q) * q, d))
    padded[:, :h, :w] = x
    rows, columns = (y.ravel() for y in np.indices(padded.shape[1:3]))
    qkv = linear(attention.qkv, padded).reshape(b, rows.size, 3, HEADS, d // HEADS)
    queries, keys, values = np.moveaxis(qkv, 2, 0)
    together = (rows[:, None] // p == rows // p) & (columns[:, None] // q == columns // q)
    logits = np.einsum("bind,bjnd->bnij", queries, keys) * (d // HEADS) ** -0.5
    for places, side, table in ((rows, p, tables[0]), (columns, q, tables[1])):
        offset = np.where(together, places[:, None] - places + side - 1, 0)
        logits += np.einsum("bind,ijd->bnij", queries, np.asarray(table, np.float64)[offset])
    shares = np.exp(logits) * together
    shares /= shares.sum(axis=-1, keepdims=True)
    out = np.einsum("bnij,bjnd->bind", shares, values).reshape(*padded.shape)
    return linear(attention.proj, out)[:, :h, :w]


@pytest.mark.parametrize("size", [(3, 3), (6, 9), (5, 7), (2, 4)])
def test_windows_are_masked_attention_over_the_padded_map(size):
    attention = MapAttention(16, HEADS, grid=(9, 9), window=3, rngs=nnx.Rngs(0))
    randomised(attention)
    x = np.random.default_rng(1).normal(size=(2, *size, 16)).astype(np.float32)
    tables = (attention.rel_pos_h[...], attention.rel_pos_w[...])
    expected = by_brute_force(attention, x, (3, 3), tables)
    np.testing.assert_allclose(run("__call__", attention, x), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 5), (3, 7), (1, 1)])
def test_global_attention_sees_all_with_tables_of_any_grid(size):
    attention = MapAttention(16, HEADS, grid=(4, 5), window=None, rngs=nnx.Rngs(0))
    randomised(attention)
    x = np.random.default_rng(1).normal(size=(1, *size, 16)).astype(np.float32)
    pairs = zip((attention.rel_pos_h, attention.rel_pos_w), size, strict=True)
    tables = [resize_relative(table[...], 2 * side - 1) for table, side in pairs]
    expected = by_brute_force(attention, x, size, tables)
    np.testing.assert_allclose(run("__call__", attention, x), expected, atol=1e-5)


@pytest.mark.parametrize(("rows", "wanted"), [(9, 5), (5, 9), (19, 9), (7, 7)])
def test_relative_positions_are_interpolated_between_centres(rows, wanted):
    table = np.random.default_rng(0).normal(size=(rows, 2)).astype(np.float32)
    places = (np.arange(wanted) + 0.5) * rows / wanted - 0.5
    expected = np.stack([np.interp(places, np.arange(rows), column) for column in table.T], axis=1)
    found = jax.jit(resize_relative, static_argnums=1)(table, wanted)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[wanted // 2], table[rows // 2], atol=1e-6)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(name):
    shapes = named(name)
    assert count(split(shapes, "everything").trainable) == COUNTS[name]
    assert [block.is_global for block in shapes.blocks].count(True) == 4
    assert shapes.blocks[-1].is_global


def ways_to_call(model, images):
    late, early = model.features(images, layers=(-1, 0), as_grid=True)
    return {
        "several": (late, early),
        "tokens": model.features(images, layers=2, norm=False),
        "early": model.features(images, 0, as_grid=True),
        "middle": model.features(images, 1),
        "neck": model.neck(late),
        "call": model(images),
    }


@pytest.fixture(scope="module")
def outputs(model):
    """What two images of another size become, in every way to ask for it."""
    return jax.tree.map(np.asarray, run(ways_to_call, model, images(20, 28)))


def test_features_of_several_layers_come_in_the_order_asked(outputs):
    late, early = outputs["several"]
    assert late.shape == early.shape == (2, 5, 7, 16)
    np.testing.assert_array_equal(outputs["tokens"], late.reshape(2, 35, 16))
    np.testing.assert_array_equal(outputs["early"], early)
    np.testing.assert_allclose(outputs["neck"], outputs["call"], atol=1e-6)


def call_and_grid(model, images):
    return model(images), model.features(images, as_grid=True)


def test_a_model_without_a_neck_gives_its_last_map():
    found, last = run(call_and_grid, small(neck=None), images())
    np.testing.assert_array_equal(found, last)


def by_shifts(neck, x):
    y = neck.norm1(x @ neck.conv1.kernel[0, 0])
    y = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [y[:, i : i + 4, j : j + 3] @ neck.conv2.kernel[i, j] for i, j in np.ndindex(3, 3)]
    return neck(x), neck.norm2(sum(shifts[1:], shifts[0]))


def test_the_neck_is_two_convolutions_each_with_a_norm(model):
    x = np.random.default_rng(1).normal(size=(1, 4, 3, 16)).astype(np.float32)
    found, expected = run(by_shifts, model.neck, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_distant_places_meet_in_global_blocks_only(model):
    far = np.array(images())
    far[:, 16:, 16:] += 1.0
    before, after = (
        [np.asarray(y)[:, :3, :3] for y in run("features", model, x, layers=(0, 1), as_grid=True)]
        for x in (images(), far)
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-3
    assert [block.is_global for block in model.blocks] == [False, True, False]


def test_tables_can_be_of_another_size_than_the_model_or_absent():
    model = small(relative_size=40)
    assert model.blocks[1].attn.inner.rel_pos_h.shape == (19, 8)
    assert model.blocks[0].attn.inner.rel_pos_h.shape == (5, 8)
    assert jax.eval_shape(lambda: model(images(12, 24))).shape == (2, 3, 6, 8)
    bare = small(absolute_positions=False, relative_positions=False)
    assert not [path for path in variables(bare) if "pos" in path]
    # Without positions a shift by whole windows shifts what windows see.
    x = np.asarray(images(24, 24))
    still, moved = (
        run("features", bare, y, layers=0, as_grid=True) for y in (x, np.roll(x, 12, axis=1))
    )
    np.testing.assert_allclose(moved, np.roll(still, 3, axis=1), atol=1e-5)


def plain_and_grafted(models, images, key):
    return models.plain(images), models.grafted(images), models.grafted(images, key=key)


def test_an_adapter_beside_the_mlps_starts_as_an_identity_and_then_acts():
    model, key = small(depth=2, neck=None), jax.random.key(0)
    grafted = adapters.apply(model, "patchwise_scale", hidden=4)
    both = nnx.Dict({"plain": model, "grafted": grafted})
    plain, found, _ = run(plain_and_grafted, both, images(), key)
    np.testing.assert_array_equal(found, plain)
    grafted.blocks[0].mlp.adapter.up.bias[...] = jnp.asarray(np.linspace(-1, 1, 16), jnp.float32)
    plain, found, _ = run(plain_and_grafted, both, images(), key)
    assert np.abs(np.asarray(found) - plain).max() > 1e-2
    grafted.blocks[0].mlp.adapter.up.kernel[...] = jnp.ones((4, 16))
    _, found, dropped = run(plain_and_grafted, both, images(), key)
    assert not np.array_equal(dropped, found)


def test_bfloat16_weights_compute_in_bfloat16(model, outputs):
    found, expected = (
        run("features", in_bfloat16(model), images(20, 28), layers=1),
        outputs["middle"],
    )
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
    assert error < 0.03  # bf16 keeps 8 bits


def test_wrong_sizes_and_names_say_what_is_allowed(model):
    with pytest.raises(ShapeError, match="not a multiple of the patch size 4"):
        model(images(20, 22))
    with pytest.raises(ConfigError, match="layers \\(3,\\) of a model with 3 blocks"):
        model.features(images(), layers=3)
    with pytest.raises(ConfigError, match="layers \\(2, 5, 8, 11\\) of a model with 2 blocks"):
        models.create("sam_base", depth=2)
    with pytest.raises(ConfigError, match="nearest: 'base'"):
        sam("bas", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="not divisible by num_heads"):
        small(num_heads=3)
