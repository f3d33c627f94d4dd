"""Attention between levels against plain loops, window after window, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.errors import ShapeError
from vadapt.kernels import cross_layer_attention as kernel

# Sides of the finest level; others have half of it, rounded up.
EXACT, ROUNDED = (8, 12), (5, 11)


def chain(size, levels):
    found = [size]
    for _ in range(levels - 1):
        found.append(tuple(-(-side // 2) for side in found[-1]))
    return found


def case(rng, size, levels, heads, windows, dtype=jnp.float32):
    maps = [rng.normal(size=(2, h, w, 3 * 2 * heads)) for h, w in chain(size, levels)]
    n = sum(windows)
    bias = jnp.asarray(rng.normal(size=(heads, n, n)), jnp.float32)
    return tuple(jnp.asarray(x, dtype) for x in maps), bias


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attended(tokens, bias):
    """Of one group: queries, keys, values [n, d] and a bias [n, n]."""
    q, k, v = tokens
    norms = [np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (q, k)]
    return softmax((q / norms[0]) @ (k / norms[1]).T + bias) @ v


def spatial_by_loops(maps, bias, overlap):
    """Every window is read place by place, and added to where it came from."""
    maps, heads = [np.asarray(x, np.float64) for x in maps], len(bias)
    bias, hidden = np.asarray(bias, np.float64), maps[0].shape[3] // 3
    rows, columns = maps[-1].shape[1:3]
    out = [np.zeros((*x.shape[:3], hidden)) for x in maps]
    for b, i, j in np.ndindex(len(maps[0]), rows, columns):
        places = []
        for level, x in enumerate(maps):
            r = 2 ** (len(maps) - 1 - level)
            w = r + overlap if r > 1 else overlap
            p = [
                int(np.ceil((r * (n - 1) - s + w) / 2))
                for n, s in zip((rows, columns), x.shape[1:3], strict=True)
            ]
            places += [
                (level, i * r - p[0] + y, j * r - p[1] + z) for y in range(w) for z in range(w)
            ]

        def inside(place):
            level, y, z = place
            return 0 <= y < maps[level].shape[1] and 0 <= z < maps[level].shape[2]

        zero = np.zeros(3 * hidden)
        tokens = np.stack([maps[l][b, y, z] if inside((l, y, z)) else zero for l, y, z in places])
        tokens = tokens.reshape(len(places), 3, heads, -1)
        for h in range(heads):
            found = attended(tokens[:, :, h].swapaxes(0, 1), bias[h])
            d = found.shape[1]
            for place, value in zip(places, found, strict=True):
                if inside(place):
                    out[place[0]][b, place[1], place[2], h * d : (h + 1) * d] += value
    return out


def channel_by_loops(maps, bias, overlap):
    """Every window of planes is read plane by plane, and added to where it came from."""
    maps, heads = [np.asarray(x, np.float64) for x in maps], len(bias)
    bias, hidden = np.asarray(bias, np.float64), maps[0].shape[3] // 3
    rows, columns = maps[-1].shape[1:3]
    out = [np.zeros((len(x), 2**k * rows, 2**k * columns, hidden)) for x, k in levels_of(maps)]
    full = [np.zeros((*y.shape[:3], 3 * hidden)) for y in out]
    for x, y in zip(maps, full, strict=True):
        y[:, : x.shape[1], : x.shape[2]] = x

    def windows(j):
        for level, (_, k) in enumerate(levels_of(maps)):
            r = 2**k
            n = r * r + overlap if r > 1 else overlap
            p = int(np.ceil((n - r * r) / 2))
            for plane in range(j * r * r - p, j * r * r - p + n):
                yield level, plane // (r * r), plane % (r * r) // r, plane % r, r

    def read(b, j):
        zero = np.zeros(rows * columns)
        return np.stack(
            [
                full[l][b, y::r, x::r, c].ravel() if 0 <= c < 3 * hidden else zero
                for l, c, y, x, r in windows(j)
            ]
        )

    for b, c in np.ndindex(len(maps[0]), hidden):
        tokens = [read(b, c + part * hidden) for part in range(3)]
        found = attended(tokens, bias[c // (hidden // heads)])
        for (l, to, y, x, r), value in zip(windows(c), found, strict=True):
            if 0 <= to < hidden:
                out[l][b, y::r, x::r, to] += value.reshape(rows, columns)
    return [y[:, : x.shape[1], : x.shape[2]] for x, y in zip(maps, out, strict=True)]


def levels_of(maps):
    return [(x, len(maps) - 1 - i) for i, x in enumerate(maps)]


SPATIAL = (kernel.spatial_attention, spatial_by_loops)
CHANNEL = (kernel.channel_attention, channel_by_loops)


def windows_of(function, levels, overlap):
    if function is kernel.spatial_attention:
        return [w * w for w in kernel.spatial_windows(levels, overlap)]
    return kernel.channel_windows(levels, overlap)


@pytest.mark.parametrize("forms", [SPATIAL, CHANNEL], ids=["spatial", "channel"])
@pytest.mark.parametrize(
    ("size", "levels", "overlap"),
    [(EXACT, 3, 1), (ROUNDED, 3, 1), ((4, 3), 2, 3), (ROUNDED, 3, 5)],
)
def test_attention_is_that_of_loops(rng, forms, size, levels, overlap):
    function, loops = forms
    maps, bias = case(rng, size, levels, 2, windows_of(function, levels, overlap))
    found = jax.jit(lambda *given: function(*given, overlap=overlap))(maps, bias)
    for mine, expected, x in zip(found, loops(maps, bias, overlap), maps, strict=True):
        assert mine.shape == (*x.shape[:3], x.shape[3] // 3)
        np.testing.assert_allclose(mine, expected, atol=2e-6)


@pytest.mark.parametrize("function", [kernel.spatial_attention, kernel.channel_attention])
def test_zeros_have_finite_gradients_and_types_stay(rng, function):
    maps, bias = case(rng, ROUNDED, 3, 2, windows_of(function, 3, 1), jnp.bfloat16)
    maps = (maps[0].at[:, :4].set(0), *maps[1:])

    @jax.jit
    def run(maps, bias):
        out, pull = jax.vjp(function, maps, bias)
        return out, pull(out)

    out, (of_maps, of_bias) = run(maps, bias)
    assert {x.dtype for x in (*out, *of_maps)} == {jnp.dtype(jnp.bfloat16)}
    assert of_bias.dtype == jnp.float32
    assert all(bool(jnp.isfinite(x).all()) for x in (*of_maps, of_bias))
    # A bias of a query, whatever the key, is nothing to softmax.
    np.testing.assert_allclose(of_bias.sum(-1), 0, atol=2e-2)


def test_half_precision_is_near_since_logits_and_softmax_are_single(rng):
    maps, bias = case(rng, EXACT, 3, 2, windows_of(kernel.spatial_attention, 3, 1), jnp.bfloat16)
    run = jax.jit(kernel.spatial_attention)
    single = run([x.astype(jnp.float32) for x in maps], bias)
    for mine, expected in zip(run(list(maps), bias), single, strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), expected, atol=2e-2)


def test_the_backward_pass_keeps_no_logits(rng):
    maps, bias = case(rng, EXACT, 3, 2, windows_of(kernel.spatial_attention, 3, 1))

    def kept(function):
        return jax.eval_shape(lambda *given: jax.vjp(function, *given)[1], maps, bias)

    sizes = sorted(x.shape for x in jax.tree.leaves(kept(kernel.spatial_attention)))
    assert sizes == sorted([*(x.shape for x in maps), bias.shape])


@pytest.mark.parametrize("function", [kernel.spatial_attention, kernel.channel_attention])
def test_sizes_that_do_not_go_together_are_refused(rng, function):
    maps, bias = case(rng, EXACT, 3, 2, windows_of(function, 3, 1))
    with pytest.raises(ShapeError, match="8x12, 4x6, 8x12 places: each must have half"):
        function([*maps[:2], maps[0]], bias)
    with pytest.raises(ShapeError, match="the bias is for"):
        function(maps[1:], bias)
    with pytest.raises(ShapeError, match="11 channels are no queries"):
        function([x[..., :11] for x in maps], bias)
