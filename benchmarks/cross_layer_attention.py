"""CFPT's attention in space, forward and backward: vadapt's forms beside literal ones and PyTorch.

    python -m benchmarks.cross_layer_attention --out benchmarks/results/cross_layer_attention.md

The paper's levels at 832x1344: 104x168, 52x84, 26x42 and 13x21 places, 64 channels in four heads.
What libtpu compiles for a TPU v5e is analysed (nothing is run): bytes that a program moves through
main memory, against the least that must be moved. With --rounds, rows are timed in turns on this
machine, each in a process of its own.
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
LEVELS, HEADS, HIDDEN = 4, 4, 64
FORMS = {"vadapt": "vadapt", "plain": "plain XLA", "literal": "unfold and fold in XLA"}
WORKS = ("forward", "backward")


class Job(NamedTuple):
    """What the rows of a comparison do alike."""

    grid: tuple[int, int]  # of the coarsest level
    batch: int
    work: str
    half: bool = False


def sizes_of(job):
    """[b, h, w] of all levels."""
    rows, columns = job.grid
    return [(job.batch, rows << i, columns << i) for i in reversed(range(LEVELS))]


def tokens():
    """Of a window."""
    return sum((2**i + (i > 0)) ** 2 for i in range(LEVELS))


def least_bytes(job):
    """Forward the maps and the outputs; backward the maps, their gradients and the cotangents."""
    places = sum(b * h * w for b, h, w in sizes_of(job))
    channels = (4 if job.work == "forward" else 7) * HIDDEN
    return places * channels * (2 if job.half else 4)


def flops(job):
    """Of two products forward; backward of these again, and of four."""
    windows = job.batch * job.grid[0] * job.grid[1]
    return (4 if job.work == "forward" else 12) * windows * tokens() ** 2 * HIDDEN


def arrays(job):
    """Maps, the bias and cotangents."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    maps = [normal(*size, 3 * HIDDEN) for size in sizes_of(job)]
    return (
        maps,
        normal(HEADS, tokens(), tokens()),
        [normal(*size, HIDDEN) for size in sizes_of(job)],
    )


def literal(maps, bias):
    """Windows are gathered, and what comes out is scattered, place by place."""
    import jax
    import jax.numpy as jnp

    rows, columns = maps[-1].shape[1:3]
    found, back, first = [], [], 0
    for i, x in zip(reversed(range(len(maps))), maps, strict=True):
        r, halo = 2**i, int(i > 0)
        side = r + halo
        row = (r * np.arange(rows)[:, None] + np.arange(side))[:, None, :, None]
        column = (r * np.arange(columns)[:, None] + np.arange(side))[None, :, None]
        padded = jnp.pad(x, ((0, 0), (halo, 0), (halo, 0), (0, 0)))
        found.append(padded[:, row, column].reshape(len(x), rows * columns, side**2, -1))
        back.append((row, column, halo, slice(first, first + side**2)))
        first += side**2
    x = jnp.concatenate(found, axis=2)
    x = jnp.moveaxis(x.reshape(*x.shape[:3], 3, HEADS, -1), 3, 0)
    q, k, v = jnp.swapaxes(x, 3, 4)  # [b, m, heads, n, d]

    def unit(x):
        squares = jnp.square(x.astype(jnp.float32)).sum(axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)

    logits = jnp.einsum("bmhqd,bmhkd->bmhqk", unit(q), unit(k)).astype(jnp.float32)
    shares = jax.nn.softmax(logits + bias[None, None], axis=-1).astype(v.dtype)
    out = jnp.swapaxes(jnp.einsum("bmhqk,bmhkd->bmhqd", shares, v), 2, 3)
    made = []
    for x, (row, column, halo, own) in zip(maps, back, strict=True):
        part = out[:, :, own].reshape(len(x), rows, columns, row.shape[2], column.shape[3], HIDDEN)
        y = jnp.zeros((len(x), x.shape[1] + halo, x.shape[2] + halo, HIDDEN), x.dtype)
        made.append(y.at[:, row, column].add(part)[:, halo:, halo:])
    return tuple(made)


def jax_function(form, work):
    """Of maps, the bias and cotangents: outputs, or all gradients."""
    import jax

    from vadapt.kernels import cross_layer_attention as kernel

    def attend(maps, bias):
        if form == "vadapt":
            return kernel.spatial_attention(maps, bias)
        if form == "plain":
            return kernel.spatial(maps, bias, kernel.spatial_windows(LEVELS))
        return literal(maps, bias)

    def forward(maps, bias, ways):
        return attend(tuple(maps), bias)

    def backward(maps, bias, ways):
        return jax.vjp(attend, tuple(maps), bias)[1](tuple(ways))

    return forward if work == "forward" else backward


