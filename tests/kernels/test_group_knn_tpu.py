"""The kernel compiled for TPUs that are not here: at the paper's sizes, and what it moves."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout

from vadapt import sharding
from vadapt.kernels import group_knn as kernel
from vadapt.kernels import group_knn_tpu
from vadapt.kernels.position_bias import position_bias
from vadapt.runtime import chips
from vadapt.runtime.hlo import Module

# libtpu exists for Linux on x86 only.
pytest.importorskip("libtpu", reason="libtpu is not made for this platform")

# (nodes, sources, channels, dilation, grid, pooling) at 448 px.
PATCHES = [
    (12544, 784, 80, 1, 112, 4),
    (3136, 784, 160, 1, 56, 2),
    (784, 784, 400, 3, 28, 1),
    (196, 196, 640, 3, 14, 1),
]
LABELS = [(80, 12544, 80, 1, 0, 1), (80, 196, 640, 1, 0, 1)]
LARGEST = (80, 20736, 80, 1, 0, 1)  # 576 px
LEAST = 41.3e6  # bytes that a search of the first must move, for a batch of 8


def options_of(graph):
    _, _, c, dilation, grid, r = graph
    bias = position_bias(c, grid, (grid, grid), reduction=r) if grid else None
    return {"groups": 2, "k": 9, "dilation": dilation, "bias": bias}


def train(graph):
    """Messages and the gradients of their nodes."""

    def run(x, y, way):
        options = options_of(graph)
        out, pull = jax.vjp(lambda x, y: kernel.group_max_relative(x, y, **options)[0], x, y)
        return out, pull(way)

    return run


def nodes_of(graph, batch=8, dtype=jnp.float32):
    n, m, c = graph[:3]
    return [jax.ShapeDtypeStruct((batch, size, c), dtype) for size in (n, m, n)]


def compiled(function, nodes, topology="v5e:2x2"):
    """For one chip, with the layouts that suit it, as inside a network."""
    where = jax.sharding.SingleDeviceSharding(chips.devices(topology)[0])
    free = Format(Layout.AUTO, where)
    step = jax.jit(function, in_shardings=(free,) * len(nodes), out_shardings=free)
    return step.lower(*nodes).compile()


LARGE = [pytest.param(name, marks=pytest.mark.plans) for name in ("v5p:2x2x1", "v6e:2x2")]


@pytest.mark.parametrize("topology", ["v5e:2x2", *LARGE])
def test_the_papers_graphs_compile(topology):
    graphs = [*PATCHES, *LABELS, LARGEST]

    def run(nodes):
        return [train(graph)(*one) for graph, one in zip(graphs, nodes, strict=True)]

    text = compiled(run, [[nodes_of(graph) for graph in graphs]], topology).as_text()
    assert len(re.findall(r"= .*custom_call_target=\"tpu_custom_call\"", text)) == 2 * len(graphs)


@pytest.mark.parametrize(("width", "k", "dilation"), [(5, 1, 1), (8, 21, 3), (24, 9, 3)])
def test_odd_sizes_and_a_stored_bias_compile(width, k, dilation):
    graph = (131, 77, 2 * width, dilation, 0, 1)
    bias = jax.ShapeDtypeStruct((131, 77), jnp.float32)

    def run(x, y, bias):
        options = {"groups": 2, "k": k, "dilation": dilation, "bias": bias}
        return kernel.group_max_relative(x, y, **options), kernel.group_knn(x, y, **options)

    compiled(run, [*nodes_of(graph, 2, jnp.bfloat16)[:2], bias])


def test_distances_never_leave_the_chip():
    graph, options = PATCHES[0], options_of(PATCHES[0])
    x, y, _ = nodes_of(graph)
    static = kernel.Options(2, 9, 1, 784, 40, jnp.float32)
    programs = {
        "search": lambda x, y: kernel.group_knn(x, y, **options)[0],
        "plain": lambda x, y: kernel.nearest(x, y, options["bias"], static)[0],
        "messages": lambda x, y: kernel.group_max_relative(x, y, **options),
    }
    moved = {
        name: Module(compiled(program, [x, y]).as_text()).memory_traffic()
        for name, program in programs.items()
    }
    assert moved["search"] < 2 * LEAST < moved["plain"] / 8
    assert moved["messages"] < 2 * LEAST  # and these alone are 32 MB


def test_chips_share_a_batch():
    graph = PATCHES[3]
    mesh = sharding.make_mesh(devices=chips.devices("v5e:2x2"))
    where = sharding.batch_sharding(mesh)
    nodes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in nodes_of(graph)]
    with jax.set_mesh(mesh):
        text = jax.jit(train(graph)).lower(*nodes).compile().as_text()
    assert "f32[4,320,196]" in text  # two images of two groups on each of four chips
    assert not Module(text).collectives(mesh.shape)


def test_more_sources_than_a_chip_keeps_are_left_to_xla():
    assert group_knn_tpu.fits(20736, 40)
    assert not group_knn_tpu.fits(100_000, 40)
    where = jax.sharding.SingleDeviceSharding(chips.devices("v5e:2x2")[0])

    def lowered(graph):
        nodes = nodes_of(graph, 1)
        return jax.jit(train(graph), in_shardings=(where,) * 3).lower(*nodes).as_text()

    assert "tpu_custom_call" in lowered(LABELS[1])
    assert "tpu_custom_call" not in lowered((128, 100_000, 16, 1, 0, 1))
