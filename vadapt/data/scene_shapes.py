"""Shapes in an embedded scene: meshes of flat convex faces, in metres.

A mesh is a list of faces painted in order, so that later ones cover earlier ones. Local axes are
x right, y up, z forward; a vehicle drives along +z, so that a viewer at negative z sees its back.
Each face names a slot; the world gives every slot of a thing its colour, temperature and class.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

NUM_CORNERS = 8  # faces of fewer corners repeat their last one

POLYGON, ROUND, LEAFY = 0, 1, 2  # ROUND and LEAFY fill the ellipse inside a face-on rectangle

VEHICLES: tuple[str, ...] = ("car", "taxi", "police car", "van", "pickup", "truck", "bus")
PERSONS: tuple[str, ...] = ("walker", "child", "worker", "jogger", "umbrella", "cyclist")
SIGNS: tuple[str, ...] = (
    "stop",
    "yield",
    "speed limit",
    "parking",
    "warning",
    "no entry",
    "traffic light",
)
VEHICLE_LENGTHS: dict[str, float] = dict(
    zip(VEHICLES, (4.2, 4.2, 4.2, 4.8, 4.8, 6.6, 8.6), strict=True)
)

# Slots of vehicles, persons, signs, trees and buildings: rows of their tables of looks.
BODY, GLASS, TYRE, HOOD, UNDER, TAIL, HEAD, EXTRA, LOAD = range(9)
SKIN, HAIR, TOP, LEGS, SHOES, GEAR, TRIM = range(7)
RIM, PLATE, SYMBOL, POST, ACCENT = range(5)
TRUNK, CROWN_DARK, CROWN, CROWN_LIGHT = range(4)
WALL, ROOF = range(2)


class Mesh(NamedTuple):
    """Faces of one thing; `solid` faces vanish when seen from behind, the others never do."""

    points: Float32[np.ndarray, "p 8 3"]
    num_sides: Int64[np.ndarray, " p"]
    slots: Int64[np.ndarray, " p"]
    shapes: Int64[np.ndarray, " p"]
    solid: Bool[np.ndarray, " p"]


class _Face(NamedTuple):
    corners: tuple  # of (x, y, z), counter-clockwise as seen from outside
    slot: int
    shape: int = POLYGON
    solid: bool = False


def _mesh(*faces: _Face) -> Mesh:
    padded = [list(f.corners) + [f.corners[-1]] * (NUM_CORNERS - len(f.corners)) for f in faces]
    return Mesh(
        np.array(padded, np.float32),
        np.array([len(f.corners) for f in faces], np.int64),
        np.array([f.slot for f in faces], np.int64),
        np.array([f.shape for f in faces], np.int64),
        np.array([f.solid for f in faces], bool),
    )


def _flat(slot: int, *corners: tuple) -> _Face:
    return _Face(tuple((x, y, 0.0) for x, y in corners), slot)


def _rect(slot: int, x0: float, x1: float, y0: float, y1: float, shape: int = POLYGON) -> _Face:
    corners = ((x0, y0, 0.0), (x1, y0, 0.0), (x1, y1, 0.0), (x0, y1, 0.0))
    return _Face(corners, slot, shape)


def _disc(slot: int, x: float, y: float, rx: float, ry: float, shape: int = ROUND) -> _Face:
    return _rect(slot, x - rx, x + rx, y - ry, y + ry, shape)


def _limb(slot: int, x0: float, y0: float, x1: float, y1: float, width: float) -> _Face:
    h = width / 2
    return _flat(slot, (x1 - h, y1), (x1 + h, y1), (x0 + h, y0), (x0 - h, y0))


def _regular(slot: int, y: float, radius: float, sides: int, turn: float = 0.5) -> _Face:
    angles = (np.arange(sides) + turn) * 2 * np.pi / sides - np.pi / 2
    corners = [(float(np.cos(a)) * radius, float(np.sin(a)) * radius + y) for a in angles]
    return _flat(slot, *corners)


class _Box(NamedTuple):
    """The five visible faces of a box whose top may be smaller than its bottom."""

    top: tuple
    back: tuple
    front: tuple
    left: tuple
    right: tuple

    def faces(self, top: int, side: int, front: int, back: int) -> list[_Face]:
        slots = (top, back, front, side, side)
        return [_Face(c, s, POLYGON, True) for c, s in zip(self, slots, strict=True)]


def _box(half: tuple, heights: tuple, low: tuple, high: tuple | None = None) -> _Box:
    """Bottom and top half widths; bottom and top heights; (back, front) of bottom and of top."""
    (w0, w1), (y0, y1), (b0, f0) = half, heights, low
    b1, f1 = high or low
    return _Box(
        top=((-w1, y1, b1), (w1, y1, b1), (w1, y1, f1), (-w1, y1, f1)),
        back=((-w0, y0, b0), (w0, y0, b0), (w1, y1, b1), (-w1, y1, b1)),
        front=((w0, y0, f0), (-w0, y0, f0), (-w1, y1, f1), (w1, y1, f1)),
        left=((-w0, y0, f0), (-w0, y0, b0), (-w1, y1, b1), (-w1, y1, f1)),
        right=((w0, y0, b0), (w0, y0, f0), (w1, y1, f1), (w1, y1, b1)),
    )


def _panel(quad: tuple, slot: int, s0: float, s1: float, t0: float, t1: float) -> _Face:
    """A detail on a face: fractions s of its width and t of its height."""
    a, b, c, d = (np.array(corner) for corner in quad)

    def at(s: float, t: float) -> tuple:
        return tuple((1 - t) * ((1 - s) * a + s * b) + t * ((1 - s) * d + s * c))

    return _Face((at(s0, t0), at(s1, t0), at(s1, t1), at(s0, t1)), slot, POLYGON, True)


def _wheels(half: float, radius: float, back: float, front: float, ends: tuple) -> list[_Face]:
    """Octagons on both sides and, as seen from the ends, blocks under the body."""
    turns = (np.arange(8) + 0.5) * np.pi / 4
    faces = []
    for x, way in ((-half, -1), (half, 1)):
        for z in (back, front):
            ring = [
                (x, radius * (1 + float(np.sin(a))), z + way * radius * float(np.cos(a)))
                for a in turns
            ]
            faces.append(_Face(tuple(ring), TYRE, POLYGON, True))
    low = _box((half, half), (0.1, radius), ends)
    for quad in (low.back, low.front):
        faces.append(_panel(quad, UNDER, 0.0, 1.0, 0.25, 1.0))
        faces += [_panel(quad, TYRE, *span, -0.3, 1.0) for span in ((0.03, 0.2), (0.8, 0.97))]
    return faces


def _lamps(box: _Box, low: float, high: float) -> list[_Face]:
    pairs = ((0.03, 0.2), (0.8, 0.97))
    faces = [_panel(box.back, TAIL, *span, low, high) for span in pairs]
    faces += [_panel(box.front, HEAD, *span, low, high) for span in pairs]
    faces.append(_panel(box.front, UNDER, 0.28, 0.72, low - 0.15, high - 0.1))
    faces.append(_panel(box.back, HEAD, 0.37, 0.63, low - 0.28, low - 0.02))
    return faces


def _glazing(cabin: _Box, low: float = 0.12, panes: int = 2) -> list[_Face]:
    faces = [_panel(quad, GLASS, 0.07, 0.93, low, 0.88) for quad in (cabin.back, cabin.front)]
    for quad in (cabin.left, cabin.right):
        for i in range(panes):
            span = 0.06 + 0.88 * i / panes, 0.06 + 0.88 * (i + 1) / panes - 0.04
            faces.append(_panel(quad, GLASS, *span, low, 0.88))
    return faces


def _saloon(extra: list[_Face], doors: bool = False) -> Mesh:
    lower = _box((0.9, 0.88), (0.3, 0.9), (-2.1, 2.1))
    cabin = _box((0.84, 0.64), (0.9, 1.5), (-1.85, 0.95), (-1.3, 0.15))
    faces = _wheels(0.9, 0.34, -1.3, 1.35, (-2.1, 2.1))[4:]
    faces += lower.faces(HOOD, BODY, BODY, BODY) + cabin.faces(BODY, BODY, BODY, BODY)
    faces += _glazing(cabin) + _lamps(lower, 0.5, 0.82)
    if doors:
        faces += [_panel(quad, EXTRA, 0.25, 0.75, 0.1, 0.95) for quad in (lower.left, lower.right)]
    return _mesh(*faces, *_wheels(0.91, 0.34, -1.3, 1.35, (-2.1, 2.1))[:4], *extra)


def _block(half: float, top: float, length: float, glass: float, panes: int) -> Mesh:
    """A van or a bus: one box whose upper part is glass."""
    body = _box((half, half * 0.94), (0.35, top), (-length / 2, length / 2))
    wheels = _wheels(half + 0.01, 0.38, -length * 0.3, length * 0.32, (-length / 2, length / 2))
    faces = wheels[4:] + body.faces(BODY, BODY, BODY, BODY)
    faces += _glazing(body, glass, panes) + _lamps(body, 0.2, 0.34)
    if panes > 3:
        quads = (body.left, body.right, body.back, body.front)
        faces += [_panel(quad, EXTRA, 0.0, 1.0, glass - 0.14, glass - 0.06) for quad in quads]
    return _mesh(*faces, *wheels[:4])


def _carrier(load_low: float, load_high: float, length: float, half: float, top: float) -> Mesh:
    """A pickup or a truck: a cab in front of an open bed or of a box."""
    ends = -length / 2, length / 2
    cab_back = length * 0.12
    wheels = _wheels(half + 0.01, 0.42, -length * 0.28, length * 0.32, ends)
    load = _box((half, half), (load_low, load_high), (ends[0], cab_back - 0.1))
    hood = ends[1] - 0.9 if top < 2.0 else ends[1] - 0.05
    lower = _box((half, half), (0.4, 1.05), (cab_back, ends[1]))
    cab = _box((half * 0.97, half * 0.8), (1.05, top), (cab_back, hood), (cab_back, hood - 0.3))
    faces = wheels[4:] + lower.faces(HOOD, BODY, BODY, BODY) + cab.faces(BODY, BODY, BODY, BODY)
    faces += _glazing(cab, 0.15, 1)
    faces += load.faces(UNDER if top < 2.0 else LOAD, LOAD, LOAD, LOAD)
    base = _box((half, half), (0.4, 0.95), ends)
    if top >= 2.0:
        faces += [_panel(load.back, EXTRA, 0.485, 0.515, 0.0, 1.0)]
    return _mesh(*faces, *_lamps(base, 0.3, 0.6), *wheels[:4])


@functools.cache
def vehicle_mesh(name: str) -> Mesh:
    """One of `VEHICLES`, its wheels on the ground and its middle at the origin."""
    bar = _box((0.32, 0.3), (1.5, 1.72), (-0.75, -0.35))
    light_bar = _box((0.55, 0.5), (1.5, 1.7), (-0.75, -0.35))
    makers = {
        "car": lambda: _saloon([]),
        "taxi": lambda: _saloon(bar.faces(EXTRA, EXTRA, EXTRA, EXTRA)),
        "police car": lambda: _saloon(light_bar.faces(LOAD, LOAD, LOAD, LOAD), doors=True),
        "van": lambda: _block(0.95, 2.05, 4.8, 0.58, 3),
        "bus": lambda: _block(1.22, 3.0, 8.6, 0.46, 6),
        "pickup": lambda: _carrier(0.55, 1.1, 4.8, 0.92, 1.75),
        "truck": lambda: _carrier(0.75, 3.1, 6.6, 1.15, 2.5),
    }
    return makers[name]()


def _figure(stride: float, legs: int = LEGS, arms: int = TOP, skirt: bool = False) -> list[_Face]:
    reach = stride * 0.8
    faces = [
        _limb(arms, 0.27, 1.42, 0.3 - reach, 0.88, 0.14),
        _limb(legs, 0.07, 0.92, stride, 0.08, 0.2),
        _limb(legs, -0.07, 0.92, -stride, 0.08, 0.2),
        _rect(SHOES, stride - 0.1, stride + 0.15, 0.0, 0.1),
        _rect(SHOES, -stride - 0.1, -stride + 0.15, 0.0, 0.1),
        _flat(TOP, (-0.2, 0.85), (0.2, 0.85), (0.3, 1.4), (0.16, 1.5), (-0.16, 1.5), (-0.3, 1.4)),
        _limb(arms, -0.27, 1.42, -0.3 + reach, 0.88, 0.14),
        _disc(SKIN, 0.3 - reach, 0.86, 0.08, 0.08),
        _disc(SKIN, -0.3 + reach, 0.86, 0.08, 0.08),
        _disc(HAIR, 0.0, 1.69, 0.15, 0.17),
        _disc(SKIN, 0.03, 1.64, 0.115, 0.15),
    ]
    if skirt:
        faces.append(_flat(TOP, (-0.34, 0.5), (0.34, 0.5), (0.2, 0.95), (-0.2, 0.95)))
    return faces


def _cyclist() -> list[_Face]:
    bicycle = []
    for x in (-0.55, 0.55):
        bicycle += [_disc(SHOES, x, 0.34, 0.34, 0.34), _disc(TRIM, x, 0.34, 0.24, 0.24)]
    bicycle += [
        _limb(GEAR, -0.2, 0.85, 0.1, 0.34, 0.08),
        _limb(GEAR, 0.42, 0.9, 0.1, 0.34, 0.08),
        _limb(GEAR, 0.42, 1.0, 0.55, 0.34, 0.08),
        _limb(GEAR, -0.2, 0.85, -0.55, 0.34, 0.08),
    ]
    return [
        *bicycle,
        _limb(LEGS, -0.12, 1.0, 0.2, 0.62, 0.2),
        _limb(LEGS, 0.2, 0.66, 0.06, 0.2, 0.17),
        _flat(TOP, (-0.32, 0.95), (0.0, 0.92), (0.32, 1.4), (0.16, 1.55), (0.0, 1.5)),
        _limb(TOP, 0.22, 1.45, 0.46, 1.02, 0.13),
        _disc(GEAR, 0.33, 1.71, 0.17, 0.16),
        _disc(SKIN, 0.36, 1.64, 0.12, 0.12),
    ]


@functools.cache
def person_mesh(name: str, pose: int) -> Mesh:
    """One of `PERSONS` in one of four poses, feet on the ground, facing the viewer's plane."""
    stride = (0.1, 0.2, 0.28, 0.34)[pose]
    if name == "cyclist":
        return _mesh(*_cyclist())
    if name == "jogger":
        return _mesh(*_figure(stride + 0.12, legs=SKIN, arms=SKIN))
    faces = _figure(stride, skirt=name == "walker" and pose == 1)
    if name == "worker":
        faces += [_rect(TRIM, -0.25, 0.25, y, y + 0.1) for y in (0.95, 1.2)]
        faces.append(_flat(GEAR, (-0.2, 1.7), (0.2, 1.7), (0.14, 1.86), (-0.14, 1.86)))
    elif name == "umbrella":
        dome = ((-0.75, 1.75), (0.75, 1.75), (0.6, 2.05), (0.25, 2.22), (-0.25, 2.22), (-0.6, 2.05))
        faces += [_rect(SHOES, 0.16, 0.2, 1.0, 1.8), _flat(GEAR, *dome)]
    elif name == "child":
        faces += [_rect(GEAR, -0.22, 0.22, 0.95, 1.38), _disc(SKIN, 0.0, 1.68, 0.2, 0.22)]
        faces.append(_flat(HAIR, (-0.2, 1.75), (0.2, 1.75), (0.13, 1.92), (-0.13, 1.92)))
    return _mesh(*faces)


