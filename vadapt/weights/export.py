"""Backbones as folders of Hugging Face's transformers: weights under its names, and its config."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from vadapt.errors import WeightsError, nearest
from vadapt.partition import variables
from vadapt.weights.families import families
from vadapt.weights.files import write_arrays
from vadapt.weights.tables import revert
from vadapt.weights.transformers_config import TRAITS, Form


@functools.cache
def forms() -> dict[str, Form]:
    """The forms of all families in transformers, by the name of the family there."""
    return {name: form for family in families() for name, form in family.forms.items()}


def save_hugging_face(model: nnx.Module, folder: str | Path, family: str) -> Path:
    """Writes a plain backbone as `AutoModel.from_pretrained(folder)` reads it.

    Positions of another grid than the model's own are transformers' affair: it resizes DINOv2's
    table as `position_resize="cubic"` does.

    Args:
        family: a key of `forms()`, such as "dinov2".

    Returns:
        The folder, with `model.safetensors` and `config.json`.

    Raises:
        WeightsError: no such family, or the model has what it cannot say, such as a bias that a
            fold has given to a layer; names all of it.
    """
    if family not in forms():
        raise WeightsError(f"unknown family {family!r}; {nearest(family, forms())}")
    known = forms()[family]
    wrong = _differences(model, known)
    if wrong:
        raise WeightsError(
            f"transformers' {family} cannot be this {type(model).__name__}, which has "
            f"{'; '.join(wrong)}"
        )
    values = {path: np.asarray(value[...]) for path, value in variables(model).items()}
    if uneven := _uneven(values):
        raise WeightsError(
            f"transformers' {family} has a bias of a layer in all blocks or in none, and this "
            f"{type(model).__name__} has {uneven[0]} in some alone; apply ssf to that layer of "
            "every block before it is folded"
        )
    arrays, nameless = revert(values, known.table)
    if nameless:
        raise WeightsError(f"transformers' {family} has no name for {_explained(nameless, values)}")
    config = known.config(model)
    folder = Path(folder)
    write_arrays(folder / "model.safetensors", arrays, {"format": "pt"})
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "config.json")
    return folder


def family_of(backbone: str) -> str:
    """The family of a named backbone: "dinov2" of "dinov2_small_reg".

    Raises:
        WeightsError: transformers' names are not known for it.
    """
    for family, known in forms().items():
        if re.fullmatch(known.names, backbone):
            return family
    raise WeightsError(
        f"no transformers family is known for {backbone!r}; known: {', '.join(forms())}"
    )


def _differences(model: nnx.Module, family: Form) -> list[str]:
    """Name what the family's code would compute otherwise, in words after "has"."""
    if not isinstance(model, family.kind):
        return [f"not the layers of a {family.kind.__name__}"]
    return [
        trait if there else f"no {trait}"
        for trait, there in TRAITS[family.kind](model).items()
        if trait not in family.may and there != (trait in family.has)
    ]


def _explained(nameless: Sequence[str], values: Mapping[str, Any]) -> str:
    """Name paths that a family has no name for, and what to do about them."""
    more = f" and {len(nameless) - 4} more" if len(nameless) > 4 else ""
    listed = ", ".join(nameless[:4]) + more
    layers = {path.removesuffix("/bias") for path in nameless if path.endswith("/bias")}
    named = {path.rpartition("/")[0] for path in values if path not in nameless}
    if len(layers & named) == len(nameless):
        return (
            f"{listed}: its layers have no bias there, and a fold of ssf gives them one. Apply ssf "
            "with targets that leave these layers out, or export the model whole "
            "(vadapt.export_features)"
        )
    return (
        f"{listed}; fold adapters in first (vadapt.fold, or the command `merge`), leave heads out"
    )


def _uneven(values: Mapping[str, Any]) -> list[str]:
    """Biases that the layer of the same name has in some blocks and not in others."""
    layers: dict[str, set[bool]] = {}
    for path in values:
        block = re.fullmatch(r"(?:blocks/\d+|stages/\d+/\d+)/(.*)/kernel", path)
        if block is not None:
            bias = path.removesuffix("kernel") + "bias"
            layers.setdefault(f"{block[1]}/bias", set()).add(bias in values)
    return sorted(name for name, there in layers.items() if len(there) == 2)
