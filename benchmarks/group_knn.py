"""GKGNet's graphs: vadapt's search for neighbours beside plain XLA and PyTorch.

    python -m benchmarks.group_knn --size 448 576 --out benchmarks/results/group_knn.md

Every graph of the network (size s, two groups, nine neighbours, float32) is searched ("search"),
and messages are passed along it, forward and backward ("messages"). Rows are timed in turns, each
in a process of its own. What libtpu compiles for a TPU v5e is analysed too: bytes that a program
moves through main memory, with the kernel and without it, against the least that must be moved.
"""

import argparse
import functools
import importlib.util
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import side_by_side as bench

GROUPS, NEIGHBOURS, LABELS = 2, 9, 80
WIDTHS, POOLED, DILATION = (80, 160, 400, 640), (4, 2, 1, 1), (1, 1, 3, 3)
CHIP, TOPOLOGY = "v5e", "v5e:2x2"


class Graph(NamedTuple):
    """One graph of the network."""

    name: str
    targets: int
    sources: int
    channels: int
    dilation: int
    grid: int  # a side of the nodes', for the position bias; 0 for graphs of labels
    pooled: int

    def least_bytes(self, batch):
        """Nodes read once, ids written; a bias needs nothing."""
        ids = GROUPS * self.targets * NEIGHBOURS
        return 4 * batch * ((self.targets + self.sources) * self.channels + ids)

    def flops(self, batch):
        """Of the distances."""
        return 2 * batch * self.targets * self.sources * self.channels


class Job(NamedTuple):
    """What the rows of a comparison do alike."""

    graph: Graph
    batch: int


