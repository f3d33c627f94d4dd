"""Grouping of selective search, ours against a plain one: `python benchmarks/roi_grouping.py`.

The plain one below is written from the same description, region by region and pair by pair with
Python's own lists and dictionaries, and looks through all pairs before every merger, as a first
version would. Both get the same first regions of drawn infrared scenes, in the same run, and must
agree on every region.
"""

import argparse
import time

import numpy as np

from vadapt.data.scenes import SceneOptions, make_scene
from vadapt.data.selective_search import SearchSettings, group, segment


def plain_histograms(channels, here, low, high, bins):
    """Shares of a region's pixels a bin, channel after channel, the last bin closed."""
    count = int(here.sum())
    shares = []
    for channel in channels:
        shares += (np.histogram(channel[here], bins=bins, range=(low, high))[0] / count).tolist()
    return shares


def plain_regions(labels, grey):
    """Pixels, corners and histograms of the first regions, in raster order."""
    from skimage.color import rgb2hsv
    from skimage.feature import local_binary_pattern

    colour = np.repeat(grey.astype(float)[..., None], 3, -1)
    hsv = np.moveaxis(rgb2hsv(colour), -1, 0)
    patterns = [local_binary_pattern(grey, 8, 1) for _ in range(3)]
    boxes = {}
    for y, row in enumerate(labels.tolist()):
        for x, label in enumerate(row):
            left, top, right, bottom = boxes.get(label, (x, y, x, y))
            boxes[label] = (min(left, x), min(top, y), max(right, x), max(bottom, y))
    regions = []
    for label, corners in boxes.items():
        here = labels == label
        regions.append({
            "size": int(here.sum()),
            "corners": corners,
            "colour": plain_histograms(hsv, here, 0.0, 255.0, 25),
            "texture": plain_histograms(patterns, here, 0.0, 1.0, 10),
        })  # fmt: skip
    return regions


def touches(a, b):
    """Whether a corner of b's box lies strictly inside a's."""
    left, top, right, bottom = a["corners"]
    return any(
        left < x < right and top < y < bottom for x in b["corners"][::2] for y in b["corners"][1::2]
    )


def plain_similarity(a, b, pixels):
    """Of colour, texture, size and filling."""
    common = sum(min(x, y) for x, y in zip(a["colour"], b["colour"], strict=True))
    texture = sum(min(x, y) for x, y in zip(a["texture"], b["texture"], strict=True))
    low = [min(x, y) for x, y in zip(a["corners"][:2], b["corners"][:2], strict=True)]
    high = [max(x, y) for x, y in zip(a["corners"][2:], b["corners"][2:], strict=True)]
    box = (high[0] - low[0]) * (high[1] - low[1])
    size = a["size"] + b["size"]
    return common + texture + (1.0 - size / pixels) + (1.0 - (box - size) / pixels)


def plain_merge(a, b):
    """Both as one."""
    size = a["size"] + b["size"]

    def mix(name):
        pairs = zip(a[name], b[name], strict=True)
        return [(x * a["size"] + y * b["size"]) / size for x, y in pairs]

    (l1, t1, r1, b1), (l2, t2, r2, b2) = a["corners"], b["corners"]
    corners = (min(l1, l2), min(t1, t2), max(r1, r2), max(b1, b2))
    return {
        "size": size, "corners": corners, "colour": mix("colour"), "texture": mix("texture"),
    }  # fmt: skip


def plain_group(labels, grey):
    """Boxes (x, y, w, h) and sizes of all regions, first and merged."""
    pixels = labels.size
    regions = plain_regions(labels, grey)
    table = {}
    for i, a in enumerate(regions):
        for j in range(i + 1, len(regions)):
            if touches(a, regions[j]):
                table[i, j] = plain_similarity(a, regions[j], pixels)
    while table:
        i, j = sorted(table.items(), key=lambda item: item[1])[-1][0]
        new = len(regions)
        regions.append(plain_merge(regions[i], regions[j]))
        touched = [pair for pair in table if i in pair or j in pair]
        for pair in touched:
            del table[pair]
        for first, second in touched:
            if (first, second) == (i, j):
                continue
            other = second if first in (i, j) else first
            table[new, other] = plain_similarity(regions[new], regions[other], pixels)
    corners = np.array([region["corners"] for region in regions])
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return boxes, np.array([region["size"] for region in regions])


def timed(function, *arguments, repeats):
    """The result and the least processor seconds of a few calls: others may be at work here."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def main():
    """Prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=float, nargs="+", default=[600, 300, 150])
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=640)
    options = parser.parse_args()
    scene = make_scene(0, 3, SceneOptions(options.height, options.width, domain="real")).thermal
    print(f"{options.width}x{options.height}: seconds an image for grouping")
    print(f"{'scale':>6}{'first regions':>15}{'plain':>9}{'ours':>9}{'faster':>8}  same regions")
    for scale in options.scales:
        labels, _ = timed(segment, scene, SearchSettings(scale=scale), repeats=1)
        group(labels[:64], scene[:64])  # imports scikit-image
        ours, fast = timed(group, labels, scene, repeats=3)
        (boxes, sizes), slow = timed(plain_group, labels, scene, repeats=1)
        same = np.array_equal(ours.boxes_xywh, boxes) and np.array_equal(ours.sizes, sizes)
        count = labels.max() + 1
        print(f"{scale:6g}{count:15}{slow:9.3f}{fast:9.3f}{slow / fast:7.1f}x  {same}", flush=True)


if __name__ == "__main__":
    main()
