"""Looks and warmth of the things of an embedded scene: weather and finishes."""

from __future__ import annotations

import math

from vadapt.data.scene_shapes import POST, SYMBOL
from vadapt.data.scene_world import (
    BUILDING,
    PERSON,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    TERRAIN,
    VEGETATION,
    VEHICLE,
    Dice,
    Finish,
    Weather,
    finish,
)

BLACK, GREY, WHITE = (0.07, 0.07, 0.08), (0.5, 0.51, 0.53), (0.93, 0.93, 0.92)
RED, BLUE, YELLOW = (0.8, 0.08, 0.1), (0.08, 0.28, 0.72), (0.96, 0.76, 0.08)
PAINTS = (
    (0.72, 0.1, 0.12), (0.12, 0.26, 0.6), (0.9, 0.9, 0.9), (0.12, 0.12, 0.14), (0.56, 0.58, 0.6),
    (0.1, 0.4, 0.3), (0.35, 0.55, 0.75), (0.5, 0.3, 0.2),
)  # fmt: skip
CLOTHES = (
    (0.75, 0.15, 0.2), (0.15, 0.3, 0.65), (0.2, 0.5, 0.3), (0.9, 0.88, 0.82), (0.15, 0.15, 0.18),
    (0.55, 0.25, 0.5), (0.85, 0.55, 0.15), (0.4, 0.42, 0.45),
)  # fmt: skip
WALLS = (
    (0.78, 0.68, 0.55), (0.64, 0.36, 0.28), (0.82, 0.8, 0.76), (0.6, 0.63, 0.66), (0.8, 0.58, 0.4),
    (0.55, 0.45, 0.4), (0.72, 0.76, 0.7), (0.86, 0.78, 0.6),
)  # fmt: skip
SKINS = ((0.95, 0.78, 0.66), (0.8, 0.58, 0.44), (0.55, 0.37, 0.26), (0.36, 0.24, 0.18))
BODY_TEMP = 33.0


def make_weather(dice: Dice, domain: str) -> Weather:
    """Draw the light, the air and the cameras; the real domain knows night, fog and rain."""
    real = domain == "real"
    night, foggy, rain = (real and dice.chance(p) for p in (0.3, 0.3, 0.25))
    sunny = dice.chance(0.55) and not (night or foggy or rain)
    azimuth, height = dice.uniform(-2.4, 2.4), dice.uniform(0.35, 1.1)
    flat = math.cos(height)
    sun = (math.sin(azimuth) * flat, math.sin(height), -math.cos(azimuth) * flat)
    warm = dice.uniform()  # a low sun is orange
    if night:
        zenith, horizon, ambient = (0.03, 0.04, 0.1), (0.16, 0.15, 0.19), (0.42, 0.43, 0.52)
    elif sunny:
        zenith = (0.24 + 0.12 * warm, 0.46, 0.86 - 0.1 * warm)
        horizon = (0.72 + 0.2 * warm, 0.82, 0.94 - 0.14 * warm)
        ambient = (0.52, 0.56, 0.63)
    else:
        grey = dice.uniform(0.58, 0.86)
        zenith, horizon = (grey * 0.88, grey * 0.93, grey), (grey, grey * 1.01, grey * 1.02)
        ambient = (0.72, 0.74, 0.77)
    if real and not night:
        mean = sum(zenith) / 3
        zenith = tuple(0.5 * z + 0.45 * mean for z in zenith)
        ambient = tuple(a * dice.uniform(0.75, 0.95) for a in ambient)
    air = dice.uniform(-4.0, 32.0)
    clear = sunny or dice.chance(0.25)
    horizon_temp = air - (dice.uniform(1.0, 6.0) if clear else dice.uniform(-2.0, 3.0))
    return Weather(
        night=night,
        rain=rain,
        real=real,
        sun=sun,
        sunlight=(0.62 if sunny else 0.1) * (0.0 if night else 1.0),
        ambient=ambient,
        zenith=zenith,
        horizon=horizon,
        clouds=dice.uniform(0.0, 0.9 if sunny else 0.4),
        haze=dice.uniform(0.02, 0.05) if foggy else dice.uniform(0.001, 0.005),
        grain=dice.uniform(0.012, 0.03) if real else 0.006,
        air=air,
        solar=dice.uniform(0.0, 1.0) if sunny else dice.uniform(0.0, 0.2),
        sky_zenith=horizon_temp - (dice.uniform(8.0, 25.0) if clear else dice.uniform(-1.0, 4.0)),
        sky_horizon=horizon_temp,
        thermal_noise=dice.uniform(1.5, 4.0),
        thermal_contrast=dice.uniform(0.6, 1.1),
        thermal_level=dice.uniform(0.38, 0.6),
    )


