"""Layout of an embedded scene: who stands where, in which colours and how warm."""

from __future__ import annotations

import functools
import math

import numpy as np
from jaxtyping import Float64

from vadapt.data import scene_shapes as shapes
from vadapt.data.scene_looks import (
    building_finishes,
    crown_finishes,
    ground_finishes,
    lamp_finishes,
    make_weather,
    person_finishes,
    sign_finishes,
    vehicle_finishes,
)
from vadapt.data.scene_shapes import PERSONS, SIGNS, VEHICLE_LENGTHS, VEHICLES
from vadapt.data.scene_world import (
    CATEGORIES,
    LANE,
    NEAR,
    RARITY,
    Dice,
    Street,
    Thing,
    Weather,
    World,
    build_world,
)


@functools.cache
def _category_limits(long_tail: float) -> Float64[np.ndarray, " k"]:
    """Cumulative weights of the categories; exp(long_tail) from commonest to rarest."""
    ranks = np.array([RARITY.index(name) for name in CATEGORIES])
    # Small things hide behind large ones: drawn so, categories are seen about equally often.
    share = np.array([1.0 if c in VEHICLES else 1.7 if c in PERSONS else 1.35 for c in CATEGORIES])
    weights = share * np.exp(-long_tail * ranks / (len(CATEGORIES) - 1))
    return np.cumsum(weights / weights.sum())


def make_street(dice: Dice, kind: str) -> Street:
    """Draw the ground of an 'urban', 'suburb' or 'rural' street, and the camera's place on it."""
    parking = kind != "rural" and dice.chance(0.6)
    strip = 2.2 if parking else 0.15
    edges = (-LANE * 1.5, LANE * 0.5)
    road = (edges[0] - strip, edges[1] + strip)
    walk = (0.0, 0.0) if kind == "rural" else (dice.uniform(1.8, 3.4), dice.uniform(1.8, 3.4))
    zebra = dice.uniform(6.0, 16.0)
    side = dice.uniform(18.0, 34.0)
    # From the middle of the lane or, as a walker sees it, from the sidewalk.
    outer = edges[1] + strip + (walk[1] - 1.2 if walk[1] else 0.6)
    shift = dice.uniform(-1.0, 1.0) if dice.chance(0.5) else dice.uniform(1.0, outer)
    edges = (edges[0] - shift, edges[1] - shift)
    road = (road[0] - shift, road[1] - shift)
    has_zebra, has_side = kind != "rural" and dice.chance(0.35), dice.chance(0.35)
    return Street(
        road=road,
        kerb=0.0 if kind == "rural" else 0.25,
        sidewalk=(road[0] - walk[0], road[1] + walk[1]),
        middle=-LANE * 0.5 - shift,
        edges=edges,
        crossing=(zebra, zebra + 3.0) if has_zebra else (0.0, 0.0),
        side_road=(side, side + 8.0) if has_side else (0.0, 0.0),
        camera_height=dice.uniform(1.5, 2.1),
        horizon=dice.uniform(0.44, 0.6),
        centre=dice.uniform(0.38, 0.62),
        ego=(dice.uniform(-0.06, 0.06), dice.uniform(0.0, 0.7) * (not dice.chance(0.2))),
        pan=(dice.uniform(-0.008, 0.008), dice.uniform(-0.005, 0.005)),
    )


def _buildings(dice: Dice, look: Dice, weather: Weather, street: Street, kind: str) -> list[Thing]:
    things = []
    for side in (0, 1):
        way = (-1, 1)[side]
        z = dice.uniform(-8.0, 2.0)
        while z < 85:
            urban = kind == "urban"
            length = dice.uniform(8.0, 16.0) if urban else dice.uniform(8.0, 12.0)
            height = dice.uniform(7.0, 20.0) if urban else dice.uniform(5.5, 8.5)
            setback = 0.3 if urban else dice.uniform(3.0, 6.0)
            gap = 0.0 if urban and dice.chance(0.75) else dice.uniform(2.0, 8.0)
            gabled = height < 10 and dice.chance(0.7)
            depth = dice.uniform(8.0, 14.0)
            near, far = max(z, NEAR), z + length
            z += length + gap + (0 if urban else dice.uniform(2.0, 10.0))
            blocked = street.side_road[0] < far and near < street.side_road[1]
            skipped = dice.chance(0.12 if urban else 0.3)
            if blocked or skipped or far < 6:
                continue
            x = street.sidewalk[side] + way * (setback + depth / 2)
            rows = building_finishes(look, weather, height, urban)
            mesh = shapes.building_mesh(gabled)
            size = (depth, height, far - near)
            foot = (depth / 2, (far - near) / 2)
            things.append(Thing(mesh, rows, x, (near + far) / 2, size, shadow=foot))
    return things


