"""Sections of data: what is read, how it is augmented, and the embedded scenes in its place."""

from typing import Any

from ml_collections import ConfigDict

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# The embedded scenes in the place of other data, in colors and in the infrared.
SCENES = {"source": "scenes", "image_size": (64, 64), "mean": (0.467,) * 3, "std": (0.198,) * 3}
THERMAL = {"view": "thermal", "mean": (0.452,) * 3, "std": (0.173,) * 3}


# Pictures of four scenes each, with some twenty objects of 5 to 20 px.
SMALL_THINGS = {**SCENES, "source": "scene_boxes", "mosaic": 2, "image_size": (128, 128)}


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


def images_and_boxes(**fields: Any) -> ConfigDict:
    """Images with the boxes of their objects, resized with their aspect kept."""
    data = _section("boxes", domain="synthetic", mosaic=1)
    data.layout = "coco"  # a name of vadapt.data.detection.LAYOUTS
    data.path, data.split, data.tfds_name = "", "train", ""
    data.annotations, data.image_folder = "", ""  # places under the path; "": the layout's own
    data.box_rule = "training"  # objects and images to learn from; "all" to test on
    data.bad_boxes, data.bad_records = "clip", "raise"  # what becomes of boxes that cannot be so
    data.dense_images = False  # of TinyPerson
    data.tile, data.tile_overlap = (), (0, 0)  # (height, width) of parts that images are cut into
    data.tile_keep = "root"  # which cut boxes a part has, see vadapt.data.tiling.KEEP_RULES
    data.max_boxes = 500  # of an image; of one with more the largest stay
    data.short_edges, data.longest = (), 0  # one drawn for an image; (): as large as image_size
    data.test_longest, data.test_shortest = 0, 0  # into which test images fit; 0: image_size
    data.multiple = 64  # to which test images are padded; 0: to image_size
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