def _plate(name: str) -> list[_Face]:
    y, r = 2.5, 0.5
    if name == "stop":
        return [_regular(RIM, y, r, 8), _regular(PLATE, y, r * 0.87, 8)] + [
            _rect(SYMBOL, -0.3, 0.3, y - 0.09, y + 0.09)
        ]
    if name == "yield":
        return [_regular(RIM, y + 0.1, 0.62, 3, 0.0), _regular(PLATE, y + 0.1, 0.36, 3, 0.0)]
    if name == "speed limit":
        digits = [_rect(SYMBOL, x, x + 0.14, y - 0.16, y + 0.16) for x in (-0.18, 0.04)]
        return [_disc(RIM, 0.0, y, r, r), _disc(PLATE, 0.0, y, r * 0.74, r * 0.74), *digits]
    if name == "parking":
        square = [_rect(RIM, -0.46, 0.46, y - 0.46, y + 0.46)]
        square.append(_rect(PLATE, -0.41, 0.41, y - 0.41, y + 0.41))
        loop = [_disc(SYMBOL, 0.04, y + 0.12, 0.2, 0.18), _disc(PLATE, 0.04, y + 0.12, 0.09, 0.08)]
        return [*square, *loop, _rect(SYMBOL, -0.18, -0.06, y - 0.3, y + 0.3)]
    if name == "warning":
        diamond = [_regular(RIM, y, 0.58, 4, 0.0), _regular(PLATE, y, 0.5, 4, 0.0)]
        return [*diamond, _rect(SYMBOL, -0.06, 0.06, y - 0.25, y + 0.25)]
    if name == "no entry":
        return [_disc(RIM, 0.0, y, r, r), _disc(PLATE, 0.0, y, r * 0.92, r * 0.92)] + [
            _rect(SYMBOL, -0.33, 0.33, y - 0.1, y + 0.1)
        ]
    lamps = [_disc(s, 0.0, y + dy, 0.15, 0.15) for s, dy in ((SYMBOL, 0.4), (SYMBOL, 0.0))]
    return [
        _rect(PLATE, -0.24, 0.24, y - 0.62, y + 0.62),
        *lamps,
        _disc(ACCENT, 0.0, y - 0.4, 0.15, 0.15),
    ]


