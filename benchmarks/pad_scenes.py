"""PAD against the frozen backbone and full training, on scenes: `python -m benchmarks.pad_scenes`.

Runs `configs/pad_msip.py:scenes` with `--config.baselines` for each seed (a seed draws the
adapters, the masks and the batches; the backbone and the probe's scenes stay), and prints and
writes the table of linear-probe scores on infrared scenes. About six minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from vadapt.configs import pad_msip
from vadapt.run import run

WHO = ("frozen", "adapted", "full")
TITLES = {"frozen": "frozen", "adapted": "PAD", "full": "full training"}


def measure(seed: int, steps: int | None) -> dict[str, float]:
    """The numbers of one seed."""
    config = pad_msip.get_config("scenes")
    config.seed = seed
    config.baselines = True
    if steps:
        config.total_steps = steps
    with tempfile.TemporaryDirectory() as workdir:
        result = run(config, Path(workdir))
    if not result:
        raise SystemExit("stopped by a signal")
    return result


def table(results: dict[int, dict[str, float]]) -> str:
    """The scores of every seed and their mean, as Markdown."""
    lines = ["| seed | " + " | ".join(TITLES[who] for who in WHO) + " |", "|---|---|---|---|"]
    scores = {seed: [result[f"probe/{who}"] for who in WHO] for seed, result in results.items()}
    for seed, row in scores.items():
        lines.append(f"| {seed} | " + " | ".join(f"{score:.4f}" for score in row) + " |")
    rows = np.array(list(scores.values()))
    cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(rows.mean(0), rows.std(0), strict=True)]
    lines.append("| **mean ± std** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the config's")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    results = {seed: measure(seed, options.steps) for seed in options.seeds}
    last = results[options.seeds[-1]]
    device = jax.devices()[0]
    text = "\n".join(
        [
            "# PAD on infrared scenes: linear-probe mIoU of patch features (10 classes)",
            "",
            "    python -m benchmarks.pad_scenes " + " ".join(_arguments(options)),
            "",
            f"{last['steps']} steps of 128 images of 64 px; PAD trains "
            f"{last['trainable_parameters']:,} parameters (decoder included). "
            f"{last['images_per_second']:.0f} images/s for PAD. {device.device_kind} "
            f"({platform.machine()}), Python {platform.python_version()}, jax {jax.__version__}, "
            f"flax {version('flax')}, {datetime.date.today()}.",
            "",
            table(results),
            "",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def _arguments(options: argparse.Namespace) -> list[str]:
    words = ["--seeds", *map(str, options.seeds)]
    words += ["--steps", str(options.steps)] if options.steps else []
    return words + (["--out", options.out.as_posix()] if options.out else [])


if __name__ == "__main__":
    main()
