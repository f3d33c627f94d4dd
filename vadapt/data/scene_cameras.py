"""The visible and the infrared camera of an embedded scene: from a painted frame to a picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8

from vadapt.data.scene_render import COLUMN, Frame, noise_at, noise_picture
from vadapt.data.scene_world import LANE, NUM_GROUND_PARTS, PART_MARK, PART_ROAD, PART_SKY

LEAK_SHARE = 0.3  # of the windows lose heat


class _Surface:
    """Where every sample lies: depth, metres along its surface, and the footprint of a sample."""

    def __init__(self, frame: Frame):
        world = frame.world
        self.parts = parts = frame.parts
        near = np.maximum(frame.inverse_depth, 1e-3)
        self.depth = depth = 1.0 / near
        self.x = frame.u * depth / frame.focal  # metres, from the camera
        self.y = frame.v[:, None] * depth / frame.focal + world.street.camera_height
        place = world.origins + world.velocities * frame.time - frame.ego
        count = NUM_GROUND_PARTS + len(world.owners)
        origin_x, origin_z = np.zeros((2, count), np.float32)
        origin_x[:NUM_GROUND_PARTS], origin_z[:NUM_GROUND_PARTS] = -frame.ego
        origin_x[NUM_GROUND_PARTS:], origin_z[NUM_GROUND_PARTS:] = place[world.owners].T
        side = np.zeros(count, bool)
        side[NUM_GROUND_PARTS:] = np.abs(frame.normals[:, 0]) > np.abs(frame.normals[:, 2])
        self.side = side.take(parts)
        self.ground = (parts < NUM_GROUND_PARTS) & (parts > PART_SKY)
        along_z = depth - origin_z.take(parts)
        self.s = np.where(self.side, along_z, self.x - origin_x.take(parts))
        self.t = np.where(self.ground, along_z, self.y)
        slant = np.abs(np.where(self.side, frame.u, frame.focal))
        slant = np.where(self.ground, np.abs(frame.v[:, None]), slant)
        self.footprint = depth / np.maximum(slant, 0.5) * 0.5  # metres a sample


def _column(frame: Frame, name: str) -> np.ndarray:
    return np.ascontiguousarray(frame.world.table[:, COLUMN[name]])


def _panes(frame: Frame, surface: _Surface) -> tuple[np.ndarray, ...]:
    """Return flat ids of the samples on walls, each one's share of window, and its window."""
    pitch = _column(frame, "pitch_s").take(surface.parts)
    ids = np.flatnonzero(pitch)
    parts = surface.parts.ravel()[ids]
    columns = surface.s.ravel()[ids] / pitch.ravel()[ids] + 100.5
    storeys = surface.t.ravel()[ids] / _column(frame, "pitch_t").take(parts)
    salt = _column(frame, "salt").take(parts)
    column, storey = np.floor(columns), np.floor(storeys)
    across, up = np.abs(columns - column - 0.5), storeys - storey
    shop = storey < 1
    inside = (across < np.where(shop, 0.4, 0.26)) & (up > np.where(shop, 0.12, 0.3)) & (up < 0.8)
    # Where a window is smaller than a sample, its share of the wall stands for it.
    sharp = np.clip(pitch.ravel()[ids] / surface.footprint.ravel()[ids] * 0.4 - 0.6, 0.0, 1.0)
    share = np.where(inside, sharp, 0.0) + (1 - sharp) * 0.28
    number = noise_at("even", column * 37.0 + salt, storey * 59.0 + 3.0 * salt)
    return ids, share.astype(np.float32), number


def _average(samples: np.ndarray) -> np.ndarray:
    """Mean of each two by two samples over the last two axes."""
    rows = samples[..., ::2, :] + samples[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) * np.float32(0.25)


def _blur(picture: np.ndarray, passes: int) -> np.ndarray:
    """Binomial blur over the last two axes, edges repeated."""
    for _ in range(passes):
        pad = np.concatenate([picture[..., :1], picture, picture[..., -1:]], -1)
        picture = 0.25 * pad[..., :-2] + 0.5 * picture + 0.25 * pad[..., 2:]
        pad = np.concatenate([picture[..., :1, :], picture, picture[..., -1:, :]], -2)
        picture = 0.25 * pad[..., :-2, :] + 0.5 * picture + 0.25 * pad[..., 2:, :]
    return picture


