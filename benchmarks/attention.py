"""Attention, forward and backward: vadapt's forms beside plain XLA, cuDNN and PyTorch's SDPA.

    python -m benchmarks.attention --out benchmarks/results/attention.md

Shapes are those of recipes. What libtpu compiles for a TPU v5e is analysed (nothing is run): bytes
that a program moves through main memory, with the kernel and without it, against the least that
must be moved. With --rounds, rows are timed in turns on this machine, each in a process of its own.
"""

import argparse
import datetime
import functools
import importlib.util
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import side_by_side as bench

CHIP, TOPOLOGY = "v5e", "v5e:2x2"


class Shape(NamedTuple):
    """Attention of a recipe."""

    name: str
    queries: int
    keys: int
    heads: int
    width: int
    biased: bool = False

    def least_bytes(self, batch, size):
        """Forward q, k, v, o; backward these but o, its cotangent, and three gradients."""
        tokens = 4 * self.queries + 2 * 2 * self.keys + self.queries + 2 * self.keys
        bias = 4 * self.heads * self.queries * self.keys
        moved = size * batch * self.heads * self.width * tokens
        return moved + 3 * bias * self.biased

    def flops(self, batch):
        """Of two products forward, and four backward."""
        return 12 * batch * self.heads * self.queries * self.keys * self.width


SHAPES = (
    Shape("MAE encoder, ViT-B 224 px", 50, 50, 12, 64),
    Shape("MAE decoder, 224 px", 197, 197, 16, 32),
    Shape("ViT-B, 512 px", 1025, 1025, 12, 64),
    Shape("the same, relative positions", 1025, 1025, 12, 64, biased=True),
    Shape("DINOv2-L, 518 px", 1370, 1370, 16, 64),
    Shape("SAM-B, global", 4096, 4096, 12, 64),
    Shape("Mask2Former, 512 px", 100, 4096, 8, 32),
)


class Job(NamedTuple):
    """What the rows of a comparison do alike."""

    shape: Shape
    batch: int
    half: bool


def sizes_of(shape, batch):
    """[b, n, h d] of queries, keys, values and the cotangent, as projections leave them."""
    lengths = shape.queries, shape.keys, shape.keys, shape.queries
    return [(batch, n, shape.heads * shape.width) for n in lengths]


def arrays(job):
    """Numbers of those sizes, and the bias."""
    rng = np.random.default_rng(0)
    given = [rng.normal(size=size).astype(np.float32) for size in sizes_of(job.shape, job.batch)]
    shape = job.shape
    bias = rng.normal(size=(shape.heads, shape.queries, shape.keys)).astype(np.float32)
    return given, bias if shape.biased else None


def jax_function(shape, form):
    """Of queries, keys, values, the cotangent and the bias: the output and all gradients."""
    import jax

    from vadapt.kernels import attention as kernel

    def attend(q, k, v, bias):
        if form == "vadapt":
            return kernel.attention(q, k, v, bias=bias)
        if form == "plain":
            return kernel.plain(q, k, v, bias, None, scale=shape.width**-0.5)
        near = None if bias is None else bias[None].astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, bias=near, implementation=form)

    def run(q, k, v, way, bias):
        def out(q, k, v, bias):
            heads = (x.reshape(*x.shape[:2], shape.heads, -1) for x in (q, k, v))
            return attend(*heads, bias).reshape(way.shape)

        found, pull = jax.vjp(out, q, k, v, bias)
        return found, pull(way)

    return run


def build_jax(job, form):
    """A row of JAX."""
    import jax
    import jax.numpy as jnp

    if form == "cudnn" and jax.default_backend() != "gpu":
        raise bench.Missing("for GPUs")
    given, bias = arrays(job)
    dtype = jnp.bfloat16 if job.half else jnp.float32
    given = [jax.device_put(x.astype(dtype)) for x in given]
    step = jax.jit(jax_function(job.shape, form))

    return bench.Training(0, lambda: step(*given, bias), jax.block_until_ready, bench.jax_peak)


