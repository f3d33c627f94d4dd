"""What every task does with `config.data`: sources, training streams, normalisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vadapt.data.scenes import SceneOptions, Scenes
from vadapt.data.sources import Folder, Source, Tfds
from vadapt.data.stream import Stream, make_stream
from vadapt.data.transforms import HorizontalFlip, RandomResizedCrop
from vadapt.errors import ConfigError, nearest

SOURCES = ("scenes", "folder", "tfds")


def make_source(data: Any) -> Source:
    """The images that `config.data` names.

    Fields: `source` ("scenes", "folder" or "tfds"), `path` (of a folder, or where TFDS keeps its
    data), `tfds_name`, `split`, and for scenes `num_scenes`, `view`, `image_size`, `scene_seed`.

    Raises:
        ConfigError: an unknown source, or a folder without a path.
    """
    if data.source == "scenes":
        height, width = data.image_size
        return Scenes(
            data.num_scenes,
            view=data.view,
            seed=data.scene_seed,
            options=SceneOptions(height=height, width=width),
        )
    if data.source == "folder":
        if not data.path:
            raise ConfigError("config.data.source is 'folder': give --config.data.path=DIR")
        return Folder(data.path)
    if data.source == "tfds":
        return Tfds(data.tfds_name, data.split, data_dir=data.path or None)
    raise ConfigError(
        f"unknown config.data.source {data.source!r}; {nearest(data.source, SOURCES)}"
    )


def training_stream(config: Any, fields: tuple[str, ...] = ("image",)) -> Stream:
    """Batches of this process for `config`: random resized crops, flipped half of the time.

    Args:
        fields: of a record, the ones that the task reads; only these travel to the device.
    """
    data = config.data
    return make_stream(
        make_source(data),
        [
            RandomResizedCrop(tuple(data.image_size), area=tuple(data.crop_area)),
            HorizontalFlip(),
        ],
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_corrupt=data.max_corrupt,
        fields=fields,
    )


def normalise(images: UInt8[Array, "b h w c"], mean: float, std: float) -> Float[Array, "b h w 3"]:
    """Images 0-255 as the model sees them: (x / 255 - mean) / std, one channel shown thrice."""
    x = (images.astype(jnp.float32) / 255.0 - mean) / std
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def denormalise(
    images: Float[Array, "b h w 3"], mean: float, std: float
) -> Float[Array, "b h w 3"]:
    """The inverse of `normalise`, to 0-1."""
    return images * std + mean
