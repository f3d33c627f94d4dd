"""The embedded data set: street scenes drawn by NumPy alone, seen in colour and in the infrared.

A scene is made from (seed, index) alone and knows everything about itself: classes, instances,
boxes, the next frame and the exact optical flow. `python -m
vadapt.data.scenes --out sheet.png` shows some.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from vadapt.data.identity import Identity, identity_of
from vadapt.data.label_maps import class_colours
from vadapt.data.scene_cameras import take_thermal, take_visible
from vadapt.data.scene_layout import make_world
from vadapt.data.scene_render import Frame
from vadapt.data.scene_shapes import PERSONS, VEHICLES
from vadapt.data.scene_world import CATEGORIES, CLASSES, PERSON, SIGN, VEHICLE, World
from vadapt.errors import ConfigError, nearest

__all__ = [
    "CATEGORIES",
    "CLASSES",
    "DOMAINS",
    "FIELDS",
    "PALETTE",
    "THINGS",
    "VIEWS",
    "Scene",
    "SceneOptions",
    "Scenes",
    "make_scene",
]

PALETTE: UInt8[np.ndarray, "k 3"] = np.array(
    [
        (152, 201, 118), (128, 100, 128), (232, 158, 205), (110, 112, 118), (62, 138, 66),
        (135, 186, 224), (36, 64, 178), (220, 36, 64), (190, 160, 120), (245, 200, 40),
    ],
    np.uint8,
)  # fmt: skip
THINGS = ("vehicle", "person", "sign")  # classes that have boxes
DOMAINS = ("synthetic", "real")
VIEWS = ("visible", "thermal")
FIELDS = (
    "image", "next_image", "visible", "next_visible", "thermal", "next_thermal", "mask",
    "next_mask", "instances", "boxes_xyxy", "box_classes", "box_categories", "labels", "flow",
    "rois", "clip", "clip_mask",
)  # fmt: skip
MIN_SIDE = 16


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Options that all scenes of a set share.

    Attributes:
        height: pixels, at least 16; `width` likewise.
        domain: 'synthetic' (clean, by day) or 'real' (dirty colours, night, fog, rain, noise); the
            same (seed, index) gives the same geometry in both.
        object_size: multiplies the size of vehicles, persons and signs.
        long_tail: the commonest category is drawn exp(long_tail) times as often as the rarest.

    Raises:
        ConfigError: on an unknown domain or a number out of range.
    """

    height: int = 64
    width: int = 64
    domain: str = "synthetic"
    object_size: float = 1.0
    long_tail: float = 0.0

    def __post_init__(self):
        if self.domain not in DOMAINS:
            raise ConfigError(f"unknown domain {self.domain!r}; {nearest(self.domain, DOMAINS)}")
        if min(self.height, self.width) < MIN_SIDE:
            raise ConfigError(
                f"scenes of {self.height}x{self.width} pixels; a side has at least {MIN_SIDE}"
            )
        if not 0.1 <= self.object_size <= 2.0:
            raise ConfigError(f"object_size is {self.object_size}; it must lie in 0.1 to 2")
        if not 0.0 <= self.long_tail <= 20.0:
            raise ConfigError(f"long_tail is {self.long_tail}; it must lie in 0 to 20")


