"""A model as one file that any JAX runs: compiled code (StableHLO), weights and preprocessing.

The file is what `jax.export.deserialize` reads; vadapt is not needed where it runs. Behind that
may stand an archive, as behind a program that unpacks itself: `unzip -p FILE about.json` shows what
the file says of itself. Writing and reading need `pip install 'vadapt[export]'`.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from vadapt.backbones.staged import Staged
from vadapt.backbones.vit import as_pair
from vadapt.errors import WeightsError
from vadapt.partition import human_bytes, num_bytes

PLATFORMS = ("cpu", "tpu", "cuda")
ABOUT = "about.json"
MAX_BYTES = 2**31 - 2**24  # of a flatbuffer; the rest is for the code


class Exported:
    """An exported function: call it with images [b, h, w, 3], uint8, of any batch size.

    Fields: `name`, `image_size`, `platforms`, and `outputs` {name: shape} ("features", or
    "layer_5" and the like; the batch is a letter). `about` is what the file says of itself; that of
    a run has the task, `classes` and `palette`, and how images are prepared.
    """

    def __init__(
        self, exported: jax.export.Exported, about: Mapping[str, Any] = MappingProxyType({})
    ):
        self._exported, self.about = exported, about
        self.classes: tuple[str, ...] = tuple(about.get("classes", ()))
        self.name: str = exported.fun_name
        (images,) = exported.in_avals
        self.image_size: tuple[int, int] = images.shape[1:3]
        self.platforms: tuple[str, ...] = tuple(exported.platforms)
        shapes = [tuple(map(_size, aval.shape)) for aval in exported.out_avals]
        outputs = jax.tree.unflatten(exported.out_tree, range(len(shapes)))
        names = outputs if isinstance(outputs, dict) else {"features": outputs}
        self.outputs: dict[str, tuple[int | str, ...]] = {
            name: shapes[number] for name, number in names.items()
        }
        self._call = jax.jit(exported.call)

    def __call__(self, images: UInt8[Array, "b h w 3"] | UInt8[np.ndarray, "b h w 3"]) -> Any:
        return self._call(images)

    def __repr__(self) -> str:
        height, width = self.image_size
        outputs = ", ".join(
            f"{name} [{', '.join(map(str, shape))}]" for name, shape in self.outputs.items()
        )
        return (
            f"{self.name}: uint8 [b, {height}, {width}, 3] -> {outputs} "
            f"({', '.join(self.platforms)})"
        )


def export_features(
    model: Any,
    path: str | Path,
    *,
    image_size: int | Sequence[int],
    statistics: Any,
    layers: int | Sequence[int] = -1,
    as_grid: bool = False,
    input_size: int | Sequence[int] | None = None,
    dtype: str | None = None,
    name: str = "features",
) -> Path:
    """Writes `model.features` of uint8 images, adapters and all, to one file for every platform.

    Args:
        image_size: (height, width) that the model sees.
        statistics: mean and standard deviation per channel in 0-1, of the model's training (see
            `vadapt.models.statistics`).
        layers, as_grid: of `features`. One layer gives an array; several give a dictionary with
            keys such as "layer_5", counted from 0; stages where a model has them.
        input_size: (height, width) of the images given, if the file is to resize them: bicubic,
            antialiased, back into 0-255.
        dtype: to store weights and compute in, such as "bfloat16"; features are float32 anyway.
        name: what the file calls itself.

    Raises:
        WeightsError: more than 2 GB of weights, or the extra `export` is not installed.
    """
    size = as_pair(image_size)
    number = len(model.stages if isinstance(model, Staged) else model.blocks)
    numbers = (layers,) if isinstance(layers, int) else tuple(layers)
    mean, std = (jnp.asarray(row, jnp.float32).reshape(1, 1, 1, -1) for row in statistics)

    def features(model: Any, images: Array) -> Any:
        pixels = _resized(images.astype(jnp.float32), size) / 255.0
        pixels = (pixels - jnp.broadcast_to(mean, pixels.shape)) / jnp.broadcast_to(
            std, pixels.shape
        )
        found = model.features(pixels, numbers, as_grid=as_grid)
        found = [output.astype(jnp.float32) for output in found]
        if isinstance(layers, int):
            return found[0]
        return {f"layer_{n % number}": y for n, y in zip(numbers, found, strict=True)}

    given = size if input_size is None else as_pair(input_size)
    return export_program(features, model, path, input_size=given, dtype=dtype, name=name)


def export_program(
    function: Callable[[Any, Array], Any],
    model: nnx.Module,
    path: str | Path,
    *,
    input_size: tuple[int, int],
    dtype: str | None = None,
    name: str,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Writes a function of a model and uint8 images [b, h, w, 3] to one file for every platform.

    Args:
        input_size: (height, width) of the images.
        dtype, name: see `export_features`.
        about: what the file says of itself; any JSON.

    Raises:
        WeightsError: see `export_features`.
    """
    graph, state = nnx.split(model)
    if dtype is not None:
        state = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            state,
        )
    if num_bytes(nnx.to_pure_dict(state)) > MAX_BYTES:
        raise WeightsError(
            f"{human_bytes(num_bytes(nnx.to_pure_dict(state)))} of weights, and a StableHLO file "
            "holds 2 GB; store them in half (dtype='bfloat16'), or export in Hugging Face's format"
        )

    def program(images: Array) -> Any:
        return function(nnx.merge(graph, state), images)

    program.__name__ = name
    return _write(Path(path), program, input_size, about)


def load_exported(path: str | Path) -> Exported:
    """The function in a file of `export_features`, or of a run's `export`.

    Raises:
        WeightsError: no such file, or one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no exported file at {str(path)!r}")
    _flatbuffers()
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        return Exported(exported, _about(path))
    except Exception as error:  # flatbuffers raises whatever a damaged file leads it to
        raise WeightsError(
            f"{str(path)!r} is damaged, or no file of vadapt.export_features: "
            f"{type(error).__name__}: {error}"
        ) from error


def _write(
    path: Path, function: Callable[[Array], Any], size: tuple[int, int], about: Mapping[str, Any]
) -> Path:
    _flatbuffers()
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(exported.serialize())
    if about:
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(dict(about), indent=1) + "\n")
    partial.replace(path)
    return path


def _about(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(ABOUT)) if ABOUT in archive.namelist() else {}


def _resized(images: Array, size: tuple[int, int]) -> Array:
    if images.shape[1:3] == size:
        return images
    shape = (images.shape[0], *size, images.shape[3])
    return jnp.clip(jax.image.resize(images, shape, "cubic", antialias=True), 0.0, 255.0)


def _size(dimension: Any) -> int | str:
    return dimension if isinstance(dimension, int) else str(dimension)


def _flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise WeightsError(
            "StableHLO files need the package flatbuffers: pip install 'vadapt[export]'"
        )
