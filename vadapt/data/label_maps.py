"""Names, colours and label maps of the classes that segmentation data sets share.

A label map says which train id (0 to k - 1, or 255, ignored) a raw value of a mask file becomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int16, Integer, UInt8

from vadapt.errors import DataError

IGNORE = 255  # the label of pixels that no loss and no metric counts
UNKNOWN = -1  # in a lookup table: a raw value that no rule names

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
    "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
# Raw ids of Cityscapes and GTA; every other one is ignored.
CITYSCAPES_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
# SYNTHIA-RAND-CITYSCAPES; it has no terrain, truck or train.
SYNTHIA_IDS = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10, 10: 11, 17: 12, 8: 13, 19: 15,
    12: 17, 11: 18,
}  # fmt: skip
SODA = (
    "background", "person", "building", "tree", "road", "pole", "grass", "door", "table", "chair",
    "car", "bicycle", "lamp", "monitor", "traffic cone", "trash can", "animal", "fence", "sky",
    "river", "sidewalk",
)  # fmt: skip
MFNET = (
    "background", "car", "person", "bike", "curve", "car stop", "guardrail", "color cone", "bump",
)  # fmt: skip
MAPILLARY = (
    "Bird", "Ground Animal", "Curb", "Fence", "Guard Rail", "Barrier", "Wall", "Bike Lane",
    "Crosswalk - Plain", "Curb Cut", "Parking", "Pedestrian Area", "Rail Track", "Road",
    "Service Lane", "Sidewalk", "Bridge", "Building", "Tunnel", "Person", "Bicyclist",
    "Motorcyclist", "Other Rider", "Lane Marking - Crosswalk", "Lane Marking - General",
    "Mountain", "Sand", "Sky", "Snow", "Terrain", "Vegetation", "Water", "Banner", "Bench",
    "Bike Rack", "Billboard", "Catch Basin", "CCTV Camera", "Fire Hydrant", "Junction Box",
    "Mailbox", "Manhole", "Phone Booth", "Pothole", "Street Light", "Pole", "Traffic Sign Frame",
    "Utility Pole", "Traffic Light", "Traffic Sign (Back)", "Traffic Sign (Front)", "Trash Can",
    "Bicycle", "Boat", "Bus", "Car", "Caravan", "Motorcycle", "On Rails", "Other Vehicle",
    "Trailer", "Truck", "Wheeled Slow", "Car Mount", "Ego Vehicle", "Unlabeled",
)  # fmt: skip
ADE20K = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass",
    "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain",
    "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field",
    "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing",
    "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink",
    "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case",
    "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind",
    "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus",
    "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth",
    "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister",
    "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
    "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass",
    "clock", "flag",
)  # fmt: skip

# Parts of a Mapillary name, and the Cityscapes class that the first of them to occur stands for.
_MAPILLARY_RULES = (
    (("trafficsign", "front", "back"), "traffic sign"),
    (("onrail",), "train"),
    (("cyclist", "rider"), "rider"),
    (("pole", "streetlight"), "pole"),
    (("curb", "pedestrianarea"), "sidewalk"),
    (("crosswalkplain", "parking", "bikelane", "servicelane", "lanemarking"), "road"),
)


def mapillary_ids(names: Sequence[str] = MAPILLARY) -> dict[int, int]:
    """Which Cityscapes class every class of Mapillary Vistas becomes, by its readable name.

    A name equal to a Cityscapes class is that class; else the first rule decides; else it is
    ignored. Case, spaces and hyphens do not count.

    >>> mapillary_ids(["Bicyclist", "Crosswalk - Plain", "Water"])
    {0: 12, 1: 0, 2: 255}
    """
    plain = {_plain(name): number for number, name in enumerate(CITYSCAPES)}

    def train_id(name: str) -> int:
        if name in plain:
            return plain[name]
        for parts, target in _MAPILLARY_RULES:
            if any(part in name for part in parts):
                return CITYSCAPES.index(target)
        return IGNORE

    return {raw: train_id(_plain(name)) for raw, name in enumerate(names)}


def lookup_table(
    ids: Mapping[int, int] | None,
    num_classes: int,
    *,
    rest: int = UNKNOWN,
    ignored: Sequence[int] = (IGNORE,),
) -> Int16[np.ndarray, " size"]:
    """The label map as a table over raw values; the last entry stands for all values beyond.

    Args:
        ids: raw value -> train id; None takes the classes' ids as they are.
        num_classes: 0 if not known: every value below 255 is then a class.
        rest: what the values become that nothing names.
        ignored: raw values that become 255; 255 does in any case, unless `ids` says otherwise.

    Raises:
        DataError: a train id outside of the classes, or a raw value outside of 0..65535.
    """
    named = {IGNORE: IGNORE} | {value: IGNORE for value in ignored}
    if ids is None:
        kept = range(num_classes or IGNORE)
        ids = {raw: raw for raw in kept if raw not in named}
    wrong = {
        raw: train
        for raw, train in ids.items()
        if not (0 <= train < (num_classes or IGNORE) or train == IGNORE) or not 0 <= raw < 2**16
    }
    if wrong:
        raise DataError(
            f"label map {wrong}: raw ids lie in 0..65535, train ids below the number of classes "
            f"({num_classes}), or are 255, ignored"
        )
    named |= ids
    table = np.full(max(256, max(named) + 2), rest, np.int16)
    table[list(named)] = list(named.values())
    return table


def look_up(
    raw: Integer[np.ndarray, "h w"], table: Int16[np.ndarray, " size"]
) -> tuple[UInt8[np.ndarray, "h w"], dict[int, int]]:
    """Train ids of raw values, and the unknown values with the number of their pixels."""
    if raw.dtype.itemsize > 1:
        inside = (raw >= 0) & (raw < len(table))
        places = np.where(inside, raw, len(table) - 1)
    else:
        places = raw
    found = table.take(places)
    if found.min(initial=0) >= 0:
        return found.astype(np.uint8), {}
    values, counts = np.unique(raw[found == UNKNOWN], return_counts=True)
    return found.astype(np.uint8), dict(zip(values.tolist(), counts.tolist(), strict=True))


def class_colours(num_classes: int) -> UInt8[np.ndarray, "{num_classes} 3"]:
    """A colour per class for sets that have none: hues by the golden angle, three brightnesses."""
    number = np.arange(num_classes)
    hue = (number * 0.618034) % 1.0
    value = np.array([0.9, 0.65, 0.45])[number % 3]
    lobes = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] - np.array([0.0, 1 / 3, 2 / 3])[None]))
    return (255 * value[:, None] * (0.2 + 0.8 * lobes)).astype(np.uint8)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "")