def graphs(size):
    """Of all stages for images of that size."""
    for stage, (c, r, d) in enumerate(zip(WIDTHS, POOLED, DILATION, strict=True)):
        grid = size // 4 // 2**stage
        yield Graph(f"patches {stage + 1}", grid**2, (grid // r) ** 2, c, d, grid, r)
    for stage, c in enumerate(WIDTHS):
        yield Graph(f"labels {stage + 1}", LABELS, (size // 4 // 2**stage) ** 2, c, 1, 0, 1)


def arrays(job):
    """Targets, sources and the gradient of the messages."""
    rng, graph = np.random.default_rng(0), job.graph
    sizes = graph.targets, graph.sources, graph.targets
    return [rng.normal(size=(job.batch, n, graph.channels)).astype(np.float32) for n in sizes]


def jax_function(graph, work, form):
    """Of targets, sources and gradients."""
    import jax

    from vadapt.kernels import group_knn as kernel
    from vadapt.kernels.position_bias import position_bias

    def bias():
        side = graph.grid
        return position_bias(graph.channels, side, (side, side), reduction=graph.pooled)

    def run(x, y, way):
        near = bias() if graph.grid else None
        options = {"groups": GROUPS, "k": NEIGHBOURS, "dilation": graph.dilation, "bias": near}
        static = kernel.Options(
            GROUPS, NEIGHBOURS, graph.dilation, y.shape[1], x.shape[2] // GROUPS, y.dtype
        )
        if work == "search":
            found = (
                kernel.group_knn(x, y, **options)
                if form == "kernel"
                else kernel.nearest(x, y, near, static)
            )
            return found[0]
        if form == "kernel":
            messages, pull = jax.vjp(
                lambda x, y: kernel.group_max_relative(x, y, **options)[0], x, y
            )
            return messages, pull(way)
        messages, ids, winners = kernel.largest(x, y, near, static)
        return messages, (-way, kernel.spread(way, ids, winners, static))

    return run


def build_jax(job, work, form):
    """A row of JAX."""
    import jax

    x, y, way = (jax.device_put(array) for array in arrays(job))
    step = jax.jit(jax_function(job.graph, work, form))

    return bench.Training(0, lambda: step(x, y, way), jax.block_until_ready, bench.jax_peak)


def build_torch(job, work, threads=None):
    """A row of PyTorch: the matrix of distances, and what is nearest in it."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise bench.Missing(f"not installed ({error.name})") from error
    if threads:  # where others are at work, several wait for each other
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    graph = job.graph
    x, y, way = (torch.from_numpy(array).to(device) for array in arrays(job))
    near = torch.zeros((graph.targets, graph.sources), device=device) if graph.grid else None

    def search(x, y):
        x, y = (torch.nn.functional.normalize(v, dim=-1) for v in (x, y))
        far = x.square().sum(-1, keepdim=True) - 2 * x @ y.mT + y.square().sum(-1)[..., None, :]
        far = far if near is None else far + near
        ids = torch.topk(-far, NEIGHBOURS * graph.dilation).indices
        return ids[..., :: graph.dilation]

    def split(nodes):
        return nodes.unflatten(-1, (GROUPS, -1)).transpose(1, 2)  # [b, g, n, w]

    def step():
        if work == "search":
            with torch.no_grad():
                return search(split(x), split(y))
        leaves = [v.detach().requires_grad_() for v in (x, y)]
        one, other = map(split, leaves)
        with torch.no_grad():
            ids = search(one, other)
        places = ids.flatten(2)[..., None].expand(-1, -1, -1, other.shape[-1])
        chosen = other.gather(2, places).unflatten(2, ids.shape[2:])
        messages = (chosen - one[:, :, :, None]).max(3).values
        return torch.autograd.grad(messages, leaves, split(way))

    return bench.Training(0, step, bench.torch_wait, bench.torch_peak)


def rows(work, backend):
    """Who is compared; off TPUs, the kernel is the plain form."""
    for form in ("kernel", "plain") if backend == "tpu" else ("plain",):
        title = "plain XLA" if form == "plain" else form
        build = functools.partial(build_jax, work=work, form=form)
        yield bench.Row(work, f"vadapt {form}", title, build)
    torch = functools.partial(build_torch, work=work)
    yield bench.Row(work, "torch", "PyTorch", torch)
    if backend == "cpu":
        yield bench.Row(work, "torch 1", "PyTorch, 1 thread", functools.partial(torch, threads=1))


def timed(job, rounds, backend):
    """Lines of the table of times for one graph."""
    for work in ("search", "messages"):
        for row in bench.measure(list(rows(work, backend)), job, rounds):
            cells = [job.graph.name, work, row["title"]]
            if row["rounds"]:
                times = sorted(job.batch / speed for speed in row["rounds"])
                flops = job.graph.flops(job.batch) / statistics.median(times)
                cells += [
                    f"{statistics.median(times) * 1e3:.1f} ({times[0] * 1e3:.1f})",
                    f"{row['peak_bytes'] / 1e6:,.0f}",
                    f"{flops / 1e9:.0f}",
                ]
            else:
                cells += [row.get("missing", "failed"), "", ""]
            yield cells


def traffic(graph, batch, work, form):
    """Bytes through main memory of a program for one TPU, with the layouts that suit it."""
    import jax
    from jax.experimental.layout import Format, Layout

    from vadapt.runtime import chips
    from vadapt.runtime.hlo import Module

    where = jax.sharding.SingleDeviceSharding(chips.devices(TOPOLOGY)[0])
    free = Format(Layout.AUTO, where)
    sizes = graph.targets, graph.sources, graph.targets
    nodes = [jax.ShapeDtypeStruct((batch, n, graph.channels), np.float32) for n in sizes]
    step = jax.jit(jax_function(graph, work, form), in_shardings=(free,) * 3, out_shardings=free)
    return Module(step.lower(*nodes).compile().as_text()).memory_traffic()


def analysed(graph, batch):
    """A line of the table of bytes."""
    from vadapt.runtime import chips

    least, chip = graph.least_bytes(batch), chips.CHIPS[CHIP]
    pairs = ("search", "kernel"), ("search", "plain"), ("messages", "kernel")
    found = [traffic(graph, batch, *pair) for pair in pairs]
    print(f"{graph.name}: compiled", file=sys.stderr, flush=True)
    # A product of float32 numbers is six of bfloat16 ones.
    bound = max(6 * graph.flops(batch) / chip.flops, least / chip.bandwidth)
    return [
        graph.name,
        f"{graph.targets} x {graph.sources} x {graph.channels}",
        f"{graph.flops(batch) / 1e9:.2f}",
        f"{least / 1e6:.1f}",
        f"{found[0] / 1e6:.1f} ({found[0] / least:.2f}x)",
        f"{found[1] / 1e6:,.0f}",
        f"{found[2] / 1e6:.1f}",
        f"{bound * 1e3:.2f}",
    ]


def main():
    """Prints both tables for each size of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[448])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="0 to analyse alone")
    parser.add_argument("--graphs", nargs="+", help="some alone, such as 'patches 1'")
    parser.add_argument("--out", type=Path, help="a file for what is printed")
    options = parser.parse_args()
    import jax

    parts = [f"{bench.machine()}; batch {options.batch}."]
    for size in options.size:
        chosen = [g for g in graphs(size) if not options.graphs or g.name in options.graphs]
        if importlib.util.find_spec("libtpu"):
            titles = ["graph", "N x M x C", "GFLOP", "least MB", "search", "search, plain XLA"]
            titles += ["messages", f"bound, ms on {CHIP}"]
            lines = [analysed(graph, options.batch) for graph in chosen]
            parts.append(
                f"{size} px, compiled for {CHIP}: MB of HBM traffic\n\n"
                + bench.markdown(titles, lines)
            )
            print(parts[-1], file=sys.stderr, flush=True)
        if not options.rounds:
            continue
        titles = ["graph", "work", "who", "ms (least)", "peak MB", "GFLOP/s"]
        lines = [
            line
            for graph in chosen
            for line in timed(Job(graph, options.batch), options.rounds, jax.default_backend())
        ]
        parts.append(f"{size} px, run\n\n" + bench.markdown(titles, lines))
    text = "\n\n".join(parts) + "\n"
    print(text, flush=True)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
