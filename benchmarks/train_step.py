"""Training steps a second against what one would pick instead: `python -m benchmarks.train_step`.

Pairs at the same shapes, precision, optimizer and threads, on synthetic images that lie on the
device as uint8 and are normalised within the step; weights are random:

    pad          vadapt's PAD, and Hugging Face's ViTMAE with PEFT's LoRA on queries and values, of
                 the rank that makes as many trainable numbers (its decoder trains, too; no dropout)
    full         all of the masked autoencoder, in both
    linear       a frozen DINOv2 under a linear head (batch norm, then 150 classes of each patch,
                 resized to pixels), and Hugging Face's Dinov2 under the same
    lora         the same with LoRA of rank 8 on queries and values, and PEFT's; of `linear` and
                 `lora` all is equal, the number of trainable weights too
    mask2former  Rein and Mask2Former, and Hugging Face's Mask2Former on a Dinov2 with PEFT's LoRA

Of `mask2former` images, masks, backbone, resized maps, widths, depths, queries, points and the
weights of the loss are equal. Not equal: Rein is an adapter that transformers lacks, so that LoRA
of about as many numbers stands in, and queries are learned rather than Rein's tokens; vadapt
matches on the device, transformers on the host by SciPy, where torch.compile breaks its graph;
transformers looks at as many points of each mask that is there, vadapt at those of each class.
The micro ViT is a Dinov2 of its sizes. GKGNet has no row: transformers has no ViG or GKGNet.

torch runs eager and under torch.compile, both with autocast where the precision is bfloat16. Every
row has a process of its own; the rows of a pair are timed in turns, forth and back, and a ratio is
the median over rounds. Building and compiling come before and are reported apart.

Memory is the device's peak while stepping (JAX counts from its start). On a CPU it is what the
process's resident peak while stepping exceeds its size before the model was built, code generators
included. Model FLOPs are those of matrix products: trained weights count three times (forward,
gradients of inputs and of weights), frozen ones twice, or once where no gradient passes; attention
three times, likewise; LoRA counts as the adapters do in `pad`, which differ from it by less than
1%; nobody counted Mask2Former's. MFU is their share of the device's dense bfloat16 peak.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import train_step_mae, train_step_segmentation
from benchmarks.side_by_side import SECONDS, judge, measure, table
from benchmarks.train_step_job import WHO, Job, Pair

PAIRS = {pair.name: pair for pair in (*train_step_mae.PAIRS, *train_step_segmentation.PAIRS)}
SIZES = ("micro", "small", "base")


def _device() -> tuple[str, str]:
    """Platform and kind, asked in a process that lets the device go again."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\n')"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    platform, kind = output.splitlines()[-2:]
    return ("gpu" if platform in ("cuda", "rocm") else platform), kind


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "flax", "optax", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def compare(pair: Pair, job: Job, options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The rows of one pair at one size."""
    chosen = [row for row in pair.rows if row.who in options.who]
    rows = measure(chosen, job, options.rounds, options.seconds)
    judge(rows, pair.flops(job), kind)
    return {"pair": pair.name, **job._asdict(), "precision": job.precision, "rows": rows}


def main() -> None:
    """Measures, prints, writes."""
    options = _options()
    # Rows share a device: none may take all of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platform, kind = _device()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.train_step " + " ".join(sys.argv[1:]),
        "date": str(datetime.date.today()), "device": kind, "platform": platform,
        "threads": threads, "versions": _versions(), "comparisons": [],
    }  # fmt: skip
    for size in options.size or (["micro", "small"] if platform == "cpu" else ["base"]):
        for name in options.pair:
            pair = PAIRS[name]
            batch = options.batch or pair.batches.get(platform, pair.batches["gpu"])[size]
            job = Job(size, batch, platform, threads or 1, options.depth, options.image)
            report["comparisons"].append(compare(pair, job, options, kind))
    text = "\n".join([f"# Training steps on {kind}\n", f"    {report['command']}\n", _line(report)])
    for found in report["comparisons"]:
        shape = f"{found['size']}, {found['precision']}, batch {found['batch']}"
        text += f"\n{found['pair']}: {shape}\n\n{table(found['rows'])}\n"
    print(text)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES)
    parser.add_argument("--pair", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--batch", type=int, help="by default what suits the device")
    parser.add_argument("--image", type=int, default=0, help="side in pixels, not the pair's")
    parser.add_argument("--depth", type=int, default=0, help="blocks, instead of the recipe's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a row in a round")
    parser.add_argument("--who", nargs="+", choices=WHO, default=WHO)
    parser.add_argument("--out", type=Path, help="a JSON file to write; the table goes beside it")
    return parser.parse_args()


def _line(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return f"{report['date']}; {report['threads']} threads; {versions}.\n"


if __name__ == "__main__":
    main()
