"""What a trained model sees in images, as files.

    python -m vadapt.predict --run=RUN --images=DIR --out=DIR

RUN is a workdir (also of a run that is not finished: its newest checkpoint counts), the adapter
file of a finished run, or hf:org/name. No training data are needed; the base weights are looked for
where the run had them and around it, else --weights says where they are.

What OUT gets depends on the task of the run, and on --format:

    png   segmentation: for every image `labels/NAME.png`, the number of the class of every pixel (8
          bits, at the image's size), and `overlays/NAME.jpg`, these in colors over the image; with
          --confidences also `confidences/NAME.png`, 255 for a probability of 1. Recognition:
          `pictures/NAME.jpg`. Detection: `boxes/NAME.jpg`
    csv   `labels.csv`. Recognition: a line for each label of an image with its probability, the
          best first. Segmentation: a line for each class of an image, with its share of the pixels
          and its mean confidence. Detection: a line for each object, with its score and corners
    json  `predictions.json`: the same, the classes, the files of every image, and what was not read
    coco  `coco.json`, of detection: images, categories (numbered from 1), and as annotations the
          objects found, with a score; tools for labeling and pycocotools read it

By default all pictures, the table of a task that recognizes, and `coco.json` of one that detects.
Images of one name but for the suffix keep it: a.png and a.jpg become a.png.png and a.jpg.png.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vadapt.command_line import print_error, program
from vadapt.data.sources import IMAGE_SUFFIXES, find_files
from vadapt.errors import ConfigError, DataError, VadaptError
from vadapt.training.task import Prediction

FORMATS = ("png", "csv", "json", "coco")
_SHOWN = 5  # names in a message


@dataclass
class Outcome:
    """What became of the files of a folder; names are seen from it."""

    written: dict[str, Prediction] = field(default_factory=dict)  # without its pictures
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # of an image: by folder
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # (height, width) of an image
    broken: dict[str, str] = field(default_factory=dict)  # with the reason
    passed_over: list[str] = field(default_factory=list)  # no images, by their names

    def __str__(self) -> str:
        lines = [_count(self.written, "image")]
        if self.broken:
            lines.append(f"{len(self.broken)} could not be read: {_some(self.broken)}")
        if self.passed_over:
            lines.append(
                f"{_count(self.passed_over, 'file')} passed over, whose suffix is none of "
                f"{', '.join(IMAGE_SUFFIXES)}: {_some(self.passed_over)}"
            )
        return "\n".join(lines)


def predict(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    formats: Collection[str] = (),
    confidences: bool = False,
    weights: str | Path = "",
) -> Outcome:
    """Writes what a run's model says of an image file, or of all of a folder.

    Args:
        run, weights: see `vadapt.load_run`.
        formats: of `FORMATS`; by default all pictures, the table of a task that recognizes, and
            `coco.json` of one that detects.
        confidences: also write those of pixels, as pictures.

    Raises:
        ConfigError: the task does not predict, an unknown format, or "coco" of a task that finds
            no objects.
        DataError: there is no image, or none that can be read.
    """
    from rich.progress import track

    from vadapt.data.given import read_images
    from vadapt.trained import load_run, predicting

    if unknown := {*formats} - {*FORMATS}:
        raise ConfigError(f"unknown format {min(unknown)!r}; allowed: {', '.join(FORMATS)}")
    root, out = Path(images).expanduser(), Path(out)
    names, passed_over = list_images(root, out)
    outcome = Outcome(passed_over=passed_over)
    loaded = load_run(run, weights=weights, to_predict=True)
    task = predicting(loaded.task, loaded.name)
    base = root if root.is_dir() else root.parent
    for name, stem in track(distinct_stems(names).items(), "predicting"):
        try:
            (image,), _ = read_images(base / name)
        except DataError as error:
            outcome.broken[name] = str(error.__cause__ or error)
            continue
        found = task.predict_image(loaded.model, image)
        pictures = _pictures(found, confidences) if not formats or "png" in formats else {}
        outcome.files[name] = {
            folder: _write(picture, out, f"{folder}/{stem}{suffix}")
            for folder, (picture, suffix) in pictures.items()
        }
        outcome.sizes[name] = (image.shape[0], image.shape[1])
        outcome.written[name] = Prediction(labels=found.labels, rows=found.rows, boxes=found.boxes)
    if not outcome.written:
        raise DataError(
            f"none of {len(names)} images can be read; the first: {_some(outcome.broken)} "
            f"({next(iter(outcome.broken.values()))})"
        )
    _write_tables(outcome, out, formats, loaded.name, loaded.classes)
    return outcome


def list_images(root: Path, out: Path) -> tuple[list[str], list[str]]:
    """Names of the images of a folder, deeper ones too, and of the files that are none; sorted.

    A single file is an image whatever its name. What is under `out` is left out without a word:
    earlier predictions.

    Raises:
        DataError: nothing there, or no image.
    """
    if root.is_file():
        return [root.name], []
    if not root.is_dir():
        raise DataError(f"no file or folder {str(root)!r}; expected an image or a folder with some")
    inside = out.resolve() != root.resolve() and out.resolve().is_relative_to(root.resolve())
    ours = out.resolve().relative_to(root.resolve()).as_posix() + "/" if inside else None
    files = [name for name in find_files(root, ("",)) if not (ours and name.startswith(ours))]
    names = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
    others = sorted({*files} - {*names})
    if not names:
        there = f"; there are {len(others)} other files: {_some(others)}" if others else ""
        raise DataError(
            f"no images under {str(root)!r}; expected {', '.join(IMAGE_SUFFIXES)}, in it or in "
            f"folders below{there}"
        )
    return names, others


def distinct_stems(names: Sequence[str]) -> dict[str, str]:
    """For each file name one without its suffix; with it where two would be one.

    Letters count alike in either case, as on many disks.

    >>> distinct_stems(["a.png", "a.jpg", "b.png"])
    {'a.png': 'a.png', 'a.jpg': 'a.jpg', 'b.png': 'b'}
    """
    stems = {name: str(Path(name).with_suffix("")) for name in names}
    while True:
        counts = Counter(stem.casefold() for stem in stems.values())
        alike = [n for n, stem in stems.items() if counts[stem.casefold()] > 1 and stem != n]
        if not alike:
            return stems
        stems |= {name: name for name in alike}


def _pictures(found: Prediction, confidences: bool) -> Mapping[str, tuple[np.ndarray, str]]:
    """By folder, what is written as PNG or JPEG."""
    pictures = {folder: (array, ".png") for folder, array in found.arrays.items()}
    pictures |= {folder: (array, ".jpg") for folder, array in found.pictures.items()}
    if confidences:
        pictures |= {
            folder: (np.rint(255 * np.clip(array, 0, 1)).astype(np.uint8), ".png")
            for folder, array in found.confidences.items()
        }
    return pictures


def _write(picture: np.ndarray, out: Path, name: str) -> str:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=92)
    return name


def _write_tables(
    outcome: Outcome, out: Path, formats: Collection[str], run: str, classes: Sequence[str]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    recognizes = any(found.labels for found in outcome.written.values())
    if "csv" in formats or (not formats and recognizes):
        rows = [
            {"image": name, **row} for name, found in outcome.written.items() for row in found.table
        ]
        columns = list(dict.fromkeys(["image", *(column for row in rows for column in row)]))
        with (out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows({key: _shown(value) for key, value in row.items()} for row in rows)
    detects = any(found.boxes is not None for found in outcome.written.values())
    if "coco" in formats and not detects:
        raise ConfigError(
            f"--format=coco is of objects with boxes, and {run!r} finds none of these; its others "
            f"are {', '.join(FORMATS[:-1])}"
        )
    if detects and (not formats or "coco" in formats):
        text = json.dumps(_coco(outcome, classes), indent=1) + "\n"
        (out / "coco.json").write_text(text, encoding="utf-8")
    if "json" in formats:
        content: dict[str, Any] = {
            "run": run,
            "classes": list(classes),
            "images": [
                {
                    "image": name,
                    "files": outcome.files[name],
                    "found": [{k: _plain(v) for k, v in row.items()} for row in found.table],
                }
                for name, found in outcome.written.items()
            ],
            "not_read": [{"image": name, "reason": why} for name, why in outcome.broken.items()],
            "passed_over": outcome.passed_over,
        }
        text = json.dumps(content, indent=1) + "\n"
        (out / "predictions.json").write_text(text, encoding="utf-8")


def _coco(outcome: Outcome, classes: Sequence[str]) -> dict[str, Any]:
    """Found objects as a data set in COCO's form."""
    numbers = {name: i + 1 for i, name in enumerate(outcome.written)}
    found = [
        (number, box)
        for name, number in numbers.items()
        for box in outcome.written[name].boxes or ()
    ]
    annotations = []
    for number, (image, box) in enumerate(found):
        left, top, right, bottom = (round(float(x), 3) for x in box.corners)
        width, height = round(right - left, 3), round(bottom - top, 3)
        annotations.append(
            {
                "id": number + 1,
                "image_id": image,
                "category_id": box.number + 1,
                "bbox": [left, top, width, height],
                "area": round(width * height, 3),
                "iscrowd": 0,
                "score": round(box.score, 6),
            }
        )
    sizes = outcome.sizes
    return {
        "images": [
            {"id": i, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
            for name, i in numbers.items()
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
    }


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6f}"


def _plain(value: str | float) -> str | float:
    return value if isinstance(value, str) else round(float(value), 6)


def _count(things: Collection[str], name: str) -> str:
    return f"{len(things)} {name}{'s' if len(things) != 1 else ''}"


def _some(names: Collection[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join([*names][:_SHOWN]) + more


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if something cannot be used."""
    parser = argparse.ArgumentParser(
        prog=program("predict", "vadapt.predict"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", "--workdir", required=True, help="see above")
    parser.add_argument("--images", required=True, metavar="PATH", help="a file, or a folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="for what is predicted")
    parser.add_argument("--weights", default="", help="the base weights, or a folder with them")
    parser.add_argument("--format", default="", help=f"some of {','.join(FORMATS)}, with commas")
    parser.add_argument("--confidences", action="store_true", help="those of pixels, as pictures")
    options = parser.parse_args(arguments)
    try:
        outcome = predict(
            options.run,
            options.images,
            options.out,
            formats=[name for name in options.format.split(",") if name],
            confidences=options.confidences,
            weights=options.weights,
        )
    except VadaptError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{outcome}\nin {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