def build_torch(job):
    """A row of PyTorch."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise bench.Missing(f"not installed ({error.name})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if job.half else torch.float32
    given, bias = arrays(job)
    *inputs, way = (torch.from_numpy(x).to(device, dtype) for x in given)
    leaves = [x.requires_grad_() for x in inputs]
    if bias is not None:
        leaves.append(torch.from_numpy(bias).to(device, dtype).requires_grad_())

    def step():
        q, k, v = (x.unflatten(2, (job.shape.heads, -1)).transpose(1, 2) for x in leaves[:3])
        mask = leaves[3][None] if len(leaves) > 3 else None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.autograd.grad(out.transpose(1, 2).flatten(2), leaves, way)

    return bench.Training(0, step, bench.torch_wait, bench.torch_peak)


def timed(job, rounds):
    """Lines of the table of times for one shape."""
    titles = {"vadapt": "vadapt", "plain": "plain XLA", "xla": "jax.nn", "cudnn": "jax.nn, cuDNN"}
    rows = [
        bench.Row("attention", form, title, functools.partial(build_jax, form=form))
        for form, title in titles.items()
    ]
    rows.append(bench.Row("attention", "torch", "PyTorch SDPA", build_torch))
    for row in bench.measure(rows, job, rounds):
        cells = [job.shape.name, row["title"]]
        if row["rounds"]:
            times = sorted(job.batch / speed for speed in row["rounds"])
            rate = job.shape.flops(job.batch) / statistics.median(times)
            cells += [
                f"{statistics.median(times) * 1e3:.2f} ({times[0] * 1e3:.2f})",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{rate / 1e9:,.0f}",
            ]
        else:
            cells += [row.get("missing", "failed"), "", ""]
        yield cells


def traffic(shape, batch, form):
    """Bytes through main memory of a program for one TPU, with the layouts that suit it."""
    import jax
    from jax.experimental.layout import Format, Layout

    from vadapt.runtime import chips
    from vadapt.runtime.hlo import Module

    where = jax.sharding.SingleDeviceSharding(chips.devices(TOPOLOGY)[0])
    free = Format(Layout.AUTO, where)
    given = [jax.ShapeDtypeStruct(size, "bfloat16") for size in sizes_of(shape, batch)]
    grid = (shape.heads, shape.queries, shape.keys)
    bias = jax.ShapeDtypeStruct(grid, "float32") if shape.biased else None
    step = jax.jit(jax_function(shape, form), in_shardings=free, out_shardings=free)
    return Module(step.lower(*given, bias).compile().as_text()).memory_traffic()


def analysed(shape, batch):
    """A line of the table of bytes."""
    from vadapt.runtime import chips

    least, chip = shape.least_bytes(batch, 2), chips.CHIPS[CHIP]
    ours, plain = (traffic(shape, batch, form) for form in ("vadapt", "plain"))
    print(f"{shape.name}: compiled", file=sys.stderr, flush=True)
    # The kernel takes the logits again in its backward pass: one product more.
    seconds = [
        (shape.flops(batch) * 7 / 6 / chip.flops, ours / chip.bandwidth),
        (shape.flops(batch) / chip.flops, plain / chip.bandwidth),
    ]
    return [
        shape.name,
        f"{shape.queries} x {shape.keys}",
        f"{shape.heads} x {shape.width}",
        f"{least / 1e6:,.0f}",
        f"{ours / 1e6:,.0f} ({ours / least:.2f}x)",
        f"{plain / 1e6:,.0f} ({plain / least:.2f}x)",
        *(f"{max(pair) * 1e3:.2f}" for pair in seconds),
    ]


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="0 to analyse alone")
    parser.add_argument("--shapes", nargs="+", type=int, help="some alone, by their number from 0")
    parser.add_argument("--out", type=Path, help="a file for what is printed")
    options = parser.parse_args()
    import jax

    chosen = SHAPES if options.shapes is None else [SHAPES[i] for i in options.shapes]
    command = " ".join(["python -m benchmarks.attention", *sys.argv[1:]])
    parts = [f"# Attention, forward and backward\n\n    {command}"]
    parts.append(f"{bench.machine()}, {datetime.date.today()}; batch {options.batch}.")
    if importlib.util.find_spec("libtpu"):
        titles = ["shape", "q x k", "heads", "least MB", "kernel", "plain XLA"]
        titles += ["bound, ms: kernel", "plain XLA"]
        lines = [analysed(shape, options.batch) for shape in chosen]
        text = f"Compiled for {CHIP}, bfloat16: MB of HBM traffic\n\n"
        parts.append(text + bench.markdown(titles, lines))
        print(parts[-1], file=sys.stderr, flush=True)
    if options.rounds:
        half = jax.default_backend() != "cpu"
        titles = ["shape", "who", "ms (least)", "peak MB", "GFLOP/s"]
        jobs = [Job(shape, options.batch, half) for shape in chosen]
        lines = [line for job in jobs for line in timed(job, options.rounds)]
        kind = "bfloat16" if half else "float32"
        parts.append(f"Run, {kind}\n\n" + bench.markdown(titles, lines))
    text = "\n\n".join(parts) + "\n"
    print(text, flush=True)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
