"""Sections of data: what is read, how it is augmented, and the embedded scenes in its place."""

from typing import Any

from ml_collections import ConfigDict

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# The embedded scenes in the place of other data, in colors and in the infrared.
SCENES = {"source": "scenes", "image_size": (64, 64), "mean": (0.467,) * 3, "std": (0.198,) * 3}
THERMAL = {"view": "thermal", "mean": (0.452,) * 3, "std": (0.173,) * 3}


def folders_and_masks(**fields: Any) -> ConfigDict:
    """Images and masks in folders, resized and cropped at random as mmsegmentation does."""
    data = _section("segmentation", domain="synthetic")
    data.path, data.split = "", "train"
    data.layout = ""  # a name of vadapt.data.layouts; "": as dataset.yaml says
    data.num_classes = 0  # where nothing names them
    data.short_edges, data.longest = (), 2048  # to one of which images are resized; (): as they are
    data.max_share = 0.75  # of one class in a crop
    data.distort = True  # colors
    data.augment = True  # False: images resized to image_size, nothing random
    data.cache = ""  # a folder for features of a frozen backbone; see docs/segmentation_data.md
    data.test_longest, data.test_shortest = 0, 0  # into which test images fit; 0: as they are
    data.update({**IMAGENET, **fields})
    return data


def images_and_labels(**fields: Any) -> ConfigDict:
    """Images that have labels, all of one size."""
    data = _section("labels", domain="synthetic")
    data.layout = ""  # a name of vadapt.data.label_files, for files that say the labels
    data.path, data.split, data.tfds_name = "", "train", ""
    data.split_seed = 0  # draws what validates, where the files do not say it
    data.shots, data.shots_seed = 0, 0  # images of each class to learn from; 0: all
    data.class_half = ""  # "first" or "second": these classes alone; "": all
    data.balance = 0.0  # labels of a smaller share of the images come more often; 0: all once
    data.views = 1  # of an image in succession
    data.test_crop = 0.0  # share of the shorter side that tests see; 0: the whole image, squeezed
    data.update({**IMAGENET, **fields})
    return data


def infrared_images(**fields: Any) -> ConfigDict:
    """Images without labels, cropped at random, or around candidates of objects."""
    data = _section("msip", view="thermal")
    data.path, data.split, data.tfds_name = "MSIP", "train", ""
    data.update(fields)
    return data


def _section(source: str, **scenes: Any) -> ConfigDict:
    """What all data have, and what the source `scenes` reads besides."""
    fields = {"view": "visible", "num_scenes": 4096, "scene_seed": 0}
    return ConfigDict({"source": source, "max_corrupt": 0.01, **fields, **scenes})


def test_scenes(number: int) -> ConfigDict:
    """Scenes to test on, by day as in training, and dirty, at night, in fog and rain."""
    fields = {"num_scenes": number, "scene_seed": 900_002}
    domains = {"clean": "synthetic", "other": "real"}
    return ConfigDict({name: {**fields, "domain": domain} for name, domain in domains.items()})