@functools.cache
def sign_mesh(name: str) -> Mesh:
    """One of `SIGNS`, facing the viewer on a post; the post has a slot of its own."""
    return _mesh(_rect(POST, -0.06, 0.06, 0.0, 2.4), *_plate(name))


@functools.cache
def lamp_mesh() -> Mesh:
    """A street lamp six metres high whose arm reaches over negative x; slots POST and SYMBOL."""
    return _mesh(
        _rect(POST, -0.09, 0.09, 0.0, 5.8),
        _flat(POST, (-1.5, 5.85), (-1.5, 5.72), (0.09, 5.6), (0.09, 5.8)),
        _rect(SYMBOL, -1.85, -1.15, 5.68, 5.88),
    )


@functools.cache
def tree_mesh(kind: str, variant: int) -> Mesh:
    """A 'broad' or 'conifer' tree or a 'bush', about six (a bush one and a half) metres high."""
    rng = np.random.default_rng(variant)
    if kind == "conifer":
        layers = [(1.0, 1.5, 3.2), (2.2, 1.2, 2.8), (3.4, 0.85, 2.4)]
        slots = (CROWN_DARK, CROWN, CROWN_LIGHT)
        cones = [
            _flat(slot, (-w, y), (w, y), (0.05, y + h), (-0.05, y + h))
            for slot, (y, w, h) in zip(slots, layers, strict=True)
        ]
        return _mesh(_rect(TRUNK, -0.12, 0.12, 0.0, 1.3), *cones)
    faces = []
    count, spread, low, size = (5, 1.1, 3.4, 1.35) if kind == "broad" else (3, 0.6, 0.5, 0.62)
    if kind == "broad":
        faces.append(_flat(TRUNK, (-0.17, 0.0), (0.17, 0.0), (0.1, 3.2), (-0.1, 3.2)))
    for i in range(count):
        x, y = (
            rng.uniform(-spread, spread),
            low + rng.uniform(-0.3, 0.9) * spread * (0.5 + i / count),
        )
        r = size * rng.uniform(0.75, 1.1)
        slot = (CROWN_DARK, CROWN, CROWN_LIGHT)[min(2, i * 3 // count)]
        faces.append(_disc(slot, float(x), float(y), float(r), float(r) * 0.85, LEAFY))
    return _mesh(*faces)


@functools.cache
def building_mesh(gabled: bool) -> Mesh:
    """A unit block, x and z from -0.5 to 0.5 and y from 0 to 1, its top third a roof if gabled."""
    if not gabled:
        return _mesh(*_box((0.5, 0.5), (0.0, 1.0), (-0.5, 0.5)).faces(ROOF, WALL, WALL, WALL))
    walls = _box((0.5, 0.5), (0.0, 0.66), (-0.5, 0.5))
    roof = _box((0.54, 0.03), (0.65, 1.0), (-0.52, 0.52), (-0.5, 0.5))
    return _mesh(*walls.faces(WALL, WALL, WALL, WALL), *roof.faces(ROOF, ROOF, WALL, WALL))


@functools.cache
def hill_mesh(variant: int) -> Mesh:
    """A far wooded ridge about two hundred metres wide; slots of trees."""
    rng = np.random.default_rng(100 + variant)
    faces = [_rect(CROWN_DARK, -95.0, 95.0, 0.0, 4.0)]
    for x in np.linspace(-80, 80, 8):
        width, height = float(rng.uniform(14, 26)), float(rng.uniform(3, 7))
        faces.append(_disc(CROWN_DARK, float(x), height, width, height, LEAFY))
    return _mesh(*faces)
