"""A linear head from images and from stored features: `python -m benchmarks.feature_cache`.

`configs/linear_dinov2.py:scenes` without augmentation, on its micro backbone and on a DINOv2-S with
random weights (which take as long as any). Steps are timed in the training loop, compiling, saving
and drawing left out, from images and from features in turn; scenes are drawn before, so that
images cost no reading. To fill includes loading, hashing and compiling. About four minutes on two
cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from vadapt.configs import linear_dinov2
from vadapt.partition import human_bytes
from vadapt.tasks import frozen_features
from vadapt.tasks.segmentation import SegmentationTask
from vadapt.training.loop import fit


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured; without `backbone` the config's own."""

    image: int
    batch: int
    images: int
    steps: int
    backbone: str = ""
    layer: int = 5


SIZES = {
    "micro": Size(image=64, batch=32, images=1024, steps=64),
    "small": Size(image=224, batch=16, images=64, steps=8, backbone="dinov2_small", layer=11),
}


def config_of(size: Size) -> Any:
    """The run of a size, from images."""
    config = linear_dinov2.get_config("scenes")
    config.total_steps, config.batch_size = size.steps, size.batch
    config.data.image_size, config.data.num_scenes = (size.image,) * 2, size.images
    config.data.augment = False
    config.task.layers = (size.layer,)
    config.run.log_every = max(size.steps // 8, 1)
    config.eval.every = config.run.pictures_every = 0
    config.eval.num_pictures = 1
    if size.backbone:
        config.model.backbone, config.model.weights = size.backbone, ""
        config.model.options = ConfigDict()
    return config


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Seconds a step both ways, the difference of their losses, seconds and bytes of a cache."""
    config = config_of(size)
    task = SegmentationTask(config)
    for index in range(size.images):
        task.source[index]
    seconds: dict[str, list[float]] = {"": [], "cache": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cached = config.copy_and_resolve_references()
        cached.data.cache = str(folder / "cache")
        filler = SegmentationTask(cached)
        filler.source = task.source
        began = time.perf_counter()
        frozen_features.open_cache(filler)
        filled = time.perf_counter() - began
        losses = {}
        for _ in range(rounds):
            for way, chosen in (("", config), ("cache", cached)):
                runner = SegmentationTask(chosen)
                runner.source = task.source
                outcome = fit(runner, chosen, folder / "run")
                seconds[way].append(size.batch / outcome.images_per_second)
                lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
                losses[way] = [json.loads(line)["loss"] for line in lines]
                shutil.rmtree(folder / "run")
        stored = sum(path.stat().st_size for path in (folder / "cache").glob("*.npy"))
    pairs = zip(losses[""], losses["cache"], strict=True)
    return {
        "seconds": seconds,
        "filled": filled,
        "bytes": stored,
        "difference": max(abs(a - b) / abs(a) for a, b in pairs),
    }


def row(name: str, size: Size, found: dict[str, Any]) -> str:
    """A line of the table."""
    images, features = found["seconds"][""], found["seconds"]["cache"]
    ratio = statistics.median(images) / statistics.median(features)
    cells = (
        size.backbone or f"vit_{name}",
        f"{size.images} of {size.image} px",
        size.batch,
        _spread(images),
        _spread(features),
        f"{ratio:.1f}",
        f"{found['filled']:.1f} s",
        f"{human_bytes(found['bytes'])} ({human_bytes(found['bytes'] / size.images)} an image)",
        f"{found['difference']:.0e}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _spread(seconds: list[float]) -> str:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle * 1e3:.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})"


def main() -> None:
    """Measures, prints a table and stores it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="instead of each size's own")
    parser.add_argument("--steps", type=int, help="instead of each size's own")
    parser.add_argument("--out", type=Path, help="a .md file for the table")
    options = parser.parse_args()
    rows = []
    for name in options.sizes:
        given = {key: getattr(options, key) for key in ("images", "steps")}
        size = dataclasses.replace(SIZES[name], **{k: v for k, v in given.items() if v})
        rows.append(row(name, size, measure(size, options.rounds)))
    device = jax.devices()[0]
    text = "\n".join(
        [
            "# Frozen features from disk",
            "",
            f"`python -m benchmarks.feature_cache`, {datetime.date.today()}; linear head, float32, "
            f"{options.rounds} rounds; {os.cpu_count()} CPU cores, {device.device_kind} "
            f"({platform.machine()}), Python {platform.python_version()}, jax {jax.__version__}, "
            f"flax {version('flax')}, numpy {version('numpy')}.",
            "",
            "| backbone | images | batch | a step from images, median (range) | from features "
            "| times faster | to fill | on disk | greatest relative difference of a loss |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