def _skyline(dice: Dice, look: Dice, weather: Weather, kind: str) -> list[Thing]:
    if kind != "urban" or dice.chance(0.3):
        rows = crown_finishes(look, weather, 0.75)
        x = dice.uniform(-15.0, 15.0)
        return [Thing(shapes.hill_mesh(dice.index(4)), rows, x, 130.0, (1.0, 1.0, 1.0))]
    things = []
    for x in (-45.0, -24.0, -6.0, 12.0, 30.0):
        height = dice.uniform(10.0, 26.0)
        rows = building_finishes(look, weather, height, True)
        size = (dice.uniform(12.0, 20.0), height, 10.0)
        things.append(Thing(shapes.building_mesh(False), rows, x, dice.uniform(108.0, 125.0), size))
    return things


def _greenery(dice: Dice, look: Dice, weather: Weather, street: Street, kind: str) -> list[Thing]:
    count = {"urban": dice.index(6), "suburb": 3 + dice.index(6), "rural": 8 + dice.index(8)}[kind]
    things = []
    for _ in range(count):
        side = dice.index(2)
        way = (-1, 1)[side]
        spread = {
            "urban": -0.7,
            "suburb": dice.uniform(-0.6, 5.0),
            "rural": dice.uniform(1.0, 14.0),
        }[kind]
        x = street.sidewalk[side] + way * spread
        z = dice.uniform(6.0, 60.0)
        bush = kind != "urban" and dice.chance(0.35)
        name = "bush" if bush else ("conifer" if dice.chance(0.25) else "broad")
        mesh = shapes.tree_mesh(name, dice.index(6))
        size = dice.uniform(0.75, 1.35)
        if street.side_road[0] - 1 < z < street.side_road[1] + 1:
            continue
        scale = (size, size * dice.uniform(0.9, 1.15), 1.0)
        rows = crown_finishes(look, weather)
        things.append(Thing(mesh, rows, x, z, scale, shadow=(1.0 if bush else 1.9, 0.9)))
    return things


def _lamps(dice: Dice, look: Dice, weather: Weather, street: Street) -> list[Thing]:
    rows = lamp_finishes(look, weather)
    things = []
    sides = (0, 1) if dice.chance(0.5) else (dice.index(2),)
    for side in sides:
        z = dice.uniform(6.0, 14.0)
        step = dice.uniform(11.0, 18.0)
        x = street.road[side] + (-0.6, 0.6)[side]
        while z < 60:
            scale = ((1.0, -1.0)[1 - side], 1.0, 1.0)
            things.append(Thing(shapes.lamp_mesh(), rows, x, z, scale, shadow=(0.12, 0.12)))
            z += step
    return things


class _Lanes:
    """Finds room for vehicles: per lane, how far it is taken."""

    def __init__(self, dice: Dice, street: Street):
        parked = street.road[1] - street.edges[1] > 1.0
        self.street = street
        self.taken = {"ahead": dice.uniform(7.5, 14.0), "oncoming": dice.uniform(5.0, 11.0)}
        if parked:
            self.taken |= {"right": dice.uniform(5.0, 9.0), "left": dice.uniform(5.0, 9.0)}
        if street.side_road[1]:
            self.taken["across"] = 0.0

    def place(self, dice: Dice, length: float) -> tuple | None:
        """(lane, x, z, yaw, velocity) of the next vehicle, or None where the lane is full."""
        lane = list(self.taken)[dice.index(len(self.taken))]
        speed = dice.uniform(0.1, 0.7)
        if lane == "across":
            near, far = self.street.side_road
            way = 1 if dice.chance(0.5) else -1
            x = dice.uniform(-9.0, 9.0)
            if self.taken[lane]:
                return None
            self.taken[lane] = 1.0
            z = (near + far) / 2 - way * 1.8
            return lane, x, z, way * math.pi / 2, (way * speed * 0.6, 0.0)
        z = self.taken[lane] + length / 2 + dice.uniform(0.3, 5.0) * (1 if lane != "ahead" else 2)
        if z > 42:
            return None
        self.taken[lane] = z + length / 2 + 1.0
        if lane == "ahead":
            x = self.street.middle + LANE / 2 + dice.uniform(-0.3, 0.3)
            return lane, x, z, 0.0, (0.0, speed)
        if lane == "oncoming":
            x = self.street.middle - LANE / 2 + dice.uniform(-0.3, 0.3)
            return lane, x, z, math.pi, (0.0, -speed)
        x = (self.street.road[1] - 1.05) if lane == "right" else (self.street.road[0] + 1.05)
        return lane, x, z, 0.0 if lane == "right" else math.pi, (0.0, 0.0)


