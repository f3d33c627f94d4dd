"""Two cameras for an embedded scene: rasterising, optical flow, visible and infrared pictures.

Every face is flat, so that 1 / depth is linear over its pixels: one formula gives depth, texture
coordinates and the exact motion of every pixel. Faces are painted far to near on a grid of twice
the picture's resolution, which pictures average; the mask takes the commonest of four samples.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from vadapt.data.scene_shapes import LEAFY, POLYGON
from vadapt.data.scene_world import (
    NUM_GROUND_PARTS,
    PART_KERB,
    PART_MARK,
    PART_ROAD,
    PART_SIDEWALK,
    PART_TERRAIN,
    POLE,
    Finish,
    World,
)

OVERSAMPLING = 2
COLUMN = {name: i for i, name in enumerate(Finish._fields)}
_TILE = 256  # side of the periodic noise pictures


@functools.cache
def _tile(kind: str) -> Float32[np.ndarray, "256 256"]:
    """Periodic noise of mean 0 and deviation 1: 'cloudy' (1/f), 'rough' (nearly white), 'white';
    'even' is uniform from 0 to 1."""
    rng = np.random.Generator(np.random.PCG64(7))
    if kind == "even":
        return rng.random((_TILE, _TILE), np.float32)
    white = rng.standard_normal((_TILE, _TILE))
    if kind == "white":
        return white.astype(np.float32)
    rows, columns = np.meshgrid(np.fft.fftfreq(_TILE), np.fft.fftfreq(_TILE), indexing="ij")
    radius = np.maximum(np.hypot(rows, columns), 1.0 / _TILE)
    power = {"cloudy": 1.6, "rough": 0.55}[kind]
    shaped = np.fft.ifft2(np.fft.fft2(white) / radius**power).real
    return ((shaped - shaped.mean()) / shaped.std()).astype(np.float32)


def noise_at(kind: str, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Noise at texture coordinates in cells; any shapes that broadcast."""
    cells = (t.astype(np.int32) & (_TILE - 1)) * _TILE + (s.astype(np.int32) & (_TILE - 1))
    return _tile(kind).ravel()[cells]


def noise_picture(kind: str, height: int, width: int, row: int, column: int) -> np.ndarray:
    """A [height, width] cut of a noise picture that starts at (row, column)."""
    rows, columns = (np.arange(height) + row) % _TILE, (np.arange(width) + column) % _TILE
    return _tile(kind)[rows[:, None], columns]


