"""Files of a run: the adapter (what was trained, and on what base), or the whole model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt import __version__
from vadapt.errors import WeightsError
from vadapt.partition import DEFAULT, Frozen, Trainable, Tree, flatten, split, variables
from vadapt.weights.files import read_arrays, read_header, write_arrays
from vadapt.weights.load import assign


def fingerprint(frozen: Tree) -> str:
    """A hash of frozen weights that does not depend on their order.

    It is taken of the weights rounded to bfloat16: those that a run kept in bfloat16 and the
    float32 ones they came from are one base.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(frozen).items()):
        digest.update(path.encode())
        digest.update(np.asarray(leaf).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def save_adapter(
    path: str | Path, model: nnx.Module, *, trainable: Trainable = DEFAULT, **header: Any
) -> None:
    """Writes the trainable part of a model (usually a backbone) as `.safetensors`.

    Args:
        header: what else the file should say of itself, such as the method's options; any JSON.
    """
    parts = split(model, trainable)
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(parts.trainable).items()}
    text = {name: json.dumps(value) for name, value in header.items()}
    write_arrays(path, arrays, {"vadapt": __version__, "base": fingerprint(parts.frozen), **text})


def save_model(path: str | Path, model: nnx.Module, dtype: str = "float32") -> None:
    """Writes every parameter of a model but a teacher's, heads included, for `load_weights`.

    Args:
        dtype: to store as; "float16" halves the file and is far finer than training noise.
    """
    arrays = {
        name: np.asarray(value[...]).astype(dtype)
        for name, value in variables(model).items()
        if isinstance(value, nnx.Param) and not isinstance(value, Frozen)
    }
    write_arrays(path, arrays, {"vadapt": __version__})


def load_adapter(model: nnx.Module, path: str | Path, *, trainable: Trainable = DEFAULT) -> None:
    """Loads an adapter file into a model that has the same method grafted, in place.

    Raises:
        WeightsError: it was trained on another base (names both hashes), or its leaves differ.
    """
    arrays, header = read_arrays(path), read_header(path)
    parts = split(model, trainable)
    base = fingerprint(parts.frozen)
    if header.get("base") != base:
        raise WeightsError(
            f"{str(path)!r} was trained on base weights {header.get('base')}, this model's are "
            f"{base}; load the same pretrained weights first"
        )
    wanted = {name: leaf.shape for name, leaf in flatten(parts.trainable).items()}
    found = {name: array.shape for name, array in arrays.items()}
    if wanted != found:
        names = sorted(set(wanted.items()) ^ set(found.items()))
        raise WeightsError(
            f"{str(path)!r} and the model's trainable leaves differ in {len(names)} places: "
            f"{names[:4]}; graft the method with the options of the file's header: {header}"
        )
    assign(model, arrays)