def _vehicle(
    category: int, dice: Dice, look: Dice, weather: Weather, lanes: _Lanes, size: float
) -> Thing | None:
    name = CATEGORIES[category]
    place = lanes.place(dice, VEHICLE_LENGTHS[name] * size)
    driving = dice.chance(0.85)
    if place is None:
        return None
    lane, x, z, yaw, velocity = place
    warm = driving if lane in ("ahead", "oncoming", "across") else look.chance(0.2)
    rows = vehicle_finishes(name, look, weather, warm)
    length = VEHICLE_LENGTHS[name] / 2
    foot = (length, 0.95) if lane == "across" else (0.95, length)
    foot = (foot[0] * size, foot[1] * size)
    velocity = velocity if driving else (0.0, 0.0)
    scale = (size, size, size)
    return Thing(shapes.vehicle_mesh(name), rows, x, z, scale, yaw, velocity, category, foot)


def _person(
    category: int, dice: Dice, look: Dice, weather: Weather, street: Street, size: float
) -> Thing:
    name = CATEGORIES[category]
    crossing = dice.chance(0.3)
    side, way = dice.index(2), (1 if dice.chance(0.5) else -1)
    z = (
        street.crossing[0] + dice.uniform(0.3, 2.7)
        if street.crossing[1]
        else dice.uniform(5.0, 15.0)
    )
    across = dice.uniform(*street.road)
    along = street.road[side] + (-1, 1)[side] * dice.uniform(0.6, 2.2)
    far = dice.uniform(4.5, 16.0)
    speed = dice.uniform(0.05, 0.2) * (2 if name in ("cyclist", "jogger") else 1)
    x, z = (across, z) if crossing else (along, far)
    velocity = (way * speed, 0.0) if crossing else (way * speed * 0.3, dice.uniform(-0.2, 0.2))
    tall = size * dice.uniform(0.92, 1.1) * (0.66 if name == "child" else 1.0)
    scale = (way * tall * 1.15, tall, 1.0)
    mesh = shapes.person_mesh(name, dice.index(4))
    rows = person_finishes(name, look, weather)
    return Thing(mesh, rows, x, z, scale, 0.0, velocity, category, (0.35 * size, 0.2))


def _sign(
    category: int, dice: Dice, look: Dice, weather: Weather, street: Street, size: float
) -> Thing:
    name = CATEGORIES[category]
    side = dice.index(2)
    x = street.road[side] + (-1, 1)[side] * dice.uniform(0.4, 1.1)
    z = dice.uniform(5.5, 17.0)
    rows = sign_finishes(name, look, weather)
    scale = (size * 1.1, size * dice.uniform(0.95, 1.15), 1.0)
    return Thing(shapes.sign_mesh(name), rows, x, z, scale, category=category, shadow=(0.3, 0.1))


def make_world(
    seed: int, index: int, *, domain: str, object_size: float, long_tail: float
) -> World:
    """Lay out the scene (seed, index); object_size scales vehicles, persons and signs."""
    dice, look = Dice(seed, index, 0), Dice(seed, index, 1)
    weather = make_weather(look, domain)
    roll = dice.uniform()
    kind = "urban" if roll < 0.45 else "suburb" if roll < 0.8 else "rural"
    street = make_street(dice, kind)
    ground = ground_finishes(look, weather)
    limits = _category_limits(long_tail)
    lanes = _Lanes(dice, street)
    things = []
    for _ in range(7 + dice.index(7)):
        category = int(np.searchsorted(limits, dice.uniform() * limits[-1]))
        name = CATEGORIES[category]
        if name in VEHICLES:
            thing = _vehicle(category, dice, look, weather, lanes, object_size)
        elif name in PERSONS:
            thing = _person(category, dice, look, weather, street, object_size)
        else:
            assert name in SIGNS
            thing = _sign(category, dice, look, weather, street, object_size)
        if thing is not None:
            things.append(thing)
    if kind != "rural" or dice.chance(0.4):
        things += _lamps(dice, look, weather, street)
    things += _greenery(dice, look, weather, street, kind)
    if kind != "rural":
        things += _buildings(dice, look, weather, street, kind)
    things.sort(key=lambda thing: -thing.z)
    return build_world(street, weather, ground, _skyline(dice, look, weather, kind) + things)
