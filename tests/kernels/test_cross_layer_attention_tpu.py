"""Cross-layer attention compiled for TPUs that are not here: the paper's sizes, what it moves."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout

from vadapt import sharding
from vadapt.kernels import cross_layer_attention as kernel
from vadapt.runtime import chips
from vadapt.runtime.hlo import Module

# libtpu exists for Linux on x86 only.
pytest.importorskip("libtpu", reason="libtpu is not made for this platform")

# (batch, levels, rows and columns of the coarsest, heads, width of a head, dtype)
FEW = {
    "odd": (2, 3, (2, 3), 3, 5, jnp.bfloat16),
    "one_column": (1, 2, (3, 1), 2, 8, jnp.float32),
}
MANY = {
    "paper": (2, 4, (13, 21), 4, 16, jnp.float32),
    "paper_bfloat16": (2, 4, (13, 21), 4, 16, jnp.bfloat16),
    "three_levels": (1, 3, (20, 20), 8, 16, jnp.float32),
    "wide": (1, 4, (2, 48), 4, 16, jnp.float32),  # about as wide as fits
    "many_channels": (1, 4, (2, 16), 2, 72, jnp.float32),
}
PAPER = (1, *MANY["paper"][1:])  # one image of 832 x 1344


def given(shapes):
    """Maps, the bias and cotangents."""
    batch, levels, (rows, columns), heads, width, dtype = shapes
    sizes = [(batch, rows << i, columns << i) for i in reversed(range(levels))]
    n = sum(side**2 for side in kernel.spatial_windows(levels))
    maps, ways = (
        [jax.ShapeDtypeStruct((*size, channels), dtype) for size in sizes]
        for channels in (3 * heads * width, heads * width)
    )
    return maps, jax.ShapeDtypeStruct((heads, n, n), jnp.float32), ways


def train(maps, bias, ways):
    out, pull = jax.vjp(kernel.spatial_attention, maps, bias)
    return out, pull(tuple(ways))


def compiled(function, arguments, topology="v5e:2x2"):
    """For one chip, with the layouts that suit it, as inside a network."""
    where = jax.sharding.SingleDeviceSharding(chips.devices(topology)[0])
    free = Format(Layout.AUTO, where)
    step = jax.jit(function, in_shardings=free, out_shardings=free)
    return step.lower(*arguments).compile().as_text()


def kernels(text):
    return len(re.findall(r"custom_call_target=\"tpu_custom_call\"", text))


@pytest.mark.parametrize("name", FEW)
def test_small_sizes_compile(name):
    assert kernels(compiled(train, given(FEW[name]))) == 2


@pytest.mark.plans
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("name", [*FEW, *MANY])
def test_all_sizes_compile_for_every_chip(name, topology):
    assert kernels(compiled(train, given({**FEW, **MANY}[name]), topology)) == 2


def moved(function, *arguments):
    """Bytes in main memory, for each that the forward pass must read or write."""
    maps, _, ways = given(PAPER)
    least = sum(x.size * x.dtype.itemsize for x in (*maps, *ways))
    return Module(compiled(function, arguments)).memory_traffic() / least


def test_no_window_leaves_the_chip():
    maps, bias, ways = given(PAPER)
    # Channels, and no places, are rounded up to registers of 128.
    assert moved(kernel.spatial_attention, maps, bias) < 1.6
    # Backward, 7/4 of these bytes must be moved: maps twice, of which a cotangent is a third.
    assert moved(lambda *given: train(*given)[1], maps, bias, ways) < 1.6 * 7 / 4


@pytest.mark.plans
def test_windows_of_plain_jax_do():
    maps, bias, _ = given(PAPER)
    assert moved(lambda *given: kernel.spatial(*given, (9, 5, 3, 1)), tuple(maps), bias) > 10


def test_chips_share_a_batch():
    maps, bias, ways = given((8, 2, (2, 2), 2, 8, jnp.float32))
    mesh = sharding.make_mesh(devices=chips.devices("v5e:2x2"))
    where = sharding.batch_sharding(mesh)

    def split(arrays):
        return [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in arrays]

    with jax.set_mesh(mesh):
        text = jax.jit(train).lower(split(maps), bias, split(ways)).compile().as_text()
    assert kernels(text) == 2
    assert "f32[2,4,4,16]" in text  # two images on each of four chips
    kinds = {found.kind for found in Module(text).collectives(mesh.shape)}
    assert kinds == {"all-reduce"}  # of the bias's gradient


@pytest.mark.parametrize(("sides", "overlap"), [((7, 8), 1), ((8, 8), 3)])
def test_other_windows_are_left_to_xla(sides, overlap):
    maps = [jax.ShapeDtypeStruct((1, *size, 24), jnp.float32) for size in (sides, (4, 4))]
    n = sum(side**2 for side in kernel.spatial_windows(2, overlap))
    bias = jax.ShapeDtypeStruct((2, n, n), jnp.float32)

    def run(maps, bias):
        return kernel.spatial_attention(maps, bias, overlap=overlap)

    where = jax.sharding.SingleDeviceSharding(chips.devices("v5e:2x2")[0])
    text = jax.jit(run, in_shardings=where).lower(maps, bias).as_text()
    assert "tpu_custom_call" not in text
