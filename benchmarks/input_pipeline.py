"""Images a second into batches, a core: `python -m benchmarks.input_pipeline`.

For PAD it draws infrared scenes of 640x512, writes them as an MSIP tree for each kind of file that
MSIP has (8-bit grey in JPEG and PNG, and grey kept as a colour JPEG) with candidates of objects,
and times

    stages    read and decode; crop and resize, anywhere and around candidates; flip; batch: in
              processor time of one thread, which other work on the machine hardly changes
    streams   `vadapt.data.stream.make_stream` as the training makes it, read in the caller's thread
              and by its own threads
    waiting   how long `next(stream)` takes when each step sleeps half as long again as the stream
              needs for a batch, that is, with devices that are no faster than two thirds of it

For recipes with labels, of pixels and of images, it times reading and transforms of scenes at the
sizes of public data sets, beside those of an earlier commit if `--before` names one: see
`input_recipes`.

What 16 cores would give is the rate a core, measured here, times 16: an extrapolation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import input_recipes
from vadapt.configs import pad_msip
from vadapt.data.fields import stack
from vadapt.data.msip import IMAGES, Msip
from vadapt.data.roi_table import PACKED, RoiTable
from vadapt.data.scenes import SceneOptions, make_scene
from vadapt.data.stream import make_stream
from vadapt.data.transforms import HorizontalFlip
from vadapt.tasks.inputs import random_crop

HEIGHT, WIDTH = 512, 640
NAMES = 4096
TARGET, CORES = 2000, 16  # images a second on so many cores
KINDS = {
    "grey JPEG": (".jpg", "L", {"quality": 90}),
    "colour JPEG": (".jpg", "RGB", {"quality": 90}),
    "grey PNG": (".png", "L", {}),
}
CROPS = {"anywhere": 0.0, "candidates": 0.85}  # roi_probability


def draw(count: int) -> list[np.ndarray]:
    """Infrared scenes with the noise of a sensor, uint8 [h, w]."""
    options = SceneOptions(HEIGHT, WIDTH, domain="real")
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(count):
        scene = make_scene(0, index, options).thermal.reshape(HEIGHT, WIDTH)
        noisy = scene + rng.normal(0, 2, scene.shape)
        pictures.append(np.rint(noisy).clip(0, 255).astype(np.uint8))
    return pictures


def write_tree(root: Path, kind: str, pictures: list[np.ndarray], count: int = NAMES) -> None:
    """One sub-set of `count` files, with 200 candidates an image of 20 to 200 pixels.

    A picture has many names: grain's shuffling takes 1 ms an element of 16, next to nothing from
    thousands on, as MSIP has.
    """
    suffix, mode, options = KINDS[kind]
    folder = root / "scenes" / IMAGES
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    names = [f"{number:07}{suffix}" for number in range(count)]
    rois = {}
    for number, name in enumerate(names):
        if number < len(pictures):
            Image.fromarray(pictures[number]).convert(mode).save(folder / name, **options)
        else:
            os.link(folder / names[number % len(pictures)], folder / name)
        sides = rng.integers(20, 200, (200, 2))
        starts = (rng.random((200, 2)) * (np.array([WIDTH, HEIGHT]) - sides)).astype(int)
        rois[name] = np.concatenate([starts, sides], 1).astype(np.int32)
    RoiTable.of(rois).save(root / "scenes" / PACKED)


def data_config(probability: float) -> Any:
    """That of PAD, with crops around candidates or anywhere."""
    data = pad_msip.get_config().data
    data.roi_probability = probability
    return data


def stages(source: Msip, count: int, passes: int = 5) -> dict[str, float]:
    """Milliseconds of one core an image for each stage."""
    rng = np.random.default_rng(2)
    crops = {name: random_crop(data_config(share)) for name, share in CROPS.items()}
    flip = HorizontalFlip(1.0)
    records = [source[index] for index in range(count)]
    cut = [crops["anywhere"]({"image": record["image"]}, rng) for record in records]
    mixed = [flip(record, rng) if number % 2 else record for number, record in enumerate(cut)]

    def cropped(name: str) -> Callable[[], Any]:
        return lambda: [crops[name](record, rng) for record in records]

    work: dict[str, Callable[[], Any]] = {
        "read and decode": lambda: [source[index] for index in range(count)],
        "crop and resize, anywhere": cropped("anywhere"),
        "crop and resize, candidates": cropped("candidates"),
        "flip": lambda: [flip(record, rng) for record in cut],
        "batch, half of it flipped": lambda: stack(mixed),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(passes):
        for name, run in work.items():
            began = time.thread_time()
            run()
            times[name].append(1e3 * (time.thread_time() - began) / count)
    return {name: statistics.median(values) for name, values in times.items()}


def streaming(source: Msip, share: float, batch: int, batches: int) -> dict[str, Any]:
    """Rates of a training stream in the caller's thread and by its own, and the waiting."""

    def stream(**options: Any) -> Any:
        transforms = [random_crop(data_config(share)), HorizontalFlip()]
        return make_stream(
            source, transforms, batch_size=batch, seed=0, fields=("image",), **options
        )

    result: dict[str, Any] = {}
    for name, options in (("one thread", {"num_threads": 0}), ("all threads", {})):
        with closing(stream(**options)) as reading:
            next(reading)  # fills what is read ahead
            walls, processor = time.perf_counter(), time.process_time()
            for _ in range(batches):
                next(reading)
            images = batches * batch
            result[name] = {
                "images_per_second": images / (time.perf_counter() - walls),
                "images_per_core_second": images / (time.process_time() - processor),
            }
    step = 1.5 * batch / result["all threads"]["images_per_second"]
    with closing(stream()) as reading:
        waits = list(_waits(reading, step, batches))
    result["waiting"] = {
        "step_ms": 1e3 * step,
        "first_ms": waits[0],
        "median_ms": statistics.median(waits[1:]),
        "most_ms": max(waits[1:]),
    }
    return result