class Frame:
    """The scene's faces at frame t (0 or 1) on the sampling grid; everything is made on demand."""

    def __init__(self, world: World, time: int, height: int, width: int):
        self.world, self.time, self.height, self.width = world, time, height, width
        street = world.street
        self.focal = 1.25 * float(np.sqrt(height * width))
        self.centre_x = (street.centre + street.pan[0] * time) * width
        self.horizon_y = (street.horizon + street.pan[1] * time) * height
        self.ego = np.array(street.ego, np.float32) * time
        shift = (world.velocities * time - self.ego)[world.owners]  # [p, 2]
        self.points = world.points.copy()
        self.points[..., 0] += shift[:, None, 0]
        self.points[..., 2] += shift[:, None, 1]
        np.maximum(self.points[..., 2], 0.3, out=self.points[..., 2])
        self.points[..., 1] -= street.camera_height

    @functools.cached_property
    def u(self) -> Float32[np.ndarray, " w"]:
        """Columns of the sampling grid, pixels right of the vanishing point."""
        samples = (np.arange(self.width * OVERSAMPLING) + 0.5) / OVERSAMPLING
        return (samples - self.centre_x).astype(np.float32)

    @functools.cached_property
    def v(self) -> Float32[np.ndarray, " h"]:
        """Rows of the sampling grid, pixels above the horizon."""
        samples = (np.arange(self.height * OVERSAMPLING) + 0.5) / OVERSAMPLING
        return (self.horizon_y - samples).astype(np.float32)

    @functools.cached_property
    def normals(self) -> Float32[np.ndarray, "p 3"]:
        """Unit normals of the faces, towards the viewer of their front."""
        a, b, c = self.points[:, 0], self.points[:, 1], self.points[:, 2]
        e, g = b - a, c - a
        cross = e[:, [2, 0, 1]] * g[:, [1, 2, 0]] - e[:, [1, 2, 0]] * g[:, [2, 0, 1]]
        return cross / np.sqrt(np.maximum((cross * cross).sum(1, keepdims=True), 1e-12))

    @functools.cached_property
    def planes(self) -> Float32[np.ndarray, "3 r"]:
        """Per part (a, b, c) with 1 / depth = a u + b v + c."""
        distance = (self.normals * self.points[:, 0]).sum(1)
        distance = np.where(np.abs(distance) < 1e-4, np.float32(1e-4), distance)
        faces = (self.normals / distance[:, None]).T  # [3, p]
        planes = np.zeros((3, NUM_GROUND_PARTS + faces.shape[1]), np.float32)
        planes[:, NUM_GROUND_PARTS:] = faces
        planes[1, PART_TERRAIN:NUM_GROUND_PARTS] = -1.0 / self.world.street.camera_height
        planes[:2] /= self.focal
        return planes

    @functools.cached_property
    def parts(self) -> Int64[np.ndarray, "h w"]:
        """The part seen by every sample: a ground part, or a face counted from NUM_GROUND_PARTS."""
        canvas = np.zeros((len(self.v), len(self.u)), np.int64)
        below = int(np.count_nonzero(self.v >= 0))
        if below < len(self.v):
            _paint_ground(canvas[below:], self, below)
        _paint_faces(canvas, self)
        return canvas

    @functools.cached_property
    def shadow(self) -> Bool[np.ndarray, "h w"]:
        """Whether a sample, if it is on the ground, lies in a thing's shadow."""
        canvas = np.zeros((len(self.v), len(self.u)), bool)
        _paint_shadows(canvas, self)
        return canvas

    @functools.cached_property
    def inverse_depth(self) -> Float32[np.ndarray, "h w"]:
        """1 / metres of every sample; 0 for the sky."""
        a, b, c = self.planes
        parts = self.parts
        depth = a.take(parts) * self.u + b.take(parts) * self.v[:, None] + c.take(parts)
        return np.maximum(depth, 0.0, out=depth)

    @functools.cached_property
    def seen(self) -> Int64[np.ndarray, "h w"]:
        """The part of every pixel: one whose owner holds most of the pixel's four samples."""
        world = self.world
        owners = np.concatenate([_GROUND_OWNERS, 16 * (world.owners + 1)])
        owners[NUM_GROUND_PARTS:] += world.table[NUM_GROUND_PARTS:, COLUMN["kind"]].astype(np.int64)
        a, b, c, d = (self.parts[i::2, j::2] for i in (0, 1) for j in (0, 1))
        oa, ob, oc, od = (owners.take(part) for part in (a, b, c, d))
        rest = np.where((ob == oc) | (ob == od), b, np.where(oc == od, c, a))
        return np.where((oa == ob) | (oa == oc) | (oa == od), a, rest)

    def classes(self) -> UInt8[np.ndarray, "h w"]:
        """Class id of every pixel."""
        return self.world.table[:, COLUMN["kind"]].astype(np.uint8).take(self.seen)

    def things(self) -> Int64[np.ndarray, "h w"]:
        """Thing of every pixel, from 1, where it is an instance and not its post; else 0."""
        world = self.world
        kinds = world.table[NUM_GROUND_PARTS:, COLUMN["kind"]]
        counted = (world.categories[world.owners] >= 0) & (kinds != POLE)
        ids = np.zeros(NUM_GROUND_PARTS + len(kinds), np.int64)
        ids[NUM_GROUND_PARTS:] = np.where(counted, world.owners + 1, 0)
        return ids.take(self.seen)

    def flow(self) -> Float32[np.ndarray, "h w 2"]:
        """Motion (x, y) in pixels of every pixel centre from this frame to the next."""
        world, street = self.world, self.world.street
        u = ((np.arange(self.width) + 0.5) - self.centre_x).astype(np.float32)
        v = (self.horizon_y - (np.arange(self.height) + 0.5)).astype(np.float32)[:, None]
        motion = np.zeros((2, len(world.owners) + NUM_GROUND_PARTS), np.float32)
        motion[:, NUM_GROUND_PARTS:] = world.velocities[world.owners].T
        motion -= np.array(street.ego, np.float32)[:, None]
        parts = self.seen
        a, b, c = (plane.take(parts) for plane in self.planes)
        near = np.maximum(a * u + b * v + c, 0.0)  # 1 / depth
        recede = np.maximum(1.0 + motion[1].take(parts) * near, 0.1)
        new_u = (u + self.focal * motion[0].take(parts) * near) / recede
        flow_x = new_u - u + np.float32(street.pan[0] * self.width)
        flow_y = v - v / recede + np.float32(street.pan[1] * self.height)
        return np.stack([flow_x, flow_y], -1).astype(np.float32)


