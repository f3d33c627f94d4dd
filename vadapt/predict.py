"""Draws what a trained segmenter sees in images.

    python -m vadapt.predict --workdir=RUN --images=DIR --out=DIR

For every image OUT gets `labels/NAME.png`, the number of the class of every pixel (8 bits, at the
image's size), and `overlays/NAME.jpg`, these in colours over the image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vadapt.command_line import print_error
from vadapt.errors import ConfigError, VadaptError


def load_task(workdir: Path) -> tuple[Any, Any]:
    """The task of a finished run, and its model with what was learned.

    Raises:
        ConfigError: the folder holds no finished run, or one of another task.
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
    if config.task.name != "segmentation":
        raise ConfigError(f"{str(workdir)!r} holds a run of the task {config.task.name!r}")
    task = make_task(config)
    model = task.build()
    load_adapter(model, adapter, trainable=config.trainable)
    return task, model


def predict(workdir: str | Path, images: str | Path, out: str | Path) -> int:
    """Labels and overlays of the images of a folder; returns how many there were.

    Those that cannot be read are named in the log and left out.

    Raises:
        ConfigError: see `load_task`.
        DataError: there is no image, or none that can be read.
    """
    from rich.progress import track

    from vadapt.data.segmentation_transforms import ResizeToFit
    from vadapt.data.sources import Folder, Guarded
    from vadapt.drawing import colour_mask, overlay, to_rgb

    out = Path(out)
    task, model = load_task(Path(workdir))
    source = Guarded(Folder(images), 1.0, evaluating=True)
    data, palette = task.config.data, task.palette
    rng = np.random.default_rng(0)
    for index in track(range(len(source)), "predicting"):
        image = source[index]["image"]
        if source.is_corrupt(index):
            continue
        record: dict[str, Any] = {"image": image}
        if data.test_longest:
            record = ResizeToFit(data.test_longest, data.test_shortest)(record, rng)
        labels = task.predict(model, record["image"][None], image.shape[:2])[0]
        name = Path(source.name(index)).relative_to(Path(images)).with_suffix("")
        both = overlay(to_rgb(image), colour_mask(labels, palette))
        for folder, picture, suffix in (
            ("labels", labels, ".png"),
            ("overlays", both, ".jpg"),
        ):
            path = out / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=92)
    return len(source) - source.num_corrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if something cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m vadapt.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="of a finished run of a segmentation")
    parser.add_argument("--images", required=True, metavar="DIR", help="with images, also deeper")
    parser.add_argument("--out", required=True, metavar="DIR", help="for labels and overlays")
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
