"""The package's own sources, by the names that `config.data.source` has for them.

Each is a function of settings of `config.data`, by name, and of the fields that a task reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vadapt.data.detection import BOX_FIELDS, BoxedImages, TfdsBoxes
from vadapt.data.msip import Msip
from vadapt.data.multilabel import (
    ClassFolders,
    LabelledImages,
    SceneLabels,
    SceneObjects,
    TfdsLabels,
)
from vadapt.data.scene_boxes import SceneBoxes
from vadapt.data.scenes import SceneOptions, Scenes
from vadapt.data.segmentation import Segmentation
from vadapt.data.sources import Folder, Source, Tfds
from vadapt.errors import ConfigError
from vadapt.options import takes

EMBEDDED = ("scenes", "scene_objects", "scene_boxes")
_LABELS = ("labels", "areas")
# Where fields are to be had that a source lacks.
_INSTEAD = {
    "mask": "images without labels of pixels; 'segmentation' reads images and masks in folders",
    "labels": "images without labels; 'labels' and 'folders' read images with labels",
    "boxes_xyxy": "images without boxes; 'boxes' reads images and the boxes of their objects",
    "rois": "no candidates of objects to crop around: arrange the images as MSIP and give "
    "--config.data.source=msip, or crop anywhere: --config.data.roi_probability=0",
}


def _scene_options(
    image_size: Sequence[int],
    domain: str = "synthetic",
    object_size: float = 1.0,
    long_tail: float = 0.0,
) -> SceneOptions:
    return SceneOptions(*image_size, domain=domain, object_size=object_size, long_tail=long_tail)


@takes(_scene_options)
def scenes(
    fields: Sequence[str], num_scenes: int, view: str, scene_seed: int, **options: Any
) -> Source:
    """The embedded street scenes, with any of their fields.

    Labels are the categories of the things that a scene shows; see `multilabel.SceneLabels`.
    """
    others = tuple(name for name in fields if name not in _LABELS)
    common = {"view": view, "seed": scene_seed, "options": _scene_options(**options)}
    make = Scenes if others == tuple(fields) else SceneLabels
    return make(num_scenes, fields=others, **common)


@takes(_scene_options)
def scene_objects(
    fields: Sequence[str], num_scenes: int, view: str, scene_seed: int, **options: Any
) -> Source:
    """Single objects of the embedded scenes, each with one label."""
    _check_fields("scene_objects", fields, ("image", "labels"))
    return SceneObjects(num_scenes, view=view, seed=scene_seed, options=_scene_options(**options))


@takes(_scene_options)
def scene_boxes(
    fields: Sequence[str],
    num_scenes: int,
    view: str,
    scene_seed: int,
    mosaic: int = 1,
    **options: Any,
) -> Source:
    """Pictures of several embedded scenes each, with the boxes of their objects."""
    _check_fields("scene_boxes", fields, ("image", *BOX_FIELDS))
    made = _scene_options(**options)
    return SceneBoxes(num_scenes, mosaic=mosaic, view=view, seed=scene_seed, options=made)


def folder(fields: Sequence[str], path: str) -> Source:
    """Images in a folder, of any nesting."""
    _check_path("folder", path, "DIR")
    _check_fields("folder", fields, ("image",))
    return Folder(path)


def msip(fields: Sequence[str], path: str) -> Source:
    """PAD's infrared images, of eight public sets, with candidates of objects."""
    _check_path("msip", path)
    _check_fields("msip", fields, ("image", "rois"))
    found = Msip(path)
    if "rois" in fields and not found.has_rois:
        raise ConfigError(
            f"no candidates of objects in {path!r}: compute them, once, with python -m "
            f"vadapt.data.roi_candidates {path}, or crop anywhere with "
            "--config.data.roi_probability=0"
        )
    return found


def segmentation(fields: Sequence[str], path: str, split: str = "", layout: str = "") -> Source:
    """Images and masks in folders.

    `layout` is a name in `vadapt.data.layouts`, or "": as their `dataset.yaml` says.
    """
    _check_path("segmentation", path)
    _check_fields("segmentation", fields, ("image", "mask"))
    return Segmentation(path, split, layout=layout or None, labelled="mask" in fields)


def labels(
    fields: Sequence[str], path: str, split: str = "", layout: str = "table", split_seed: int = 0
) -> Source:
    """Images, and files that say their labels; `layout` is a name in `multilabel.LAYOUTS`.

    `split_seed` draws what validates, of a layout that holds a part of the training images out.
    """
    _check_path("labels", path)
    _check_fields("labels", fields, ("image", *_LABELS))
    return LabelledImages(path, split, layout=layout, split_seed=split_seed)


def folders(
    fields: Sequence[str], path: str, split: str = "train", classes: Sequence[str] = ()
) -> Source:
    """Images in folders, one per class; `classes` are those of the training data."""
    _check_path("folders", path)
    _check_fields("folders", fields, ("image", "labels"))
    return ClassFolders(path, split, classes=classes)


def boxes(
    fields: Sequence[str],
    path: str,
    split: str = "",
    layout: str = "coco",
    annotations: str = "",
    image_folder: str = "",
    box_rule: str = "all",
    bad_boxes: str = "clip",
    bad_records: str = "raise",
    dense_images: bool = False,
    tile: Sequence[int] = (),
    tile_overlap: Sequence[int] = (0, 0),
    tile_keep: str = "root",
    classes: Sequence[str] = (),
) -> Source:
    """Images and files that say the boxes of their objects; see `detection.BoxedImages`.

    `layout` is a name in `detection.LAYOUTS`; `annotations` and `image_folder` are places from the
    root, where they are not the layout's own; `dense_images` keeps TinyPerson's dense pictures.
    """
    _check_path("boxes", path)
    _check_fields("boxes", fields, ("image", "name", *BOX_FIELDS))
    return BoxedImages(
        path,
        split,
        layout=layout,
        rule=box_rule,
        bad_boxes=bad_boxes,
        bad_records=bad_records,
        tile=tile,
        tile_overlap=tile_overlap,
        tile_keep=tile_keep,
        annotations=annotations,
        images=image_folder,
        dense=dense_images,
        classes=tuple(classes) if layout == "voc" else (),
    )


def tfds(fields: Sequence[str], tfds_name: str, split: str = "train", path: str = "") -> Source:
    """A data set of TFDS; `path` is where TFDS keeps its data."""
    make = TfdsLabels if "labels" in fields else TfdsBoxes if {*BOX_FIELDS} & {*fields} else Tfds
    # A data set's other features may have names of fields, and forms that are not theirs.
    read = (*fields, *_LABELS) if "labels" in fields else fields
    return make(tfds_name, split, data_dir=path or None, fields=read)


def _check_path(name: str, path: str, kind: str = "ROOT") -> None:
    if not path:
        raise ConfigError(f"config.data.source is {name!r}: give --config.data.path={kind}")


def _check_fields(name: str, fields: Sequence[str], known: Sequence[str]) -> None:
    """Refuse fields that a source has in no record, before it is read."""
    lacking = [field for field in fields if field not in known]
    if lacking:
        reason = _INSTEAD.get(lacking[0], f"no {lacking[0]!r}; it has {', '.join(known)}")
        raise ConfigError(f"config.data.source={name!r} has {reason}")