_GROUND_OWNERS = np.array([0, 1, 2, 3, 2, 3], np.int64)  # marks are road, kerbs sidewalk


def _paint_ground(canvas: np.ndarray, frame: Frame, first_row: int) -> None:
    street = frame.world.street
    depth = street.camera_height * frame.focal / -frame.v[first_row:]  # [h]
    x = frame.u * (depth / frame.focal)[:, None] + frame.ego[0]  # metres in the world
    z = depth + frame.ego[1]
    left, right = street.road
    kerb = street.kerb
    level = ((x > street.sidewalk[0]) & (x < street.sidewalk[1])).astype(np.uint8)
    level += (x > left - kerb) & (x < right + kerb)
    on_road = (x > left) & (x < right)
    level += on_road
    ids = np.array([PART_TERRAIN, PART_SIDEWALK, PART_KERB, PART_ROAD], np.int64)
    if not kerb:
        ids = np.array([PART_TERRAIN, PART_TERRAIN, PART_ROAD, PART_ROAD], np.int64)
    canvas[:] = ids.take(level)
    dashed = ((z / 5.0) % 1.0 < 0.5)[:, None]
    marks = (np.abs(x - street.middle) < 0.09) & dashed
    for edge in street.edges:
        marks |= np.abs(x - edge) < 0.07
    near, far = street.crossing
    rows = (z > near) & (z < far)
    marks[rows] = ((x[rows] * 0.8) % 1.0 < 0.5) & on_road[rows]
    canvas[marks] = PART_MARK
    near, far = street.side_road
    rows = (z > near) & (z < far)
    canvas[rows] = PART_ROAD