def _faded(frame: Frame, surface: _Surface, amount: np.ndarray) -> np.ndarray:
    """Texture at every sample, without the detail finer than a sample."""
    cells = _column(frame, "cells").take(surface.parts)
    noise = noise_at("rough", surface.s * cells + 4096, surface.t * cells + 4096)
    return noise * amount.take(surface.parts) / (1.0 + surface.footprint * cells)


def _sun_and_shade(frame: Frame) -> np.ndarray:
    """Light (3, parts) on every part in the open."""
    weather = frame.world.weather
    normals = np.zeros((frame.world.table.shape[0], 3), np.float32)
    normals[:, 1] = 1.0
    normals[NUM_GROUND_PARTS:] = frame.normals
    facing = np.maximum(normals @ np.array(weather.sun, np.float32), 0.0)
    upward = 0.88 + 0.12 * normals[:, 1]
    light = np.array(weather.ambient, np.float32)[:, None] * upward
    return light + weather.sunlight * np.array([[1.0], [0.95], [0.85]], np.float32) * facing


def _paint_sky(rgb: np.ndarray, frame: Frame, surface: _Surface, salt: int) -> None:
    weather = frame.world.weather
    ids = np.flatnonzero(surface.parts == PART_SKY)
    rows, columns = ids // len(frame.u), ids % len(frame.u)
    rise = np.clip(frame.v / frame.height * 2.2, 0.0, 1.0)[rows]
    span = 160.0 / frame.focal
    u, v = frame.u * span, frame.v * span * 2.5
    cloud = noise_at("cloudy", u[columns] + salt, v[rows] + 2 * salt) * 0.55 + weather.clouds - 0.45
    cloud = np.clip(cloud, 0.0, 1.0) * weather.clouds
    white = 0.12 if weather.night else 0.96
    for channel, (low, high) in enumerate(zip(weather.horizon, weather.zenith, strict=True)):
        clear = low + (high - low) * rise
        rgb[channel].ravel()[ids] = clear + (white - clear) * cloud


def _paint_windows(rgb: np.ndarray, frame: Frame, surface: _Surface) -> None:
    ids, share, number = _panes(frame, surface)
    weather = frame.world.weather
    lit = number < (0.45 if weather.night else 0.05)
    sky = 0.35 + 0.4 * number
    glow = (1.0, 0.82, 0.5)
    for channel in range(3):
        glass = sky * weather.zenith[channel] * 0.75 + 0.05
        flat = rgb[channel].ravel()
        flat[ids] += share * (np.where(lit, glow[channel] * 0.9, glass) - flat[ids])


