"""The world of one embedded scene: a street, what stands on it, how it looks and how warm it is.

Metres, degrees Celsius and colours from 0 to 1; the camera stands at x = z = 0 and looks along +z.
Where things stand is drawn from one stream of random numbers and how they look from another, so
that both domains share their geometry.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vadapt.data.scene_shapes import PERSONS, SIGNS, VEHICLES, Mesh

CLASSES = (
    "terrain",
    "road",
    "sidewalk",
    "building",
    "vegetation",
    "sky",
    "vehicle",
    "person",
    "pole",
    "sign",
)
TERRAIN, ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, VEHICLE, PERSON, POLE, SIGN = range(10)
CATEGORIES = VEHICLES + PERSONS + SIGNS
# From frequent to rare when the options ask for a long tail; classes alternate along it.
RARITY = (
    "car", "walker", "speed limit", "van", "stop", "child", "truck", "traffic light", "cyclist",
    "bus", "yield", "umbrella", "parking", "taxi", "jogger", "warning", "pickup", "no entry",
    "worker", "police car",
)  # fmt: skip

# Parts that are not faces of things: ids into the tables of every world.
PART_SKY, PART_TERRAIN, PART_ROAD, PART_SIDEWALK, PART_MARK, PART_KERB, NUM_GROUND_PARTS = range(7)
LANE = 3.5
NEAR = 1.2  # metres; buildings are cut here, things start farther away


class Dice:
    """Random numbers drawn in blocks: a scene needs hundreds, single draws cost time."""

    def __init__(self, *entropy: int):
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self._values: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._values:
            self._values = self._generator.random(512).tolist()
        return low + (high - low) * self._values.pop()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def index(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.uniform() * count)

    def colour(self, low: float, high: float, spread: float) -> tuple:
        """A grey between low and high whose channels differ by up to `spread`."""
        grey = self.uniform(low, high)
        return tuple(grey + self.uniform(-spread, spread) for _ in range(3))


class Finish(NamedTuple):
    """The look and warmth of one slot of a thing: a row of the world's table."""

    red: float
    green: float
    blue: float
    kind: float  # class id
    temp: float  # degrees Celsius
    temp_rise: float = 0.0  # degrees a metre of height
    grain: float = 0.04  # contrast of the visible texture
    rough: float = 0.15  # degrees of thermal texture
    cells: float = 10.0  # texture cells a metre
    glow: float = 0.0  # light of its own, seen at night
    pitch_s: float = 0.0  # metres between windows, 0 for none
    pitch_t: float = 1.0  # metres between storeys
    salt: float = 0.0  # which windows are lit and which leak


def finish(colour: tuple, kind: int, temp: float, **others: float) -> Finish:
    """A row from a colour, a class and a temperature."""
    return Finish(colour[0], colour[1], colour[2], float(kind), temp, **others)


@dataclasses.dataclass(frozen=True)
class Weather:
    """Light and heat of one scene, drawn by `make_weather`."""

    night: bool
    rain: bool
    real: bool
    sun: tuple  # unit vector towards the sun
    sunlight: float
    ambient: tuple
    zenith: tuple
    horizon: tuple
    clouds: float
    haze: float  # 1 / metres
    grain: float  # noise of the visible camera, 0-1
    air: float  # degrees
    solar: float  # 0-1, how much the sun has heated things
    sky_zenith: float  # degrees
    sky_horizon: float
    thermal_noise: float  # grey levels
    thermal_contrast: float
    thermal_level: float


@dataclasses.dataclass(frozen=True)
class Street:
    """The ground: bounds in x from left to right, and cross streets in z."""

    road: tuple  # (left, right), metres
    kerb: float  # width; 0 for none
    sidewalk: tuple  # outer bounds, beyond which is terrain
    middle: float  # x of the dashed line
    edges: tuple  # x of the edge lines, beyond which one parks
    crossing: tuple  # (near, far) of the zebra; both 0 for none
    side_road: tuple  # (near, far) of the street that crosses; both 0 for none
    camera_height: float
    horizon: float  # fraction of the picture's height
    centre: float  # fraction of the width
    ego: tuple  # metres (x, z) from frame t to t + 1
    pan: tuple  # fractions of the picture's size (x, y), likewise


class Thing(NamedTuple):
    """A mesh set down in the world."""

    mesh: Mesh
    finishes: list[Finish]
    x: float
    z: float
    scale: tuple
    yaw: float = 0.0
    velocity: tuple = (0.0, 0.0)  # metres (x, z) a frame
    category: int = -1
    shadow: tuple = (0.0, 0.0)  # footprint (x, z) in metres; 0 casts none


@dataclasses.dataclass(frozen=True)
class World:
    """A scene before any camera looks at it; arrays over faces (p) and things (t), far to near."""

    street: Street
    weather: Weather
    points: Float32[np.ndarray, "p 8 3"]
    num_sides: Int64[np.ndarray, " p"]
    shapes: Int64[np.ndarray, " p"]
    solid: Bool[np.ndarray, " p"]
    owners: Int64[np.ndarray, " p"]  # thing of a face
    table: Float32[np.ndarray, "r f"]  # ground parts, then faces; columns as in Finish
    origins: Float32[np.ndarray, "t 2"]
    velocities: Float32[np.ndarray, "t 2"]
    categories: Int64[np.ndarray, " t"]  # -1 for what is no instance
    shadows: Float32[np.ndarray, "t 3"]  # footprint (x, z) and height


def build_world(
    street: Street, weather: Weather, ground: list[Finish], things: list[Thing]
) -> World:
    """Gather the faces of all things, which come in the order of painting: far to near."""
    meshes = [thing.mesh for thing in things]
    owners = np.repeat(np.arange(len(things)), [len(mesh.slots) for mesh in meshes])
    places = np.array(
        [
            (*thing.scale, thing.x, thing.z, math.cos(thing.yaw), math.sin(thing.yaw))
            for thing in things
        ],
        np.float32,
    )
    width, height, length, x, z, cos, sin = places[owners].T[..., None]
    points = np.concatenate([mesh.points for mesh in meshes])
    right, forward = points[..., 0] * width, points[..., 2] * length
    points[..., 0] = right * cos + forward * sin + x
    points[..., 1] *= height
    points[..., 2] = forward * cos - right * sin + z
    # One table for all slots of all things, from which every face takes its row.
    starts = np.cumsum([0] + [len(thing.finishes) for thing in things[:-1]])
    rows = np.array([*ground, *(row for thing in things for row in thing.finishes)], np.float32)
    slots = np.concatenate([mesh.slots for mesh in meshes]) + starts[owners] + len(ground)
    return World(
        street=street,
        weather=weather,
        points=points,
        num_sides=np.concatenate([mesh.num_sides for mesh in meshes]),
        shapes=np.concatenate([mesh.shapes for mesh in meshes]),
        solid=np.concatenate([mesh.solid for mesh in meshes]),
        owners=owners,
        table=rows[np.concatenate([np.arange(len(ground)), slots])],
        origins=places[:, 3:5],
        velocities=np.array([thing.velocity for thing in things], np.float32),
        categories=np.array([thing.category for thing in things], np.int64),
        shadows=np.array([(*thing.shadow, thing.scale[1]) for thing in things], np.float32),
    )
