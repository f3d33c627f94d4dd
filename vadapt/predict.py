"""What a trained model sees in images, as files.

    python -m vadapt.predict --workdir=RUN --images=DIR --out=DIR

What OUT gets depends on the task of the run. Segmentation: for every image `labels/NAME.png`, the
number of the class of every pixel (8 bits, at the image's size), and `overlays/NAME.jpg`, these in
colors over the image. Recognition: `labels.csv`, a line for each label of an image with its
probability, the best first, and `pictures/NAME.jpg`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from PIL import Image

from vadapt.command_line import print_error
from vadapt.errors import ConfigError, VadaptError
from vadapt.training.task import Prediction, Predicts


def load_task(workdir: Path) -> tuple[Predicts[nnx.Module], nnx.Module]:
    """The task of a finished run, and its model with what was learned.

    Raises:
        ConfigError: the folder holds no finished run, or one of a task that cannot predict.
    """
    from ml_collections import ConfigDict

    from vadapt.tasks import make_task
    from vadapt.weights.adapter_file import load_adapter

    settings, adapter = workdir / "config.json", workdir / "adapter.safetensors"
    if not settings.exists() or not adapter.exists():
        raise ConfigError(
            f"{str(workdir)!r} holds no finished run: config.json and adapter.safetensors, which "
            "python -m vadapt.main leaves in its --workdir"
        )
    config: Any = ConfigDict(json.loads(settings.read_text(encoding="utf-8")))
    task = make_task(config)
    if not isinstance(task, Predicts):
        raise ConfigError(
            f"{str(workdir)!r} holds a run of the task {config.task.name!r}, which has no "
            f"`predict_image`: it does not say what it sees in an image. Tasks that do: {_able()}"
        )
    model = task.build()
    load_adapter(model, adapter, trainable=config.trainable)
    return task, model


def _able() -> str:
    from vadapt.tasks import TASKS

    return ", ".join(name for name in TASKS if hasattr(TASKS[name], "predict_image"))


def predict(workdir: str | Path, images: str | Path, out: str | Path) -> int:
    """Writes what a run's model says of the images of a folder; returns how many there were.

    Those that cannot be read are named in the log and left out.

    Raises:
        ConfigError: see `load_task`.
        DataError: there is no image, or none that can be read.
    """
    from rich.progress import track

    from vadapt.data.sources import Folder, Guarded

    out = Path(out)
    task, model = load_task(Path(workdir))
    source = Guarded(Folder(images), 1.0, evaluating=True)
    rows: list[tuple[str, str, float]] = []
    for index in track(range(len(source)), "predicting"):
        image = source[index]["image"]
        if source.is_corrupt(index):
            continue
        found = task.predict_image(model, image)
        name = Path(source.name(index)).relative_to(Path(images))
        _write(found, out, name.with_suffix(""))
        rows += [(name.as_posix(), label, value) for label, value in found.labels.items()]
    if rows:
        _write_table(rows, out / "labels.csv")
    return len(source) - source.num_corrupt


def _write(found: Prediction, out: Path, name: Path) -> None:
    for pictures, suffix in ((found.arrays, ".png"), (found.pictures, ".jpg")):
        for folder, picture in pictures.items():
            path = out / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=92)


def _write_table(rows: Sequence[tuple[str, str, float]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("image", "label", "probability"))
        table.writerows((image, label, f"{value:.6f}") for image, label, value in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if something cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m vadapt.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="of a finished run")
    parser.add_argument("--images", required=True, metavar="DIR", help="with images, also deeper")
    parser.add_argument("--out", required=True, metavar="DIR", help="for what is predicted")
    options = parser.parse_args(arguments)
    try:
        number = predict(options.workdir, options.images, options.out)
    except VadaptError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{number} images: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
