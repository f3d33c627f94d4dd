"""Swin: published counts, windows of maps of any size, tokens before the patches, drop path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.abstract import named
from tests.backbones.drawn import drawn, in_bfloat16
from tests.compiled import run
from vadapt.backbones.swin import (
    Layout,
    Merging,
    Swin,
    WindowAttention,
    same_region,
    swin,
    window_index,
)
from vadapt.errors import ConfigError
from vadapt.partition import count, split

# The published totals, less classifiers of 1000 classes.
COUNTS = {
    "swin_tiny": 28_288_354 - 769_000,
    "swin_small": 49_606_258 - 769_000,
    "swin_base": 87_768_224 - 1_025_000,
    "swin_large": 196_532_476 - 1_537_000,
}
WIDTHS = (4, 8, 16, 32)


def small(seed=0, **options):
    options = {
        "depths": (2, 1, 2, 1), "width": 4, "num_heads": (1, 2, 2, 4), "window": 3, **options
    }  # fmt: skip
    return drawn(lambda: Swin(**options, rngs=nnx.Rngs(0)), seed)


@pytest.fixture(scope="module")
def model():
    return small()


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 3)), jnp.float32)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(name):
    assert count(split(named(name), "everything").trainable) == COUNTS[name]


@pytest.mark.parametrize("size", [(64, 96), (65, 99), (30, 47)])
def test_every_pixel_is_in_the_maps(model, size):
    assert model.strides == (4, 8, 16, 32)
    assert model.widths == WIDTHS
    maps = nnx.eval_shape(
        lambda: model.features(jnp.zeros((2, *size, 3)), (0, 1, 2, 3), as_grid=True)
    )
    height, width = (-(-side // 4) for side in size)
    for found, channels in zip(maps, WIDTHS, strict=True):
        assert found.shape == (2, height, width, channels)
        height, width = -(-height // 2), -(-width // 2)


def test_neighbours_are_merged_column_by_column():
    merging = Merging(1, rngs=nnx.Rngs(0))
    merging.reduction.kernel[...] = jnp.eye(4, 2)
    merging.norm = lambda x: x
    (found,) = merging(jnp.arange(12.0).reshape(1, 3, 4, 1))[..., 0, 0, :]
    np.testing.assert_array_equal(found, [0, 4])  # the row below comes before the column beside


def attend_by_hand(layer, x, grid, side, shift):
    """Every place by itself, with those of its own window and side of the border."""
    height, width = grid
    full = (-(-height // side) * side, -(-width // side) * side)
    places = [(r, c) for r in range(full[0]) for c in range(full[1])]
    inside = [r < height and c < width for r, c in places]
    padded = np.zeros((len(places), x.shape[-1]), np.float32)
    padded[inside] = np.asarray(x).reshape(height * width, -1)
    heads = np.asarray(layer.qkv(padded)).reshape(len(places), 3, layer.num_heads, -1)
    out = np.zeros(padded.shape, np.float32)
    for i, (r, c) in enumerate(places):
        # A rolled map's windows: where a place lies after the roll, and from where it came.
        def window(r, c):
            return (r - shift) % full[0] // side, (c - shift) % full[1] // side

        near = [
            j
            for j, (y, z) in enumerate(places)
            if window(y, z) == window(r, c)
            and (y >= shift) == (r >= shift or (r - shift) % full[0] < full[0] - side)
            and (z >= shift) == (c >= shift or (c - shift) % full[1] < full[1] - side)
        ]
        for h in range(layer.num_heads):
            wide = 2 * layer.window - 1
            rows = [
                (r - places[j][0] + layer.window - 1) * wide
                + c - places[j][1] + layer.window - 1
                for j in near
            ]  # fmt: skip
            scale = heads.shape[-1] ** -0.5
            logits = heads[near, 1, h] @ heads[i, 0, h] * scale
            logits = logits + np.asarray(layer.table[...])[rows, h]
            shares = np.exp(logits - logits.max())
            e = heads.shape[-1]
            out[i, h * e : (h + 1) * e] = shares / shares.sum() @ heads[near, 2, h]
    return np.asarray(layer.proj(out))[inside]


@pytest.mark.parametrize(
    ("grid", "side", "shift"),
    [((6, 9), 3, 1), ((6, 9), 3, 0), ((5, 7), 3, 1), ((2, 5), 2, 0), ((3, 3), 3, 0)],
)
def test_windows_shift_and_are_masked_and_padded(grid, side, shift):
    layer = drawn(lambda: WindowAttention(4, 2, window=3, shift=shift, rngs=nnx.Rngs(0)), seed=3)
    x = np.random.default_rng(4).normal(size=(1, grid[0] * grid[1], 4)).astype(np.float32)
    found = run("__call__", layer, x, layout=Layout(grid))
    np.testing.assert_allclose(found[0], attend_by_hand(layer, x, grid, side, shift), atol=1e-5)


def test_smaller_windows_read_the_inner_part_of_the_table():
    whole, inner = window_index(3, 3), window_index(3, 2)
    assert whole.shape == (9, 9)
    assert set(np.diag(inner)) == {12}  # the middle row of 25
    assert inner[0, 3] == whole[0, 4] == 12 - 5 - 1


def test_maps_of_one_window_have_no_shift_unless_windows_are_whole():
    layer = drawn(lambda: WindowAttention(4, 2, window=3, shift=1, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(4).normal(size=(1, 9, 4)).astype(np.float32)
    first = run("__call__", layer, x, layout=Layout((3, 3)))
    layer.shift = 0
    np.testing.assert_array_equal(first, run("__call__", layer, x, layout=Layout((3, 3))))
    layer.shift, layer.always_partition = 1, True
    other = run("__call__", layer, x, layout=Layout((3, 3)))
    assert np.abs(other - first).max() > 1e-3
    assert not same_region((1, 1), 3, 1).all()


def test_tokens_before_the_patches_are_in_every_window_and_become_the_mean():
    layer = drawn(lambda: WindowAttention(4, 2, window=2, shift=1, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(4).normal(size=(2, 3 + 16, 4)).astype(np.float32)
    found = run("__call__", layer, x, layout=Layout((4, 4), before=3))
    assert found.shape == x.shape
    layer.shift = 0
    whole = run("__call__", layer, x, layout=Layout((4, 4), before=3))
    windows = x[:, 3:].reshape(2, 2, 2, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 4)
    alone = [
        run("__call__", layer, np.concatenate([x[:, :3], windows[:, i]], 1),
            layout=Layout((2, 2), before=3))
        for i in range(4)
    ]  # fmt: skip
    np.testing.assert_allclose(whole[:, :3], np.mean([y[:, :3] for y in alone], 0), atol=1e-6)
    np.testing.assert_allclose(
        whole[:, 3:].reshape(2, 4, 4, 4)[:, :2, 2:].reshape(2, 4, 4), alone[1][:, 3:], atol=1e-6
    )


def ways_to_call(model, images):
    return {
        "several": model.features(images, layers=(3, 0), as_grid=True),
        "call": model(images),
        "tokens": model.features(images, layers=0),
        "plain": model.features(images, -1, as_grid=True, norm=False),
    }


def test_features_come_in_the_order_asked_as_maps_or_tokens(model):
    found = run(ways_to_call, model, pixels(2, 40, 64))
    late, early = found["several"]
    np.testing.assert_array_equal(late, found["call"])
    np.testing.assert_array_equal(found["tokens"], early.reshape(2, 10 * 16, 4))
    np.testing.assert_allclose(late, model.norms["3"](found["plain"]), atol=1e-5)
    half = run("__call__", in_bfloat16(model), pixels(2, 40, 64))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), late, atol=0.2)


def with_key(model, images, key):
    return model(images), model(images, key=key)


def test_drop_path_grows_with_depth_and_acts_in_training_only():
    model = small(drop_path_rate=0.5)
    rates = [block.attn.drop_path_rate for stage in model.stages for block in stage]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    shifts = [[block.attn.inner.shift for block in stage] for stage in model.stages]
    assert shifts == [[0, 1], [0], [0, 1], [0]]
    plain, kept = run(with_key, model, np.ones((8, 16, 16, 3), np.float32), jax.random.key(0))
    assert np.unique(np.asarray(plain)[:, 0, 0, 0].round(4)).size == 1
    assert np.unique(np.asarray(kept)[:, 0, 0, 0].round(4)).size > 1


def test_wrong_settings_say_what_is_allowed():
    with pytest.raises(ConfigError, match="nearest: 'tiny'"):
        swin("tini", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="4 depths, 3 num_heads"):
        small(num_heads=(1, 2, 2))
    with pytest.raises(ConfigError, match="norms for the stages \\(4,\\)"):
        small(normed=(4,))
    with pytest.raises(ConfigError, match="width 4 is not divisible by num_heads 3"):
        small(num_heads=(3, 2, 2, 4))
