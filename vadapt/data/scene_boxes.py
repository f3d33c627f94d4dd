"""The embedded scenes as a data set of small objects: several scenes a picture, with boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, UInt8

from vadapt.data.annotated import Annotated
from vadapt.data.detection import box_fields, make_truth
from vadapt.data.identity import Identity, identity_of
from vadapt.data.label_maps import class_colours
from vadapt.data.scenes import CLASSES, THINGS, SceneOptions, Scenes
from vadapt.data.sources import Record
from vadapt.errors import ConfigError
from vadapt.metrics.detection import Found, Truth

_NUMBERS = {CLASSES.index(name): number for number, name in enumerate(THINGS)}


class SceneBoxes:
    """Vehicles, persons and signs of the embedded scenes.

    Args:
        num_scenes: pictures.
        mosaic: scenes along a side of a picture: with 2 it has four times as many objects, of half
            the size.
        options: of the scenes; `height` and `width` are the picture's.
        least: pixels of an object's shorter side; smaller ones are ignored.

    Raises:
        ConfigError: the sides are no multiples of `mosaic`.

    >>> source = SceneBoxes(3, mosaic=2, options=SceneOptions(height=128, width=128))
    >>> record = source[0]
    >>> record["image"].shape, record["boxes_xyxy"].shape == (len(record["box_classes"]), 4)
    ((128, 128, 3), True)
    """

    classes = THINGS

    def __init__(
        self,
        num_scenes: int,
        *,
        mosaic: int = 1,
        view: str = "visible",
        seed: int = 0,
        options: SceneOptions | None = None,
        least: int = 4,
    ):
        options = options or SceneOptions()
        if mosaic < 1 or options.height % mosaic or options.width % mosaic:
            raise ConfigError(
                f"pictures of {options.height}x{options.width} pixels are not cut evenly into "
                f"{mosaic}x{mosaic} scenes: give another config.data.mosaic"
            )
        self.num_scenes, self.mosaic, self.least = num_scenes, mosaic, least
        self._known: dict[int, Annotated] = {}  # objects of pictures that were drawn for them
        sides = {"height": options.height // mosaic, "width": options.width // mosaic}
        fields = ("image", "boxes_xyxy", "box_classes")
        self._scenes = Scenes(
            num_scenes * mosaic**2,
            view=view,
            fields=fields,
            seed=seed,
            options=dataclasses.replace(options, **sides),
        )

    @property
    def palette(self) -> UInt8[np.ndarray, "k 3"]:
        """A color per class."""
        return class_colours(len(self.classes))

    @property
    def pictures(self) -> Int[np.ndarray, " n"]:
        """The number of the picture that each element is."""
        return np.arange(self.num_scenes)

    def __len__(self) -> int:
        return self.num_scenes

    def __repr__(self) -> str:
        return f"SceneBoxes({self.num_scenes}, mosaic={self.mosaic}, {self._scenes!r})"

    def identity(self) -> Identity:
        return identity_of(len(self), self.mosaic, self.least, self._scenes.identity())

    def __getitem__(self, index: SupportsIndex) -> Record:
        number = range(self.num_scenes)[index]
        image, objects = self._drawn(number)
        return {"image": image, **box_fields(objects)}

    def _drawn(self, number: int) -> tuple[np.ndarray, Annotated]:
        """A picture and its objects."""
        first = number * self.mosaic**2
        parts = [self._scenes[first + i] for i in range(self.mosaic**2)]
        height, width = parts[0]["image"].shape[:2]
        rows = [parts[i : i + self.mosaic] for i in range(0, len(parts), self.mosaic)]
        image = np.concatenate(
            [np.concatenate([part["image"] for part in row], axis=1) for row in rows]
        )
        places = [(i % self.mosaic * width, i // self.mosaic * height) for i in range(len(parts))]
        moved = [
            part["boxes_xyxy"].astype(np.float64) + np.array([*place, *place])
            for part, place in zip(parts, places, strict=True)
        ]
        boxes = np.concatenate(moved)
        classes = np.concatenate([part["box_classes"] for part in parts])
        sides = boxes[:, 2:] - boxes[:, :2]
        return image, Annotated(
            f"scene {number}",
            (image.shape[0], image.shape[1]),
            boxes,
            np.array([_NUMBERS[int(kind)] for kind in classes], np.int32),
            sides.prod(axis=1),
            np.zeros(len(boxes), bool),
            np.asarray((sides < self.least).any(axis=1)),
        )

    def truth(self, pictures: Iterable[int] | None = None, *, heed_ignored: bool = False) -> Truth:
        """The objects of pictures; what is too small is ignored, whatever `heed_ignored` says."""
        numbers = range(self.num_scenes) if pictures is None else pictures
        return make_truth([(int(n), self._objects(int(n))) for n in numbers], True)

    def regions(self, pictures: Iterable[int] | None = None) -> Truth:
        """There are none."""
        return make_truth([], True, regions=True)

    def whole(self, found: Found, threshold: float = 0.5) -> Found:
        """Detections as they are: every element is a whole picture."""
        return found

    def _objects(self, number: int) -> Annotated:
        """The objects of a picture, which is drawn once for them."""
        if number not in self._known:
            self._known[number] = self._drawn(number)[1]
        return self._known[number]