def muted(colour: tuple, dice: Dice, weather: Weather) -> tuple:
    """A paint as it comes: a little off, and in the real domain dirty."""
    wear = dice.uniform(0.25, 0.6) if weather.real else 0.0
    grey = sum(colour) / 3 * 0.85
    shade = dice.uniform(0.85, 1.1)
    return tuple(min(1.0, ((1 - wear) * c + wear * grey) * shade) for c in colour)


def ground_finishes(dice: Dice, weather: Weather) -> list[Finish]:
    """Rows of the parts that are not faces: sky, terrain, road, sidewalk, marks, kerb."""
    air, solar = weather.air, weather.solar
    worn = 2.2 if weather.real else 1.0
    held = dice.uniform(-8.0, 5.0)  # heat or cold left over from the day before
    road = air + held + 18 * solar
    grey = dice.uniform(0.26, 0.5)
    asphalt = (grey, grey, grey * dice.uniform(1.0, 1.08))
    grass = (dice.uniform(0.3, 0.5), dice.uniform(0.5, 0.62), dice.uniform(0.2, 0.3))
    soil = (0.62, 0.52, 0.36)
    meadow = muted(grass if dice.chance(0.75) else soil, dice, weather)
    slab = muted((0.66, 0.63, 0.6), dice, weather)
    mark = road - 1.5 * solar
    return [
        finish((0.5, 0.6, 0.8), SKY, air),
        finish(meadow, TERRAIN, air - 1.5 + 6 * solar, grain=0.16 * worn, rough=1.1, cells=9.0),
        finish(asphalt, ROAD, road, grain=0.05 * worn, rough=0.2, cells=14.0),
        finish(slab, SIDEWALK, air + held * 0.7 + 13 * solar, grain=0.05 * worn, rough=0.3),
        finish((0.9, 0.9, 0.87), ROAD, mark, grain=0.06 * worn),
        finish((0.76, 0.75, 0.72), SIDEWALK, air + held * 0.6 + 11 * solar),
    ]


def building_finishes(look: Dice, weather: Weather, height: float, urban: bool) -> list[Finish]:
    """Rows of the slots WALL and ROOF; some houses are heated, some lose it through windows."""
    colour = muted(WALLS[look.index(len(WALLS))], look, weather)
    worn = 2.0 if weather.real else 1.0
    heated = look.uniform(-3.0, 5.0)
    temp = weather.air + heated + 7 * weather.solar
    storeys = max(2, round(height * (1.0 if urban else 0.66) / look.uniform(2.8, 3.4)))
    storey = height * (1.0 if urban else 0.66) / storeys
    wall = finish(
        colour, BUILDING, temp, temp_rise=look.uniform(-0.35, 0.2), grain=0.05 * worn, rough=0.3,
        cells=6.0, pitch_s=look.uniform(1.8, 3.2), pitch_t=storey, salt=look.uniform(0.0, 97.0),
    )  # fmt: skip
    tiles = ((0.5, 0.24, 0.18), (0.3, 0.3, 0.33), (0.42, 0.33, 0.28))[look.index(3)]
    sky_chill = (weather.sky_zenith - weather.air) * 0.2
    roof = finish(
        muted(tiles, look, weather), BUILDING, temp + sky_chill + 8 * weather.solar,
        grain=0.1 * worn, rough=0.4, cells=8.0,
    )  # fmt: skip
    return [wall, roof]


def crown_finishes(look: Dice, weather: Weather, shade: float = 1.0) -> list[Finish]:
    """Rows of the slots TRUNK to CROWN_LIGHT; leaves stay close to the air's temperature."""
    green = (look.uniform(0.16, 0.4), look.uniform(0.42, 0.58), look.uniform(0.12, 0.25))
    if look.chance(0.12):
        green = (0.72, 0.42, 0.14)
    green = muted(green, look, weather)
    temp = weather.air + look.uniform(-2.0, 0.5) + 2.5 * weather.solar
    grain = 0.34 if weather.real else 0.24
    rows = [finish((0.33, 0.24, 0.17), VEGETATION, temp + 0.5, grain=grain)]
    for light, warm in ((0.68, -0.6), (0.88, 0.0), (1.08, 0.7)):
        colour = tuple(c * light * shade for c in green)
        rows.append(finish(colour, VEGETATION, temp + warm, grain=grain, rough=1.3, cells=7.0))
    return rows