def take_visible(frame: Frame, salt: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of the colour camera; `salt` picks the noise and the clouds."""
    world, weather, surface = frame.world, frame.world.weather, _Surface(frame)
    parts = surface.parts
    colours = np.ascontiguousarray(world.table[:, :3].T) * _sun_and_shade(frame)
    glow = _column(frame, "glow") * (1.0 if weather.night else 0.35)
    colours += (np.ascontiguousarray(world.table[:, :3].T) - colours * 0.3) * glow
    light = 1.0 + _faded(frame, surface, _column(frame, "grain"))
    if weather.sunlight > 0.3:
        light *= np.where(frame.shadow & surface.ground, np.float32(0.55), np.float32(1.0))
    else:
        light *= np.where(frame.shadow & surface.ground, np.float32(0.75), np.float32(1.0))
    if weather.night:
        beam = np.exp(-((surface.x + 0.5) ** 2) / (6 + surface.depth * 1.2) - surface.depth / 16)
        light *= 0.8 + 2.0 * beam
    rgb = np.stack([channel.take(parts) for channel in colours]) * light  # [3, h, w]
    _paint_windows(rgb, frame, surface)
    veil = np.exp(-weather.haze * surface.depth)
    rgb = np.clip(rgb, 0.0, 1.0)
    for channel, fog in enumerate(weather.horizon):
        rgb[channel] = fog + (rgb[channel] - fog) * veil
    _paint_sky(rgb, frame, surface, salt)
    picture = _average(rgb)
    height, width = frame.height, frame.width
    if weather.rain:
        stretched = noise_picture("white", height // 6 + 1, width, salt, salt)
        streaks = np.repeat(np.maximum(stretched - 1.7, 0.0), 6, 0)[:height]
        picture = picture * 0.85 + 0.12 * np.minimum(streaks, 1.5)
    if weather.real:
        picture = _blur(picture, 1) if min(height, width) >= 96 else picture
        picture = 0.04 + 0.9 * picture
    shift = 31 * salt + 977 * frame.time
    for channel in range(3):
        noise = noise_picture("white", height, width, shift + 83 * channel, shift // 3)
        picture[channel] += weather.grain * noise
    return _to_bytes(picture).transpose(1, 2, 0)


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _temperatures(frame: Frame, salt: int) -> Float32[np.ndarray, "h w"]:
    """Apparent temperature of every sample in degrees Celsius."""
    world, weather, surface = frame.world, frame.world.weather, _Surface(frame)
    parts = surface.parts
    normals = frame.normals
    base = _column(frame, "temp").copy()
    heated = np.maximum(normals @ np.array(weather.sun, np.float32), 0.0) * weather.solar
    base[NUM_GROUND_PARTS:] += 4.0 * heated * (_column(frame, "pitch_s")[NUM_GROUND_PARTS:] > 0)
    heat = base.take(parts)
    heat += _column(frame, "temp_rise").take(parts) * np.minimum(surface.y, 15.0)
    heat += _faded(frame, surface, _column(frame, "rough"))
    patches = noise_at("cloudy", surface.s * 6.0 + salt, surface.t * 6.0 + 3 * salt)
    heat += np.where(parts < NUM_GROUND_PARTS, 0.7, 0.35) * patches
    ids, share, number = _panes(frame, surface)
    chill = 0.25 * (weather.sky_zenith - weather.air)
    leak = np.where(number < LEAK_SHARE, 2.0 + 18.0 * number, chill)
    heat.ravel()[ids] += share * leak
    road = (parts == PART_ROAD) | (parts == PART_MARK)
    across = surface.x + frame.ego[0] - world.street.middle
    lane = np.abs(np.abs(across % LANE - LANE / 2) - 0.85)  # metres from a wheel's track
    heat += road * (1.4 * np.maximum(0.0, 1.0 - lane / 0.5))
    heat -= (frame.shadow & surface.ground) * np.float32(0.8 + 5.0 * weather.solar)
    veil = np.exp(-(0.004 + 0.4 * weather.haze) * surface.depth)
    heat = weather.air + (heat - weather.air) * veil
    ids = np.flatnonzero(parts == PART_SKY)
    rows, columns = ids // len(frame.u), ids % len(frame.u)
    rise = np.clip(frame.v / frame.height * 2.0, 0.0, 1.0)[rows]
    span = 120.0 / frame.focal
    cloud = noise_at("cloudy", frame.u[columns] * span + salt, frame.v[rows] * span * 2 + 2 * salt)
    sky = weather.sky_horizon + (weather.sky_zenith - weather.sky_horizon) * rise
    heat.ravel()[ids] = sky + cloud * (0.5 + 3.0 * weather.clouds)
    return heat.astype(np.float32)


def take_thermal(frame: Frame, first: Frame, salt: int) -> UInt8[np.ndarray, "h w"]:
    """The picture of the infrared camera, white-hot, its gain set by the heat in `first`."""
    weather = frame.world.weather
    height, width = frame.height, frame.width
    heat = _average(_temperatures(frame, salt))
    metered = heat if first is frame else _average(_temperatures(first, salt))
    low = weather.air - 9.0
    metered = np.maximum(metered, low)
    mean, spread = float(metered.mean()), float(metered.std()) + 0.8
    heat = _blur(heat, max(1, round(min(height, width) / 96)))
    tone = np.tanh((np.maximum(heat, low) - mean) / (1.9 * spread))
    picture = weather.thermal_level + 0.5 * weather.thermal_contrast * tone
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    picture = picture - 0.05 * (rows**2 + columns**2)
    level = weather.thermal_noise / 255.0
    picture += level * 0.6 * noise_picture("white", 1, width, salt, 5 * salt)  # fixed pattern
    shift = 17 * salt + 613 * frame.time
    picture += level * noise_picture("white", height, width, shift, shift // 5)
    return _to_bytes(picture)
