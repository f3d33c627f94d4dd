"""The eight public data sets behind MSIP: where their infrared images lie, and which are taken."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vadapt.data.decode import open_image
from vadapt.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
BORDER = 100  # white pixels around every image of DroneVehicle
DARK = 20  # the brightest grey of frames of SCUT that are dropped


@dataclasses.dataclass(frozen=True)
class Part:
    """One sub-set of MSIP.

    Attributes:
        name: of the sub-set.
        folders: names that its download may have in the raw folder, in small letters and digits.
        expected: images that the paper counts.
        layout: what is looked for, in words.
        where: to get it.
        find: lists image files under the folder, sorted, grouped by video or all in one.
        step: takes every step-th of a group, from the first on.
        is_video: whether frames get a running number in place of their name.
        crop: cuts the white border.
        drop_dark: drops frames whose brightest grey is `DARK` or less.
    """

    name: str
    folders: tuple[str, ...]
    expected: int
    layout: str
    where: str
    find: Callable[[Path], list[list[Path]]]
    step: int = 1
    is_video: bool = False
    crop: bool = False
    drop_dark: bool = False


def plain(name: str) -> str:
    """A folder's name in small letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def by_number(path: Path) -> tuple[str, int, str]:
    """Sorts frames by the last number in their name, whatever its digits; then by name."""
    numbers = re.findall(r"\d+", path.stem)
    return (path.parent.as_posix(), int(numbers[-1]) if numbers else -1, path.name)


def walk(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder with images under the root, and they; hidden names are passed over."""
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = [
            Path(folder, name)
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        if images:
            yield Path(folder), images


def folders_ending(*parts: str, all_in_one: bool = True) -> Callable[[Path], list[list[Path]]]:
    """Images in folders whose path ends with these names (of any case; * is any name).

    All in one group, or a group a folder: a video.
    """

    def find(root: Path) -> list[list[Path]]:
        groups = []
        for folder, images in walk(root):
            ends = [part.lower() for part in folder.relative_to(root.parent).parts[-len(parts) :]]
            alike = all(want in ("*", end) for want, end in zip(parts, ends, strict=False))
            if len(ends) == len(parts) and alike:
                groups.append((folder, sorted(images, key=by_number)))
        groups.sort()
        if all_in_one:
            return [[image for _, images in groups for image in images]]
        return [images for _, images in groups]

    return find


def flat_videos(root: Path) -> list[list[Path]]:
    """Frames grouped by folder and by what stands before the last number: `set00_V000_I00001`."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for folder, images in walk(root):
        for image in images:
            video = re.sub(r"\d+$", "", image.stem)
            groups.setdefault((folder.as_posix(), video), []).append(image)
    return [sorted(groups[key], key=by_number) for key in sorted(groups)]


def without_testing(root: Path) -> list[list[Path]]:
    """Infrared folders, a video each, but for those under a folder of test videos."""
    videos = folders_ending("*", "infrared", all_in_one=False)(root)
    return [
        video
        for video in videos
        if not any(part.lower().startswith("test") for part in video[0].relative_to(root).parts)
    ]


def training_videos(root: Path) -> list[list[Path]]:
    """Videos under `TrainingData/<part>/`, or all of them where there is no such folder."""
    videos = folders_ending("*", "*", all_in_one=False)(root)
    return [video for video in videos if _is_training(video[0], root)] or videos


def training_images(root: Path) -> list[list[Path]]:
    """Images under folders named after training, or all of them where there is none; one group."""
    (images,) = folders_ending("*")(root)
    return [[image for image in images if _is_training(image, root)] or images]


def _is_training(path: Path, root: Path) -> bool:
    return any("train" in part.lower() for part in path.relative_to(root).parts[:-1])


_INFIRAY = "http://openai.raytrontek.com (the open data of the camera maker InfiRay)"
PARTS = (
    Part(
        "DroneVehicle", ("dronevehicle", "visdronedronevehicle"), 17990,
        "train/trainimgr/*.jpg", "https://github.com/VisDrone/DroneVehicle",
        folders_ending("trainimgr"), crop=True,
    ),
    Part(
        "SCUT", ("scut", "scutfir", "scutfir101", "scutfirpedestrian", "scutfirpedestriandataset"),
        21049, "frames extracted from the videos: <set>/<video>/*.jpg, or set00_V000_I00000.jpg",
        "https://github.com/SCUT-CV/SCUT_FIR_Pedestrian_Dataset",
        flat_videos, step=10, is_video=True, drop_dark=True,
    ),
    Part(
        "LLVIP", ("llvip",), 12025, "infrared/train/*.jpg", "https://bupt-ai-cz.github.io/LLVIP/",
        folders_ending("infrared", "train"),
    ),
    Part(
        "InfraredAerial", ("infraredaerial", "infraredaerialphotography", "aerial"), 5523,
        "images in any folders", _INFIRAY, folders_ending("*"), step=2,
    ),
    Part(
        "InfraredShip", ("infraredship", "infraredshipdataset", "infraredships", "ship"), 8402,
        "train/*.jpg, or images in any folders", _INFIRAY, training_images,
    ),
    Part(
        "InfraredSecurity", ("infraredsecurity", "security"), 8999, "images in any folders",
        _INFIRAY, folders_ending("*"),
    ),
    Part(
        "LSOTB-TIR", ("lsotbtir", "lsotbtirtrainingdata"), 52925,
        "TrainingData/TIR_training_00*/<video>/*.jpg", "https://github.com/QiaoLiuHit/LSOTB-TIR",
        training_videos, step=10, is_video=True,
    ),
    Part(
        "LasHeR", ("lasher",), 51843, "trainingset/<video>/infrared/*.jpg",
        "https://github.com/BUGPLEASEOUT/LasHeR", without_testing, step=10, is_video=True,
    ),
)  # fmt: skip
TOTAL = sum(part.expected for part in PARTS)  # 178,756


def content(part: Part, path: Path) -> tuple[bytes, str] | None:
    """An image as MSIP takes it, and the suffix of its format; None if it is dropped.

    Files stay as they are, but for those with a border, which are cut, turned grey and written as
    PNG (so that no loss is added).
    """
    data = path.read_bytes()
    suffix = path.suffix.lower()
    if not part.drop_dark and not part.crop:
        return data, suffix
    try:
        with open_image(data) as image:
            grey = image.convert("L")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}; remove or repair it") from error
    if part.drop_dark and int(np.asarray(grey).max()) <= DARK:
        return None
    if not part.crop:
        return data, suffix
    if min(grey.size) <= 2 * BORDER:
        raise ValueError(f"{path} has {grey.size} pixels: too few for a border of {BORDER}")
    cut = grey.crop((BORDER, BORDER, grey.width - BORDER, grey.height - BORDER))
    out = io.BytesIO()
    cut.save(out, "PNG")
    return out.getvalue(), ".png"
