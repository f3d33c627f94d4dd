"""Processor time of recipes' images with labels, before and now: `benchmarks.input_pipeline` asks.

A worker is this file, run where Python finds one tree of vadapt: this one, or an earlier commit's.
It measures one recipe for each line that it is given. Two of them take turns, so that what else
the machine does slows both.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe's images on their way into batches of training, or of evaluation."""

    recipe: str
    files: str  # a name in `FILES`
    evaluating: bool = False

    @property
    def title(self) -> str:
        return f"{self.recipe}, {'evaluation' if self.evaluating else 'training'}"


CASES = (
    Case("linear_dinov2", "streets"),
    Case("rein_cityscapes", "streets"),
    Case("spm_cityscapes", "streets"),
    Case("linear_dinov2", "streets", evaluating=True),
    Case("spm_ade20k", "photographs"),
    Case("gkgnet_coco", "labels"),
    Case("gkgnet_coco", "labels", evaluating=True),
    Case("vig_imagenet", "labels"),
    Case("vig_imagenet", "labels", evaluating=True),
)
# Height, width, ending; all but "labels" have masks.
FILES = {
    "streets": (1024, 2048, ".png"),
    "photographs": (512, 683, ".jpg"),
    "labels": (480, 640, ".jpg"),
}


def write_files(root: Path, count: int) -> None:
    """Embedded scenes at the sizes of public data sets, with the noise of a sensor."""
    from vadapt.data.scenes import SceneOptions, make_scene

    rng = np.random.default_rng(3)
    for index in range(count):
        scene = make_scene(1, index, SceneOptions(256, 512, domain="real"))
        image, mask = Image.fromarray(scene.visible), Image.fromarray(scene.mask)
        for name, (height, width, ending) in FILES.items():
            images, masks = (root / name / part for part in ("images", "masks"))
            images.mkdir(parents=True, exist_ok=True)
            large = np.asarray(image.resize((width, height)))
            noisy = np.rint(large + rng.normal(0, 2, large.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(images / f"{index}{ending}")
            if name != "labels":
                masks.mkdir(exist_ok=True)
                mask.resize((width, height), Image.Resampling.NEAREST).save(masks / f"{index}.png")
    with (root / "labels" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [
            (f"images/{index}.jpg", "car;person" if index % 2 else "car") for index in range(count)
        ]
        csv.writer(file).writerows([("file", "labels"), *rows])


def measured(files: Path, case: Case) -> dict[str, float]:
    """Milliseconds of one core an image: read and decode, transform, and stack a batch."""
    from vadapt.data.fields import stack
    from vadapt.data.multilabel import LabelledImages
    from vadapt.data.segmentation import Segmentation
    from vadapt.data.stream import select_fields
    from vadapt.data.transforms import apply_all
    from vadapt.tasks import image_labels, labelled

    data = importlib.import_module(f"vadapt.configs.{case.recipe}").get_config().data
    wants, source = (
        (image_labels, LabelledImages(files / case.files))
        if case.files == "labels"
        else (labelled, Segmentation(files / case.files))
    )
    feed = (wants.evaluation_feed if case.evaluating else wants.training_feed)(data)
    began = time.thread_time()
    records = [source[index] for index in range(len(source))]
    read = time.thread_time()
    made = [
        apply_all(feed.transforms, record, np.random.default_rng(number))
        for number, record in enumerate(records)
    ]
    transformed = time.thread_time()
    stack([select_fields(record, feed.fields) for record in made])
    times = (began, read, transformed, time.thread_time())
    names = ("read and decode", "transform", "batch")
    return dict(zip(names, 1e3 * np.diff(times) / len(records), strict=True))


class Worker:
    """A process that measures with one tree of vadapt, without OpenCV or with one thread of it."""

    def __init__(self, tree: Path, files: Path, opencv: bool):
        paths = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH", ""))))
        variables = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(tree), str(files), *["opencv"] * opencv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            text=True,
        )

    def __call__(self, number: int) -> dict[str, float]:
        """The times of one case.

        Raises:
            RuntimeError: the worker ended; what it said stands in the terminal.
        """
        assert self._process.stdin
        assert self._process.stdout
        print(number, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended while it measured {CASES[number].title}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def earlier(commit: str, folder: Path) -> Path:
    """Unpack the files of an earlier commit into a folder; returns it."""
    command = ["git", "archive", "--format=zip", commit, "vadapt", "configs"]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    return folder


def compare(folder: Path, count: int, rounds: int, before: str) -> dict[str, Any]:
    """The least time of some rounds for every case, of this tree and of an earlier commit.

    Args:
        before: the commit; "" leaves it out.
    """
    write_files(folder / "files", count)
    with ExitStack() as stack:
        trees = {"now": ROOT}
        if before:
            trees["before"] = earlier(before, folder / "before")
        if importlib.util.find_spec("cv2"):
            trees["opencv"] = ROOT
        workers = {
            name: Worker(tree, folder / "files", name == "opencv") for name, tree in trees.items()
        }
        for worker in workers.values():
            stack.callback(worker.close)
        found: dict[str, Any] = {case.title: {name: {} for name in workers} for case in CASES}
        for number, case in enumerate(CASES):
            for _ in range(rounds):
                for name, worker in workers.items():
                    least = found[case.title][name]
                    for stage, time_ in worker(number).items():
                        least[stage] = min(time_, least.get(stage, time_))
    return found


def table(found: dict[str, Any], cores: int) -> str:
    """As Markdown: times, rates a core, and what so many cores would give."""
    names = [name for name in ("before", "now", "opencv") if name in next(iter(found.values()))]
    called = {"before": "before", "now": "now", "opencv": "now, OpenCV"}
    titles = ["recipe", "read and decode"]
    for what in ("transform", "images/s a core", f"images/s on {cores} cores*"):
        titles += [f"{what}: {called[names[0]]}", *(called[name] for name in names[1:])]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for title, by_name in found.items():
        times = [by_name[name] for name in names]
        rates = [1e3 / sum(stages.values()) for stages in times]
        cells = [f"{by_name['now']['read and decode']:.1f} ms"]
        cells += [f"{stages['transform']:.1f} ms" for stages in times]
        cells += [f"{rate:.1f}" for rate in rates]
        cells += [f"{cores * rate:.0f}" for rate in rates]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    lines += ["", "\\* The rate a core, measured on one, times the cores: an extrapolation."]
    return "\n".join(lines)


def work() -> None:
    """Measure the cases whose numbers are read, and write the times of each on a line."""
    import vadapt

    tree, files = map(Path, sys.argv[1:3])
    if sys.argv[3:]:
        importlib.import_module("cv2").setNumThreads(1)  # others would not be in a thread's time
    else:
        sys.modules["cv2"] = None  # type: ignore[assignment]
    if not Path(vadapt.__file__).is_relative_to(tree):
        raise SystemExit(f"{vadapt.__file__} is not of {tree}")
    for line in sys.stdin:
        print(json.dumps(measured(files, CASES[int(line)])), flush=True)


if __name__ == "__main__":
    work()