def _project(frame: Frame, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image positions of camera points, in samples."""
    scale = frame.focal * OVERSAMPLING / points[..., 2]
    x = points[..., 0] * scale + frame.centre_x * OVERSAMPLING
    return x, frame.horizon_y * OVERSAMPLING - points[..., 1] * scale


class _Spans(NamedTuple):
    """Runs of samples that convex polygons cover, row by row, in the order of the polygons."""

    polygons: np.ndarray  # [n]
    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def samples(self, width: int) -> np.ndarray:
        """Flat ids of all samples on a grid of this width."""
        ends = np.cumsum(self.lengths)
        first = self.rows * width + self.starts - (ends - self.lengths)
        return np.repeat(first, self.lengths) + np.arange(ends[-1] if len(ends) else 0)


def _spans(x: np.ndarray, y: np.ndarray, shapes: np.ndarray, canvas: tuple) -> _Spans:
    """Where polygons with corners x, y [k, n], or the ellipses in them, cover sample centres."""
    height, width = canvas
    top = np.clip(np.ceil(y.min(0) - 0.5), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(y.max(0) - 0.5), 0, height).astype(np.int64)
    shown = (top < bottom) & (x.max(0) > 0) & (x.min(0) < width)
    counts = np.where(shown, bottom - top, 0)
    polygons = np.repeat(np.arange(x.shape[1]), counts)
    rows = np.arange(len(polygons)) + np.repeat(top - (np.cumsum(counts) - counts), counts)
    middle = (rows + 0.5).astype(np.float32)
    # An edge bounds a row from the left or from the right: x >= or <= slope * row + offset.
    next_x, next_y = np.concatenate([x[1:], x[:1]]), np.concatenate([y[1:], y[:1]])
    fall = next_y - y
    level = fall == 0
    slope = (next_x - x) / np.where(level, 1.0, fall)
    offset = x - slope * y
    is_left = (fall > 0) != ((x * next_y - next_x * y).sum(0) > 0)
    bounds = slope.take(polygons, 1) * middle + offset.take(polygons, 1)
    left = (bounds + np.where(is_left & ~level, 0.0, -np.inf).take(polygons, 1)).max(0)
    right = (bounds + np.where(is_left | level, np.inf, 0.0).take(polygons, 1)).min(0)
    curved = np.flatnonzero(shapes.take(polygons) != POLYGON)
    which = polygons[curved]
    centre, radius = (x[0] + x[1])[which] / 2, np.abs(x[1] - x[0])[which] / 2
    across = 2 * middle[curved] - (y[0] + y[2])[which]
    across = across / np.maximum(np.abs(y[2] - y[0])[which], 1e-6)
    reach = radius * np.sqrt(np.maximum(1 - across * across, 0.0))
    reach = np.where(shapes[which] == LEAFY, radius, reach)
    left[curved], right[curved] = centre - reach, centre + reach
    starts = np.clip(np.ceil(left - 0.5), 0, width).astype(np.int64)
    stops = np.clip(np.ceil(right - 0.5), 0, width).astype(np.int64)
    return _Spans(polygons, rows, starts, np.maximum(stops - starts, 0))


def _paint_faces(canvas: np.ndarray, frame: Frame) -> None:
    world = frame.world
    front = (frame.normals * frame.points[:, 0]).sum(1) < 0
    faces = np.flatnonzero(front | ~world.solid)
    x, y = _project(frame, frame.points[faces].transpose(1, 0, 2))
    shapes = world.shapes[faces]
    spans = _spans(x, y, shapes, canvas.shape)
    width = canvas.shape[1]
    samples = spans.samples(width)
    painted = np.repeat(faces[spans.polygons], spans.lengths)
    ragged = np.flatnonzero(world.shapes.take(painted) == LEAFY)
    if len(ragged):
        face = painted[ragged]
        local = np.searchsorted(faces, face)
        rows, columns = np.divmod(samples[ragged], width)
        x0, x1, y0, y2 = x[0, local], x[1, local], y[0, local], y[2, local]
        dx = (2 * columns + 1 - x0 - x1) / np.abs(x1 - x0)
        dy = (2 * rows + 1 - y0 - y2) / np.abs(y2 - y0)
        # Leaves have a size of their own, whatever the crown's: metres set the number of cells.
        cells = 11 + 2 * np.abs(frame.points[face, 1, 0] - frame.points[face, 0, 0])
        noise = noise_at("rough", dx * cells + 37 * face + 128, dy * cells + 128)
        kept = np.ones(len(samples), bool)
        kept[ragged] = dx * dx + dy * dy + 0.22 * noise <= 1.0
        samples, painted = samples[kept], painted[kept]
    # Later faces are nearer; of repeated ids NumPy keeps the last.
    canvas.reshape(-1)[samples] = painted + NUM_GROUND_PARTS


def _paint_shadows(canvas: np.ndarray, frame: Frame) -> None:
    world, weather = frame.world, frame.world.weather
    cast = np.flatnonzero(world.shadows[:, 0] > 0)
    size = world.shadows[cast]
    place = (world.origins + world.velocities * frame.time - frame.ego)[cast]
    away = np.array([-weather.sun[0], -weather.sun[2]]) / max(weather.sun[1], 0.3)
    block = (size[:, 2] > 4.0)[:, None, None]  # a building's facade casts its shadow, not its front
    length = np.where(size[:, 2] > 4.0, size[:, 2], 1.5) * (weather.sunlight > 0.3)
    half = size[:, :2]
    corner = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    foot = place[:, None] + corner * half[:, None]  # [m, 4, 2]
    front = place[:, None] + np.array([(-1.0, 0.0), (1.0, 0.0)]) * half[:, None]  # [m, 2, 2]
    inner = -np.sign(place[:, :1]) * half[:, :1] + place[:, :1]
    facade = np.stack([np.repeat(inner, 2, 1), place[:, 1:] + half[:, 1:] * (-1.0, 1.0)], -1)
    wide = np.where(block, facade, front)
    fallen = np.concatenate([wide, wide[:, ::-1] + (length[:, None] * away)[:, None]], 1)
    quads = np.concatenate([foot, fallen])
    heights = np.full((*quads.shape[:2], 1), -world.street.camera_height)
    points = np.concatenate([quads[..., :1], heights, np.maximum(quads[..., 1:], 0.5)], -1)
    x, y = _project(frame, points.transpose(1, 0, 2))
    spans = _spans(x, y, np.zeros(len(points), np.int64), canvas.shape)
    canvas.reshape(-1)[spans.samples(canvas.shape[1])] = True
