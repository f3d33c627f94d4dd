"""Inputs of every task, of `config.data`: sources, training streams, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vadapt.data.msip import Msip
from vadapt.data.roi_crop import RandomRoiCrop, RoiRules
from vadapt.data.scenes import SceneOptions, Scenes
from vadapt.data.segmentation import Segmentation
from vadapt.data.sources import Folder, Source, Tfds
from vadapt.data.stream import Stream, make_stream
from vadapt.data.transforms import HorizontalFlip, RandomResizedCrop, Transform
from vadapt.errors import ConfigError
from vadapt.options import accepted
from vadapt.registry import Registry

# config.data.source -> a function of `config.data` to a source, and of whether it needs labels.
SOURCES = Registry(
    "config.data.source",
    {
        name: f"vadapt.tasks.inputs:{name}_source"
        for name in ("scenes", "folder", "msip", "segmentation", "tfds")
    },
)


def make_source(data: Any, *, labelled: bool = False) -> Source:
    """The images that `config.data` names.

    Fields: `source` (a name in `SOURCES`, or the place of a function of `config.data` to a source,
    as in "my_package.data:drone"), and those that the source reads.

    Args:
        labelled: scenes have their masks, and no candidates of objects.

    Raises:
        ConfigError: an unknown source, or a folder without a path.
    """
    make = SOURCES[data.source]
    return make(data, labelled=labelled) if "labelled" in accepted(make) else make(data)


def scenes_source(data: Any, *, labelled: bool = False) -> Source:
    """The embedded street scenes.

    Reads `num_scenes`, `view`, `domain` ("synthetic" if absent), `image_size`, `scene_seed`.
    """
    height, width = data.image_size
    fields = ("image", "rois") if data.get("roi_probability", 0.0) else ("image",)
    return Scenes(
        data.num_scenes,
        view=data.view,
        fields=("image", "mask") if labelled else fields,
        seed=data.scene_seed,
        options=SceneOptions(height=height, width=width, domain=data.get("domain", "synthetic")),
    )


def folder_source(data: Any) -> Source:
    """Images in a folder, of any nesting. Reads `path`."""
    if not data.path:
        raise ConfigError("config.data.source is 'folder': give --config.data.path=DIR")
    _refuse_rois(data)
    return Folder(data.path)


def msip_source(data: Any) -> Source:
    """PAD's infrared images, of eight public sets, with candidates of objects. Reads `path`."""
    if not data.path:
        raise ConfigError("config.data.source is 'msip': give --config.data.path=ROOT")
    msip = Msip(data.path)
    if data.get("roi_probability", 0.0) and not msip.has_rois:
        raise ConfigError(
            f"no candidates of objects in {data.path!r}: compute them, once, with python -m "
            f"vadapt.data.roi_candidates {data.path}, or crop anywhere with "
            "--config.data.roi_probability=0"
        )
    return msip


def segmentation_source(data: Any) -> Source:
    """Images and masks in folders.

    Reads `path`, `split` and `layout` (a name in `vadapt.data.layouts`; "": as its `dataset.yaml`
    says).
    """
    if not data.path:
        raise ConfigError("config.data.source is 'segmentation': give --config.data.path=ROOT")
    _refuse_rois(data)
    return Segmentation(data.path, data.split, layout=data.get("layout", "") or None)


def tfds_source(data: Any) -> Source:
    """A data set of TFDS. Reads `tfds_name`, `split` and `path` (where TFDS keeps its data)."""
    return Tfds(data.tfds_name, data.split, data_dir=data.path or None)


def _refuse_rois(data: Any) -> None:
    if data.get("roi_probability", 0.0):
        raise ConfigError(
            "a folder has no candidates of objects to crop around: arrange it as MSIP and give "
            "--config.data.source=msip, or crop anywhere: --config.data.roi_probability=0"
        )


def random_crop(data: Any) -> Transform:
    """The crop of `config.data`: anywhere, or around candidates of objects ("rois" of a record).

    Fields: `image_size`, `crop_area`; and for the latter `roi_probability` (0: anywhere; else see
    `RoiRules.probability`) and `roi_min_side` (of a crop, in pixels; a candidate has two thirds).
    """
    size, area = tuple(data.image_size), tuple(data.crop_area)
    if not data.get("roi_probability", 0.0):
        return RandomResizedCrop(size, area=area)
    rules = RoiRules(
        probability=data.roi_probability,
        min_side=data.roi_min_side,
        min_candidate_side=max(round(data.roi_min_side * 2 / 3), 1),
    )
    return RandomRoiCrop(size, rules, area=area)


def training_stream(config: Any, fields: tuple[str, ...] = ("image",)) -> Stream:
    """Batches of this process for `config`: random crops, flipped half of the time.

    Args:
        fields: of a record, the ones that the task reads; only these travel to the device.
    """
    data = config.data
    return make_stream(
        make_source(data),
        [
            random_crop(data),
            HorizontalFlip(),
        ],
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_corrupt=data.max_corrupt,
        fields=fields,
    )


def batch_shapes(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a whole batch of `training_stream`; thermal scenes are grey, the rest colour."""
    data = config.data
    channels = 1 if data.source == "scenes" and data.view == "thermal" else 3
    shape = (config.batch_size, *data.image_size, channels)
    return {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}


def normalise(
    images: UInt8[Array, "b h w c"], mean: float | Sequence[float], std: float | Sequence[float]
) -> Float[Array, "b h w 3"]:
    """Images 0-255 as the model sees them: (x / 255 - mean) / std, one channel shown thrice.

    Args:
        mean, std: of all channels, or one of each.
    """
    means, stds = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    x = (images.astype(jnp.float32) / 255.0 - means) / stds
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def blank_padding(
    images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Zero, that is the mean of normalised images, at the right of and below (height, width)."""
    rows = jnp.arange(images.shape[1])[None, :] < sizes[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < sizes[:, 1:]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, images, jnp.zeros((), images.dtype))


def denormalise(
    images: Float[Array, "b h w 3"], mean: float, std: float
) -> Float[Array, "b h w 3"]:
    """The inverse of `normalise`, to 0-1."""
    return images * std + mean