def _waits(reading: Any, step: float, batches: int) -> Iterator[float]:
    for _ in range(batches + 1):
        began = time.perf_counter()
        next(reading)
        yield 1e3 * (time.perf_counter() - began)
        time.sleep(step)


def tables(report: dict[str, Any]) -> str:
    """As Markdown."""
    kinds = report["kinds"]
    lines = ["| stage, ms of one core an image | " + " | ".join(kinds) + " |"]
    lines.append("|---" * (len(kinds) + 1) + "|")
    for stage in next(iter(kinds.values()))["stages"]:
        cells = [f"{kind['stages'][stage]:.3f}" for kind in kinds.values()]
        lines.append("| " + " | ".join([stage, *cells]) + " |")
    titles = [
        "files, crops", "images/s, one thread", f"images/s, {report['cores']} cores",
        "images/s a core", f"on {CORES} cores*", f"cores for {TARGET}/s*", "step", "wait: median",
        "most", "first",
    ]  # fmt: skip
    lines += ["", "| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, kind in kinds.items():
        for crop, stream in kind["streams"].items():
            rate, wait = stream["all threads"], stream["waiting"]
            core = rate["images_per_core_second"]
            cells = [
                f"{name}, {crop}",
                f"{stream['one thread']['images_per_second']:.0f}",
                f"{rate['images_per_second']:.0f}",
                f"{core:.0f}",
                f"{CORES * core:.0f}",
                f"{TARGET / core:.1f}",
                *(f"{wait[f'{part}_ms']:.1f} ms" for part in ("step", "median", "most", "first")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "\\* Extrapolated from the rate a core; it holds if threads do not hinder each other.",
        "",
    ]
    return "\n".join(lines)


def page(report: dict[str, Any], options: argparse.Namespace) -> str:
    """All of it as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    sizes = ", ".join(f"{kind} {1e-3 * x['bytes']:.0f} kB" for kind, x in report["kinds"].items())
    sized = ", ".join(f"{name} {h}x{w}" for name, (h, w, _) in input_recipes.FILES.items())
    before = f"; before: {options.before}" if options.before else ""
    busy = report["load"] is not None and report["load"] >= 1
    beside = f" Others kept {report['load']:.1f} processes busy beside." if busy else ""
    return (
        "# From files to batches\n\n"
        f"    {report['command']}\n\n{report['date']}; {report['cores']} cores "
        f"({report['machine']}); {versions}.{beside}\n\n"
        f"## Recipes with labels\n\n{sized} (streets in PNG, else JPEG){before}. The least of "
        f"{options.rounds} rounds, a thread's processor time.\n\n"
        f"{input_recipes.table(report['recipes'], CORES)}\n\n"
        f"## Infrared files of {WIDTH}x{HEIGHT} to batches of 224x224\n\n"
        f"{sizes}; batches of {options.batch}.\n\n"
        f"{tables(report)}"
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48, help="files of each kind")
    parser.add_argument("--names", type=int, default=NAMES, help="that these files go by")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--labeled", type=int, default=8, help="files of recipes with labels")
    parser.add_argument("--rounds", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--before", default="", help="a commit to hold the recipes against")
    parser.add_argument("--out", type=Path, help="a JSON file to write; the tables go beside it")
    options = parser.parse_args()
    pictures = draw(options.images)
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.input_pipeline", *sys.argv[1:]]),
        "date": str(datetime.date.today()),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0] if sys.platform == "linux" else None,
        "versions": _versions("pillow", "numpy", "grain", "opencv-python-headless"),
        "before": options.before,
        "kinds": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        report["recipes"] = input_recipes.compare(
            Path(folder), options.labeled, options.rounds, options.before
        )
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            write_tree(Path(folder), kind, pictures, options.names)
            source = Msip(folder)
            report["kinds"][kind] = {
                "bytes": _mean_bytes(source),
                "stages": stages(source, len(pictures)),
                "streams": {
                    crop: streaming(source, share, options.batch, options.batches)
                    for crop, share in CROPS.items()
                },
            }
    text = page(report, options)
    print(text)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")


def _versions(*names: str) -> dict[str, str]:
    """Versions of installed packages."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _mean_bytes(source: Msip) -> float:
    return statistics.mean(Path(source.name(i)).stat().st_size for i in range(len(source)))


if __name__ == "__main__":
    main()
