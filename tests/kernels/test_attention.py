"""Attention: every form against plain products in float32, and which form is chosen where."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from vadapt import sharding
from vadapt.errors import ShapeError
from vadapt.kernels import attention as kernel
from vadapt.kernels import attention_tpu

# A failing example is not made smaller: each is a program to compile.
EXAMPLES = settings(
    max_examples=6, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate]
)
LENGTHS = st.integers(1, 300)
WIDTHS = st.sampled_from([8, 24, 32, 64, 80, 92, 128])


def drawn(rng, batch, q, k, heads, width, value_width=None, dtype=jnp.float32):
    """Queries, keys, values and a cotangent."""
    widths = (width, width, value_width or width, value_width or width)
    shapes = [(batch, n, heads, w) for n, w in zip((q, k, k, q), widths, strict=True)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def mask_of(rng, kind, batch, q, k):
    if not kind:
        return None
    return jnp.asarray(rng.random((batch, 1 if kind == "keys" else q, k)) > 0.4)


def out_and_gradients(form, arrays, bias):
    *inputs, way = arrays

    @jax.jit
    def run(inputs, bias):
        out, pull = jax.vjp(lambda *x: form(*x), *inputs, bias)
        return out, pull(way.astype(out.dtype))

    return [np.asarray(x, np.float32) for x in jax.tree.leaves(run(inputs, bias))]


def chip(mask, scale, interpret=True):
    return lambda q, k, v, bias: attention_tpu.attend(q, k, v, bias, mask, scale, interpret)


def plain(mask, scale):
    return lambda q, k, v, bias: kernel.plain(q, k, v, bias, mask, scale=scale)


@EXAMPLES
@given(
    q=LENGTHS,
    k=LENGTHS,
    batch=st.integers(1, 4),
    heads=st.integers(1, 4),
    width=WIDTHS,
    biased=st.booleans(),
    masked=st.sampled_from(["", "keys", "each"]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_the_chips_form_is_plain_attention(q, k, batch, heads, width, biased, masked, dtype, seed):
    rng = np.random.default_rng(seed)
    arrays = drawn(rng, batch, q, k, heads, width, dtype=dtype)
    mask = mask_of(rng, masked, batch, q, k)
    bias = jnp.asarray(rng.normal(size=(heads, q, k)), jnp.float32) if biased else None
    whole = [x.astype(jnp.float32) for x in arrays]
    wanted = out_and_gradients(plain(mask, width**-0.5), whole, bias)
    found = out_and_gradients(chip(mask, width**-0.5), arrays, bias)
    for one, other in zip(found, wanted, strict=True):
        far = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(one, other, atol=far * max(np.abs(other).max(), 1.0))


@pytest.mark.parametrize(("biased", "masked"), [(False, "each"), (True, "")])
def test_tiles_add_up_and_do_not_race(rng, monkeypatch, capfd, biased, masked):
    monkeypatch.setattr(attention_tpu, "LOGITS", 2**15)  # three tiles, the last of them ragged
    arrays = drawn(rng, 2, 165, 130, 2, 32, 16)
    mask = mask_of(rng, masked, 2, 165, 130)
    bias = jnp.asarray(rng.normal(size=(2, 165, 130)), jnp.float32) if biased else None
    sizes = attention_tpu._sizes(*arrays[:3], bias, mask, 0.2, True)
    assert (sizes.tiles, sizes.tile) == (3, 64)
    watched = pltpu.InterpretParams(detect_races=True)
    found = out_and_gradients(chip(mask, 0.2, watched), arrays, bias)
    assert "RACE DETECTED" not in "".join(capfd.readouterr())
    for one, other in zip(found, out_and_gradients(plain(mask, 0.2), arrays, bias), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_short_sequences_share_an_instance(rng):
    arrays = drawn(rng, 12, 50, 50, 4, 64)
    sizes = attention_tpu._sizes(*arrays[:3], None, None, 1.0, True)
    assert (sizes.images, sizes.group, sizes.grid) == (6, 2, (2, 2, 1))


def test_an_instance_takes_no_more_than_the_chip_has():
    def shapes(batch, q, k, dtype):
        arrays = (jnp.zeros((batch, n, 8, 32), dtype) for n in (q, k, k))
        return (*arrays, None, jnp.zeros((batch, q, k), bool))

    for batch, k, images, tile in ((4, 8192, 2, 128), (1, 14336, 1, 32)):
        arrays = shapes(batch, 100, k, jnp.bfloat16)
        sizes = attention_tpu._sizes(*arrays, 1.0, True)
        assert (sizes.images, sizes.tile) == (images, tile)
        assert attention_tpu.fits(*arrays)
    # Alone, such a call compiles; in the step of Rein at 1024 px it does not.
    assert not attention_tpu.fits(*shapes(1, 100, 16384, jnp.bfloat16))
    assert not attention_tpu.fits(*shapes(1, 0, 16, jnp.float32))


@pytest.mark.parametrize("form", [plain, chip])
def test_a_query_that_sees_nothing_takes_the_mean(rng, form):
    q, k, v, _ = drawn(rng, 1, 3, 7, 1, 8)
    mask = jnp.zeros((1, 3, 7), bool).at[0, 0].set(True)
    found = form(mask, 1.0)(q, k, v, None)
    np.testing.assert_allclose(
        found[0, 1:, 0], jnp.tile(v[0, :, 0].mean(axis=0), (2, 1)), atol=1e-6
    )


INDEX = np.abs(np.arange(12)[:, None] - np.arange(12)) % 5


def with_tables(way):
    @jax.jit
    def run(inputs, tables):
        def out(*inputs_and_tables):
            *inputs, tables = inputs_and_tables
            return kernel.attention(*inputs, tables=tables, index=INDEX)

        found, pull = jax.vjp(out, *inputs, tables)
        return found, pull(way)

    return run


def test_relative_positions_are_tables_read_by_an_index(rng):
    arrays = drawn(rng, 2, 12, 12, 3, 8)
    tables = [jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for _ in range(2)]
    found, grads = with_tables(arrays[3])(arrays[:3], tables)
    bias = jnp.moveaxis(sum(tables)[INDEX], 2, 0)
    wanted = out_and_gradients(plain(None, 8**-0.5), arrays, bias)
    np.testing.assert_allclose(found, wanted[0], atol=1e-6)
    folded = np.zeros((5, 3), np.float32)
    np.add.at(folded, INDEX, np.moveaxis(wanted[4], 0, 2))
    for table in grads[3]:
        np.testing.assert_allclose(table, folded, atol=1e-5)
    with pytest.raises(ShapeError, match="both tables and the index"):
        kernel.attention(*arrays[:3], tables=tables)


def test_devices_add_up_gradients_of_tables_and_not_of_logits(rng):
    arrays = drawn(rng, 8, 12, 12, 3, 8)
    tables = [jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)]
    wanted = with_tables(arrays[3])(arrays[:3], tables)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in arrays]
        run = with_tables(placed[3])
        found = run(placed[:3], tables)
        text = run.lower(placed[:3], tables).compile().as_text()
    for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    sums = [line for line in text.splitlines() if " all-reduce(" in line]
    assert sums
    assert all("[5,3]" in line or "[3,5]" in line or "[15]" in line for line in sums)
    assert "all-gather" not in text


@pytest.mark.parametrize(
    ("dtype", "width", "value_width", "lengths", "extra", "form"),
    [
        (jnp.bfloat16, 64, 64, (197, 197), "", "cudnn"),
        (jnp.float16, 128, 128, (1370, 1370), "", "cudnn"),
        (jnp.float32, 64, 64, (197, 197), "", "plain"),
        (jnp.bfloat16, 20, 20, (16, 16), "", "plain"),
        (jnp.bfloat16, 192, 64, (4096, 4096), "", "plain"),
        (jnp.bfloat16, 64, 64, (197, 197), "bias", "plain"),  # odd lengths have no bias there
        (jnp.bfloat16, 64, 64, (196, 196), "bias", "cudnn"),
        (jnp.bfloat16, 32, 32, (100, 1024), "mask", "cudnn"),
    ],
)
def test_a_gpu_takes_what_cudnn_has_a_form_for(
    monkeypatch, dtype, width, value_width, lengths, extra, form
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows, columns = lengths
    shapes = [(2, rows, 4, width), (2, columns, 4, width), (2, columns, 4, value_width)]
    q, k, v = (jnp.zeros(shape, dtype) for shape in shapes)
    near = jnp.zeros((4, rows, columns)) if extra == "bias" else None
    mask = jnp.ones((2, 1, columns), bool) if extra == "mask" else None
    assert kernel.elsewhere(q, k, v, near, mask) is getattr(kernel, form)
    monkeypatch.undo()
    assert kernel.elsewhere(q, k, v, near, mask) is kernel.plain  # of this machine


def test_plain_products_do_not_transpose_the_weights(rng):
    # XLA would else take the second product as [b, h, e, q], which doubles the time on CPUs.
    batch, q, k, heads, width = 2, 6, 7, 3, 5
    *inputs, _ = drawn(rng, batch, q, k, heads, width)

    def flat(queries, keys, values):  # as a layer before and one behind leave them
        return kernel.attention(queries, keys, values).reshape(batch, q, heads * width)

    text = jax.jit(flat).lower(*inputs).compile().as_text()
    products = re.findall(r"= f32\[([0-9,]+)\]\S* dot\(", text)
    assert sorted(products) == ["2,3,6,5", "2,3,6,7"]


def test_a_gpu_without_cudnn_takes_plain_products(rng):
    q, k, v, _ = drawn(rng, 1, 4, 4, 2, 8, dtype=jnp.bfloat16)
    found = kernel.cudnn(q, k, v, None, None, scale=1.0)
    np.testing.assert_array_equal(found, kernel.plain(q, k, v, None, None, scale=1.0))