def vehicle_finishes(name: str, look: Dice, weather: Weather, driving: bool) -> list[Finish]:
    """Rows of the slots BODY to LOAD; engine, tyres and underside are hot if it drives."""
    air, solar = weather.air, weather.solar
    paint = PAINTS[look.index(len(PAINTS))]
    paint = {"taxi": YELLOW, "police car": (0.92, 0.93, 0.95)}.get(name, paint)
    body = muted(paint, look, weather)
    # Dark paint soaks up the sun; a parked car radiates to the sky and is colder than the air.
    heat = air - 2.5 + 14 * solar * (1.1 - sum(paint) / 3) + (4.5 if driving else 0.0)
    work = look.uniform(0.5, 1.0) if driving else look.uniform(0.0, 0.25) * look.chance(0.3)
    extra = {"taxi": (0.1, 0.1, 0.1), "police car": (0.12, 0.2, 0.5), "bus": WHITE}.get(name, body)
    load = (0.2, 0.4, 0.95) if name == "police car" else look.colour(0.65, 0.85, 0.05)
    load = body if name == "pickup" else load
    lit = 1.0 if driving else 0.0
    rows = [
        finish(body, VEHICLE, heat, temp_rise=-0.8 * work, grain=0.02),
        finish((0.16, 0.2, 0.26), VEHICLE, air - 5 + 3 * work, grain=0.02),
        finish((0.06, 0.06, 0.07), VEHICLE, air + 15 * work + 5 * solar, grain=0.02),
        finish(body, VEHICLE, heat + 11 * work, grain=0.02),
        finish((0.1, 0.1, 0.11), VEHICLE, air + 20 * work, grain=0.02),
        finish((0.8, 0.08, 0.06), VEHICLE, heat + 5 * work, glow=0.8 * lit),
        finish((0.95, 0.95, 0.85), VEHICLE, heat + 9 * work, glow=1.0 * lit),
        finish(
            extra, VEHICLE, heat + (2 if name == "taxi" else 0), glow=0.5 if name == "taxi" else 0.0
        ),
        finish(load, VEHICLE, air - 1.5 + 5 * solar, glow=0.6 if name == "police car" else 0.0),
    ]
    return rows


def person_finishes(name: str, look: Dice, weather: Weather) -> list[Finish]:
    """Rows of the slots SKIN to TRIM; the closer to the skin, the closer to 33 degrees."""
    air = weather.air
    top = CLOTHES[look.index(len(CLOTHES))]
    legs = ((0.14, 0.18, 0.32), (0.12, 0.12, 0.13), (0.45, 0.4, 0.32))[look.index(3)]
    gear = CLOTHES[look.index(len(CLOTHES))]
    if name == "worker":
        top, gear = (0.98, 0.42, 0.05), (0.98, 0.85, 0.1)
    elif name == "cyclist":
        gear = (0.9, 0.9, 0.92)
    skin = SKINS[look.index(len(SKINS))]
    hair = ((0.12, 0.09, 0.07), (0.4, 0.26, 0.14), (0.75, 0.62, 0.36))[look.index(3)]

    def warmed(share: float) -> float:
        return air + (BODY_TEMP - air) * share * look.uniform(0.85, 1.1)

    return [
        finish(skin, PERSON, warmed(0.95), grain=0.02),
        finish(hair, PERSON, warmed(0.65), grain=0.03),
        finish(muted(top, look, weather), PERSON, warmed(0.5), temp_rise=1.2, rough=0.4),
        finish(muted(legs, look, weather), PERSON, warmed(0.36), rough=0.4),
        finish((0.1, 0.08, 0.08), PERSON, warmed(0.15)),
        finish(muted(gear, look, weather), PERSON, warmed(0.12), grain=0.02),
        finish((0.62, 0.64, 0.62), PERSON, air, grain=0.02),
    ]


def sign_finishes(name: str, look: Dice, weather: Weather) -> list[Finish]:
    """Rows of the slots RIM to ACCENT."""
    temp = weather.air + look.uniform(-3.0, 1.0) + 5 * weather.solar
    rim, plate, symbol, accent = {
        "stop": (WHITE, RED, WHITE, WHITE),
        "yield": (RED, WHITE, WHITE, WHITE),
        "speed limit": (RED, WHITE, BLACK, WHITE),
        "parking": (WHITE, BLUE, WHITE, WHITE),
        "warning": (BLACK, YELLOW, BLACK, WHITE),
        "no entry": (WHITE, RED, WHITE, WHITE),
        "traffic light": (BLACK, (0.16, 0.17, 0.16), (0.3, 0.12, 0.1), (0.1, 0.95, 0.45)),
    }[name]
    lit = 0.9 if name == "traffic light" else 0.0
    rows = [finish(muted(c, look, weather), SIGN, temp, grain=0.02) for c in (rim, plate, symbol)]
    rows.append(finish((0.42, 0.43, 0.45), POLE, temp + look.uniform(-1.0, 1.0)))
    rows.append(finish(accent, SIGN, temp + 6 * lit, glow=lit))
    return rows


def lamp_finishes(look: Dice, weather: Weather) -> list[Finish]:
    """Rows of the slots of a street lamp; only POST and SYMBOL matter."""
    grey = look.uniform(0.18, 0.42)
    temp = weather.air + look.uniform(-2.0, 2.0) + 3 * weather.solar
    rows = [finish(GREY, POLE, temp)] * 5
    rows[POST] = finish((grey, grey, grey), POLE, temp)
    rows[SYMBOL] = finish((0.95, 0.93, 0.8), POLE, temp + 6 * weather.night, glow=1.0)
    return rows