def build_jax(job, form):
    """A row of JAX; backward includes what is taken again, or kept, of the forward pass."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.bfloat16 if job.half else jnp.float32
    maps, bias, ways = arrays(job)
    maps, ways = ([jax.device_put(x.astype(dtype)) for x in kind] for kind in (maps, ways))
    step = jax.jit(jax_function(form, job.work))
    return bench.Training(0, lambda: step(maps, bias, ways), jax.block_until_ready, bench.jax_peak)


def torch_attend(torch, maps, bias):
    """Maps are [b, c, h, w]; windows are unfolded and folded by PyTorch."""
    fn, found, sizes = torch.nn.functional, [], []
    for i, x in zip(reversed(range(len(maps))), maps, strict=True):
        r, halo = 2**i, int(i > 0)
        padded = fn.pad(x, (halo, 0, halo, 0))
        windows = fn.unfold(padded, r + halo, stride=r).transpose(1, 2)
        found.append(windows.unflatten(2, (x.shape[1], -1)).transpose(2, 3))
        sizes.append((r, halo, padded.shape[2:]))
    x = torch.cat(found, dim=2).unflatten(3, (3, HEADS, -1)).permute(3, 0, 1, 4, 2, 5)
    q, k = (fn.normalize(part, dim=-1) for part in x[:2])
    out = (q @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ x[2]
    parts = out.transpose(2, 3).flatten(3).split([(r + halo) ** 2 for r, halo, _ in sizes], dim=2)
    made = []
    for part, (r, halo, size) in zip(parts, sizes, strict=True):
        columns = part.transpose(2, 3).flatten(2).transpose(1, 2)
        made.append(fn.fold(columns, size, r + halo, stride=r)[:, :, halo:, halo:])
    return made


def build_torch(job):
    """A row of PyTorch."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise bench.Missing(f"not installed ({error.name})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    maps, bias, ways = arrays(job)

    def here(x):
        return torch.from_numpy(x).to(device, torch.bfloat16 if job.half else torch.float32)

    maps, ways = ([here(x).permute(0, 3, 1, 2).contiguous() for x in kind] for kind in (maps, ways))
    leaves = [x.requires_grad_(job.work == "backward") for x in (*maps, here(bias))]

    def step():
        out = torch_attend(torch, leaves[:-1], leaves[-1])
        return out if job.work == "forward" else torch.autograd.grad(out, leaves, ways)

    return bench.Training(0, step, bench.torch_wait, bench.torch_peak)


def timed(job, rounds):
    """Lines of the table of times."""
    rows = [
        bench.Row("attention", form, title, functools.partial(build_jax, form=form))
        for form, title in FORMS.items()
    ]
    rows.append(bench.Row("attention", "torch", "unfold and fold in PyTorch", build_torch))
    for row in bench.measure(rows, job, rounds):
        cells = [job.work, row["title"]]
        if row["rounds"]:
            times = sorted(job.batch / speed for speed in row["rounds"])
            rate = flops(job) / statistics.median(times)
            cells += [
                f"{statistics.median(times) * 1e3:.1f} ({times[0] * 1e3:.1f})",
                f"{row['peak_bytes'] / 1e6:,.0f}",
                f"{rate / 1e9:,.1f}",
            ]
        else:
            cells += [row.get("missing", "failed"), "", ""]
        yield cells


def traffic(job, form):
    """Bytes through main memory of a program for one TPU, with the layouts that suit it."""
    import jax
    from jax.experimental.layout import Format, Layout

    from vadapt.runtime import chips
    from vadapt.runtime.hlo import Module

    where = jax.sharding.SingleDeviceSharding(chips.devices(TOPOLOGY)[0])
    free = Format(Layout.AUTO, where)
    dtype = "bfloat16" if job.half else "float32"
    maps, ways = (
        [jax.ShapeDtypeStruct((*size, channels), dtype) for size in sizes_of(job)]
        for channels in (3 * HIDDEN, HIDDEN)
    )
    bias = jax.ShapeDtypeStruct((HEADS, tokens(), tokens()), "float32")
    step = jax.jit(jax_function(form, job.work), in_shardings=free, out_shardings=free)
    return Module(step.lower(maps, bias, ways).compile().as_text()).memory_traffic()


def analysed(job):
    """A line of the table of bytes."""
    from vadapt.runtime import chips

    least, chip = least_bytes(job), chips.CHIPS[CHIP]
    found = [traffic(job, form) for form in FORMS]
    print(f"{job}: compiled", file=sys.stderr, flush=True)
    return [
        job.work,
        "bfloat16" if job.half else "float32",
        f"{least / 2**20:.1f}",
        *(f"{moved / 2**20:,.1f} ({moved / least:.2f}x)" for moved in found),
        *(f"{moved / chip.bandwidth * 1e3:.3f}" for moved in found),
    ]


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=int, nargs=2, default=[13, 21], help="the coarsest level's")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--half", action="store_true", help="bfloat16, not float32")
    parser.add_argument("--rounds", type=int, default=3, help="0 to analyse alone")
    parser.add_argument("--out", type=Path, help="a file for what is printed")
    options = parser.parse_args()
    grid = tuple(options.grid)
    command = " ".join(["python -m benchmarks.cross_layer_attention", *sys.argv[1:]])
    parts = [f"# Cross-layer attention in space\n\n    {command}"]
    parts.append(f"{bench.machine()}, {datetime.date.today()}; batch {options.batch}.")
    if importlib.util.find_spec("libtpu"):
        lines = [analysed(Job(grid, options.batch, work, options.half)) for work in WORKS]
        titles = ["work", "type", "least MiB", *FORMS.values()]
        titles += [f"{title}: ms at the least" for title in FORMS.values()]
        text = f"Compiled for {CHIP}: MiB of HBM traffic, and how long these take\n\n"
        parts.append(text + bench.markdown(titles, lines))
        print(parts[-1], file=sys.stderr, flush=True)
    if options.rounds:
        jobs = [Job(grid, options.batch, work, options.half) for work in WORKS]
        lines = [line for job in jobs for line in timed(job, options.rounds)]
        titles = ["work", "who", "ms (least)", "peak MB", "GFLOP/s"]
        kind = "bfloat16" if options.half else "float32"
        parts.append(f"Run, {kind}\n\n" + bench.markdown(titles, lines))
    text = "\n\n".join(parts) + "\n"
    print(text, flush=True)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
