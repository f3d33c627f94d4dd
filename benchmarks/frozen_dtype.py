"""Frozen weights in float32, bfloat16 and int8: bytes, and scores of PAD on scenes.

`python -m benchmarks.frozen_dtype` takes a few minutes on two cores. Bytes are of shapes alone;
scores are those of `configs/pad_msip.py:scenes`, cut to some steps, in float32 compute.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax
from flax import nnx

from vadapt import models
from vadapt.configs import pad_msip
from vadapt.partition import human_bytes, num_bytes, split
from vadapt.quantization import store
from vadapt.run import run

DTYPES = ("float32", "bfloat16", "int8")


def frozen_bytes(backbone: str, dtype: str) -> int:
    """Bytes of all of a backbone's weights."""
    model = nnx.eval_shape(lambda: models.create(backbone))
    return num_bytes(jax.eval_shape(functools.partial(store, dtype=dtype), split(model).frozen))


def scores(dtype: str, steps: int, scenes: int) -> dict[str, float]:
    """The probe's mIoU before and after training."""
    config = pad_msip.get_config("scenes")
    config.total_steps, config.batch_size, config.data.num_scenes = steps, 32, scenes
    config.eval.probe_scenes = min(config.eval.probe_scenes, scenes)
    config.parallel.frozen_dtype = dtype
    with tempfile.TemporaryDirectory() as workdir:
        return run(config, Path(workdir))


def table(steps: int, scenes: int) -> str:
    """A row for every type, as Markdown."""
    lines = [
        "| frozen in | ViT-B/16 | ViT-L/16 | probe mIoU, frozen | after training PAD |",
        "|---|---|---|---|---|",
    ]
    for dtype in DTYPES:
        sizes = [human_bytes(frozen_bytes(name, dtype)) for name in ("vit_base", "vit_large")]
        found = scores(dtype, steps, scenes)
        before, after = found["probe/frozen"], found["probe/adapted"]
        lines.append(f"| {dtype} | {' | '.join(sizes)} | {before:.5f} | {after:.5f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=1024)
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    rows = table(options.steps, options.scenes)
    text = f"""# Frozen weights in float32, bfloat16 and int8

`python -m benchmarks.frozen_dtype --steps={options.steps} --scenes={options.scenes}`,
{datetime.date.today()}; {options.steps} steps of 32 scenes, compute float32, one seed;
{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, jax
{jax.__version__}, flax {version("flax")}, qwix {version("qwix")}.

{rows}

Bytes are of all weights of the backbone, between steps. With float32 compute, as here, what they
are held in changes their values; with bfloat16 compute float32 and bfloat16 train to the same bit.
"""
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