class Scene:
    """One scene; every attribute is computed when first asked for, and then kept.

    >>> scene = make_scene(0, 3)
    >>> scene.visible.shape, scene.thermal.shape, scene.flow.shape
    ((64, 64, 3), (64, 64), (64, 64, 2))
    """

    def __init__(self, seed: int, index: int, options: SceneOptions):
        self.seed, self.index, self.options = seed, index, options
        self._salt = (seed * 7919 + index * 104729) % 65521

    @functools.cached_property
    def _world(self) -> World:
        options = self.options
        return make_world(
            self.seed,
            self.index,
            domain=options.domain,
            object_size=options.object_size,
            long_tail=options.long_tail,
        )

    @functools.cached_property
    def _now(self) -> Frame:
        return Frame(self._world, 0, self.options.height, self.options.width)

    @functools.cached_property
    def _next(self) -> Frame:
        return Frame(self._world, 1, self.options.height, self.options.width)

    @functools.cached_property
    def visible(self) -> UInt8[np.ndarray, "h w 3"]:
        """The colour picture."""
        return take_visible(self._now, self._salt)

    @functools.cached_property
    def thermal(self) -> UInt8[np.ndarray, "h w"]:
        """The infrared picture, white-hot, with a gain and an offset of its own."""
        return take_thermal(self._now, self._now, self._salt)

    @functools.cached_property
    def mask(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids, as in `CLASSES`."""
        return self._now.classes()

    @functools.cached_property
    def next_visible(self) -> UInt8[np.ndarray, "h w 3"]:
        """The colour picture of frame t + 1."""
        return take_visible(self._next, self._salt)

    @functools.cached_property
    def next_thermal(self) -> UInt8[np.ndarray, "h w"]:
        """The infrared picture of frame t + 1, with the gain of frame t."""
        return take_thermal(self._next, self._now, self._salt)

    @functools.cached_property
    def next_mask(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids of frame t + 1."""
        return self._next.classes()

    @functools.cached_property
    def flow(self) -> Float32[np.ndarray, "h w 2"]:
        """Motion (x, y) in pixels of each pixel of frame t to frame t + 1, hidden there or not."""
        return self._now.flow()

    @functools.cached_property
    def _found(self) -> tuple[np.ndarray, list[tuple], list[int]]:
        """Instance map, boxes and categories of the instances large enough to count."""
        things = self._now.things()
        least = max(6, round(things.size * 0.0012))
        counts = np.bincount(things.ravel(), minlength=len(self._world.categories) + 1)
        counts[0] = 0
        kept = np.flatnonzero(counts >= least)[::-1]  # near to far
        renumber = np.zeros(len(counts), np.uint8)
        renumber[kept] = np.arange(1, len(kept) + 1)
        boxes = []
        for thing in kept.tolist():
            here = things == thing
            rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        return renumber.take(things), boxes, self._world.categories[kept - 1].tolist()

    @property
    def instances(self) -> UInt8[np.ndarray, "h w"]:
        """1 + the row of the box that a pixel belongs to; 0 where there is none."""
        return self._found[0]

    @functools.cached_property
    def boxes_xyxy(self) -> Float32[np.ndarray, "n 4"]:
        """Bounds in pixels of the visible part of each instance, ends exclusive; near to far."""
        return np.array(self._found[1], np.float32).reshape(-1, 4)

    @property
    def rois(self) -> Int32[np.ndarray, "n 4"]:
        """The boxes as (x, y, w, h): candidates of objects, for crops around them, at no cost."""
        corners = self.boxes_xyxy.astype(np.int32)
        return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)

    @functools.cached_property
    def box_categories(self) -> Int32[np.ndarray, " n"]:
        """Category ids of the instances, as in `CATEGORIES`."""
        return np.array(self._found[2], np.int32)

    @functools.cached_property
    def box_classes(self) -> Int32[np.ndarray, " n"]:
        """Class ids of the instances, as in `CLASSES`."""
        return _CLASS_OF_CATEGORY[self.box_categories]

    @functools.cached_property
    def labels(self) -> UInt8[np.ndarray, " k"]:
        """1 for each class that covers at least 0.3 % of the picture."""
        counts = np.bincount(self.mask.ravel(), minlength=len(CLASSES))
        return (counts >= max(6, 0.003 * self.mask.size)).astype(np.uint8)


_CLASS_OF_CATEGORY = np.array(
    [VEHICLE if c in VEHICLES else PERSON if c in PERSONS else SIGN for c in CATEGORIES], np.int32
)


def make_scene(seed: int, index: int, options: SceneOptions = SceneOptions()) -> Scene:
    """The scene number `index` of the set `seed`; nothing is drawn until an attribute is read.

    Raises:
        ConfigError: if seed or index is negative.
    """
    if seed < 0 or index < 0:
        raise ConfigError(f"seed {seed} and index {index} of a scene must not be negative")
    return Scene(seed, index, options)


