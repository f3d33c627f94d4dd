"""Pictures for people: sheets of images with captions, boxes, coloured masks and optical flow."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from vadapt.errors import ShapeError

Colour = tuple[int, int, int]

GROUPS: tuple[Colour, ...] = (  # of channels
    *((255, 205, 0), (210, 40, 210), (0, 150, 255), (60, 190, 110)),
    *((240, 90, 60), (120, 90, 230), (0, 210, 210), (150, 200, 40)),
)
INK, QUIET, PAPER = (34, 36, 40), (110, 114, 122), (255, 255, 255)


def to_rgb(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """An image as 8-bit RGB.

    Args:
        image: [h, w], [h, w, 1] or [h, w, 3]; uint8 as it is, bool as black and white, floats as
            0 to 1, clipped.

    Raises:
        ShapeError: on any other shape or dtype.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ShapeError(
            f"an image of shape {image.shape}; expected [h, w], [h, w, 1] or [h, w, 3]"
        )
    if image.dtype == bool:
        image = image.astype(np.uint8) * np.uint8(255)
    elif image.dtype.kind == "f":
        image = (np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ShapeError(f"an image of {image.dtype}; expected uint8, bool, or floats from 0 to 1")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an image that `to_rgb` takes, and the folders above it."""
    folder = os.path.dirname(os.fspath(path))
    if folder:
        os.makedirs(folder, exist_ok=True)
    Image.fromarray(to_rgb(image)).save(path, format="PNG")


def draw_boxes(
    image: np.ndarray, boxes_xyxy: Float[np.ndarray, "n 4"], colours: Sequence[Sequence[int]]
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the image with one-pixel frames just inside the boxes.

    Args:
        image: anything `to_rgb` takes.
        boxes_xyxy: pixels, ends exclusive; what lies outside the image is cut off.
        colours: one RGB colour a box, 0 to 255.
    """
    drawn = to_rgb(image).copy()
    height, width = drawn.shape[:2]
    for box, colour in zip(np.rint(boxes_xyxy).astype(int), colours, strict=True):
        left, top = max(int(box[0]), 0), max(int(box[1]), 0)
        right, bottom = min(int(box[2]), width), min(int(box[3]), height)
        if left >= right or top >= bottom:
            continue
        drawn[[top, bottom - 1], left:right] = colour
        drawn[top:bottom, [left, right - 1]] = colour
    return drawn


def colour_mask(
    mask: Integer[np.ndarray, "h w"], palette: UInt8[np.ndarray, "k 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Class ids in the colours of the palette; ids beyond it (such as 255, ignored) in white."""
    known: Bool[np.ndarray, "h w"] = (mask >= 0) & (mask < len(palette))
    drawn = palette[np.where(known, mask, 0)]
    drawn[~known] = 255
    return drawn


def overlay(
    image: UInt8[np.ndarray, "h w 3"], painted: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Both at half strength."""
    return ((image.astype(np.uint16) + painted) // 2).astype(np.uint8)


def draw_chosen(
    image: UInt8[np.ndarray, "h w 3"],
    ids: Integer[np.ndarray, "g k"],
    grid: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """The patches that a node took from, in a colour a group of channels; the rest is dimmed.

    Where several groups took from a patch, it has the mean of their colours.

    Args:
        ids: of patches, in raster order.
        grid: rows and columns of patches.

    Raises:
        ShapeError: more groups than `GROUPS` has colours, or an id beyond the grid.
    """
    places = grid[0] * grid[1]
    if len(ids) > len(GROUPS) or ids.min() < 0 or ids.max() >= places:
        raise ShapeError(
            f"{len(ids)} groups with patches {ids.min()} to {ids.max()}; expected up to "
            f"{len(GROUPS)} groups, and ids below {places} for a grid of {grid[0]}x{grid[1]}"
        )
    taken = np.zeros((len(ids), places))
    np.put_along_axis(taken, ids, 1.0, axis=1)
    number = taken.sum(axis=0)
    colours = taken.T @ np.asarray(GROUPS[: len(ids)], float) / np.maximum(number, 1)[:, None]
    rows, columns = (
        np.arange(side) * steps // side for side, steps in zip(image.shape[:2], grid, strict=True)
    )
    place = rows[:, None] * grid[1] + columns
    # Half image and half colour where a group took from, less of the image where none did.
    share = np.where(number > 0, 0.5, 0.4)[place][..., None]
    return (share * image + 0.5 * colours[place] + 0.5).astype(np.uint8)


def colour_flow(
    flow: Float[np.ndarray, "h w 2"], longest: float | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Optical flow on a colour wheel: the hue is the direction, the saturation the length.

    Args:
        flow: (x, y) motion in pixels.
        longest: the length of full saturation in pixels; by default the 99th percentile.
    """
    x, y = flow[..., 0], flow[..., 1]
    length = np.hypot(x, y)
    if longest is None:
        longest = max(float(np.percentile(length, 99)), 1e-6)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1.0
    saturation = np.clip(length / longest, 0.0, 1.0)
    # Three cosine lobes, a third of a turn apart, fading to white at rest.
    lobes = [0.5 + 0.5 * np.cos(2 * np.pi * (hue - shift)) for shift in (0.0, 1 / 3, 2 / 3)]
    colours = np.stack(lobes, -1)
    return to_rgb(1.0 - saturation[..., None] * (1.0 - colours))


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    cell: int = 96,
    gap: int = 8,
    legend: Sequence[tuple[str, Sequence[int]]] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Images in rows on white paper, with captions and a legend of colours below.

    Args:
        rows: images that `to_rgb` takes; rows may differ in length. Each is fitted into the cell:
            repeated pixels when it grows by a whole factor, Lanczos otherwise.
        column_titles: above the columns.
        row_titles: left of the rows; of several lines, if need be.
        cell: pixels of a cell's longer side.
        gap: pixels between cells.
        legend: names and RGB colours.

    Raises:
        ShapeError: if there is no image, or one that `to_rgb` refuses.
    """
    cells = [[fit(image, cell) for image in row] for row in rows]
    flat = [image for row in cells for image in row]
    if not flat:
        raise ShapeError("a contact sheet of no images; give at least one row with one image")
    height, width = max(i.shape[0] for i in flat), max(i.shape[1] for i in flat)
    columns = max(len(row) for row in cells)
    text = max(11, round(cell * 0.085))
    font = ImageFont.load_default(size=text)
    margin = 2 * gap + text // 2
    left = margin
    if row_titles:
        lines = [line for title in row_titles for line in title.split("\n")]
        left += round(max(map(font.getlength, lines))) + text
    top = margin + (2 * text if column_titles else 0)
    total = left + columns * (width + gap) - gap + margin
    entries = _legend_places(legend or (), font, text, left, total - margin)
    bottom = top + len(cells) * (height + gap) - gap
    end = bottom + margin + (entries[-1][1] + 2 * text if entries else 0)
    sheet = Image.new("RGB", (total, end), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(column_titles or ()):
        middle = left + column * (width + gap) + width / 2
        pen.text((middle, top - 0.7 * text), title, fill=INK, font=font, anchor="ms")
    for number, row in enumerate(cells):
        y = top + number * (height + gap)
        if row_titles:
            place = (left - text * 0.7, y + height / 2)
            pen.text(place, row_titles[number], fill=QUIET, font=font, anchor="rm", align="right")
        for column, image in enumerate(row):
            x = left + column * (width + gap)
            spare_x, spare_y = width - image.shape[1], height - image.shape[0]
            sheet.paste(Image.fromarray(image), (x + spare_x // 2, y + spare_y // 2))
    for (name, colour), (x, y) in zip(legend or (), entries, strict=True):
        y += bottom + margin
        pen.rounded_rectangle((x, y, x + text, y + text), text * 0.25, fill=tuple(colour))
        pen.text((x + 1.5 * text, y + text / 2), name, fill=INK, font=font, anchor="lm")
    return np.asarray(sheet).copy()


def fit(image: np.ndarray, cell: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """An image that `to_rgb` takes as RGB, with a longer side of `cell` pixels.

    Pixels are repeated when it grows by a whole factor; Lanczos otherwise.
    """
    image = to_rgb(image)
    height, width = image.shape[:2]
    longest = max(height, width)
    if cell % longest == 0:
        return image.repeat(cell // longest, 0).repeat(cell // longest, 1)
    size = (max(1, round(width * cell / longest)), max(1, round(height * cell / longest)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)).copy()


def _legend_places(
    legend: Sequence[tuple[str, Sequence[int]]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    text: int,
    left: int,
    right: int,
) -> list[tuple[int, int]]:
    """Where each entry starts, relative to the legend's top; lines break at `right`."""
    places: list[tuple[int, int]] = []
    x, y = left, 0
    for name, _ in legend:
        width = round(font.getlength(name)) + 2 * text
        if x + width > right and x > left:
            x, y = left, y + 2 * text
        places.append((x, y))
        x += width + text
    return places