class Scenes:
    """A source of scene records with random access, as grain wants it.

    `scenes[i]` is a dict with the fields asked for, among `FIELDS`. 'image' and 'next_image' are
    uint8 [h, w, 3] in the visible view and [h, w, 1] in the thermal one; 'clip' ([2, h, w, c]) and
    'clip_mask' are frames t and t + 1. With `cache`, a record is drawn once and kept; its arrays
    are then read-only and shared.

    >>> Scenes(8, view="thermal", fields=("image", "mask"))[5]["image"].shape
    (64, 64, 1)
    """

    classes = tuple(CLASSES)
    palette = class_colours(len(CLASSES))

    def __init__(
        self,
        num_scenes: int = 4096,
        *,
        view: str = "visible",
        fields: tuple[str, ...] = ("image",),
        seed: int = 0,
        options: SceneOptions = SceneOptions(),
        cache: bool = True,
    ):
        if view not in VIEWS:
            raise ConfigError(f"unknown view {view!r}; {nearest(view, VIEWS)}")
        for field in fields:
            if field not in FIELDS:
                raise ConfigError(f"unknown field {field!r}; {nearest(field, FIELDS)}")
        if num_scenes < 1 or seed < 0:
            raise ConfigError(
                f"{num_scenes} scenes of seed {seed}: give one or more, and seed >= 0"
            )
        self.num_scenes, self.view, self.fields = num_scenes, view, tuple(fields)
        self.seed, self.options = seed, options
        self._records: dict[int, dict[str, np.ndarray]] | None = {} if cache else None

    def __len__(self) -> int:
        return self.num_scenes

    def __repr__(self) -> str:
        # grain writes this into checkpoints, so it says what the data are and nothing else.
        return (
            f"Scenes({self.num_scenes}, view={self.view!r}, fields={self.fields}, "
            f"seed={self.seed}, options={self.options})"
        )

    def identity(self) -> Identity:
        """By the settings that the records are made from, whichever of their fields are read."""
        return identity_of(len(self), self.view, self.seed, self.options)

    def fingerprint(self) -> str:
        """The settings that the records are made from."""
        return repr(self)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not -self.num_scenes <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        index %= self.num_scenes
        if self._records is None:
            return self._draw(index)
        record = self._records.get(index)
        if record is None:
            record = self._draw(index)
            for array in record.values():
                array.flags.writeable = False
            self._records[index] = record
        return dict(record)

    def _draw(self, index: int) -> dict[str, np.ndarray]:
        scene = make_scene(self.seed, index, self.options)
        return {field: np.ascontiguousarray(self._field(scene, field)) for field in self.fields}

    def _field(self, scene: Scene, field: str) -> np.ndarray:
        if field == "clip":
            return np.stack([self._field(scene, name) for name in ("image", "next_image")])
        if field == "clip_mask":
            return np.stack([scene.mask, scene.next_mask])
        if field in ("image", "next_image"):
            array = getattr(scene, field.replace("image", self.view))
            return array if array.ndim == 3 else array[..., None]
        return getattr(scene, field)


def _sheet_row(seed: int, index: int, size: int) -> list[np.ndarray]:
    from vadapt import drawing

    scene = make_scene(seed, index, SceneOptions(size, size))
    real = make_scene(seed, index, SceneOptions(size, size, domain="real"))
    colours = [tuple(PALETTE[kind].tolist()) for kind in scene.box_classes]
    return [
        scene.visible,
        real.visible,
        scene.thermal[..., None],
        drawing.colour_mask(scene.mask, PALETTE),
        drawing.draw_boxes(scene.visible, scene.boxes_xyxy, colours),
        drawing.colour_flow(scene.flow),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a sheet of scenes as a PNG file and print its path."""
    from vadapt import drawing

    parser = argparse.ArgumentParser(prog="python -m vadapt.data.scenes", description=main.__doc__)
    parser.add_argument("--out", required=True, help="the PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=6, help="scenes, one a row")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    options = parser.parse_args(arguments)
    rows = [_sheet_row(options.seed, index, options.size) for index in range(options.count)]
    legend: list[tuple[str, Any]] = [
        (name, tuple(colour)) for name, colour in zip(CLASSES, PALETTE.tolist(), strict=True)
    ]
    sheet = drawing.contact_sheet(
        rows,
        column_titles=["visible", "visible, real", "thermal", "classes", "boxes", "optical flow"],
        row_titles=[str(index) for index in range(options.count)],
        cell=max(160, options.size),
        legend=legend,
    )
    drawing.save_png(options.out, sheet)
    print(options.out)


if __name__ == "__main__":
    main()
