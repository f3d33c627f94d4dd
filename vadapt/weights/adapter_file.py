"""Files of a run: the adapter (what was trained, and on what base), or the whole model."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt import __version__
from vadapt.backbones.named import Statistics
from vadapt.errors import ConfigError, WeightsError
from vadapt.nn.plans import spell
from vadapt.partition import (
    DEFAULT,
    Adapter,
    Factor,
    Frozen,
    Partition,
    Prompt,
    Statistic,
    Trainable,
    Tree,
    flatten,
    split,
    variables,
)
from vadapt.quantization import INT8
from vadapt.weights import grids, headers
from vadapt.weights.base import BACKBONE, base_of
from vadapt.weights.files import is_finite, read_arrays, read_header, write_arrays
from vadapt.weights.hub import local_adapter
from vadapt.weights.load import assign
from vadapt.weights.patterns import ends_soon, texts
from vadapt.weights.rounding import round_frozen

_LONGEST = 300  # characters of a header in messages


def fingerprint(frozen: Tree) -> str:
    """The hash of all frozen weights by which files name their base that say no `base_kind`.

    It is of the weights rounded to bfloat16, at the image size that they were resized to.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(frozen).items()):
        digest.update(path.encode())
        digest.update(np.asarray(leaf).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()[:16]


class AdapterInfo(NamedTuple):
    """The header of an adapter file; None or empty where it says nothing."""

    path: Path
    base: str  # hash of the backbone's pretrained weights, see `base.base_of`
    version: str  # of vadapt
    base_kind: str = ""  # "backbone"; empty in older files, see `fingerprint`
    methods: tuple[Mapping[str, Any], ...] = ()  # in the order of applying: name and options
    backbone: str | None = None  # name for `vadapt.create`
    plan: str = ""  # in which the backbone's blocks run, see `plans.read`; "" for each once
    trainable: str | Sequence[str] | None = None  # the setting that chose the file's leaves
    classes: tuple[str, ...] = ()
    statistics: Statistics | None = None  # of the pixels, in 0-1
    # Whatever else the header holds; of a run `config`, what building and using its model takes of
    # the settings, and `palette`, a color a class.
    extra: Mapping[str, Any] = MappingProxyType({})

    @property
    def described(self) -> str:
        """The methods as one would apply them: "lora(rank=4) on 'vit_base'"."""
        calls = [
            f"{method['name']}({', '.join(f'{k}={v!r}' for k, v in method.items() if k != 'name')})"
            for method in self.methods
        ]
        described = ", then ".join(calls) or "no known method"
        return f"{described[:_LONGEST]} on {self.base_name}"

    @property
    def base_name(self) -> str:
        """The backbone, and the weights that it had where the file says so."""
        name = repr(self.backbone) if self.backbone else "an unnamed backbone"
        weights = self.extra.get("weights")
        return f"{name} with weights {weights!r:.{_LONGEST}}" if weights else name


# What the header calls the fields that it may lack.
_FIELDS = {field: {"methods": "method"}.get(field, field) for field in AdapterInfo._fields[3:-1]}


def save_adapter(
    path: str | Path,
    model: nnx.Module,
    *,
    trainable: Trainable = DEFAULT,
    method: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    backbone: str | None = None,
    classes: Sequence[str] = (),
    statistics: Any = None,
    **extra: Any,
) -> None:
    """Writes what a model learns, heads included, as `.safetensors`; nothing else.

    That is its trainable part, and the running statistics of norms that train.

    Args:
        model: usually a backbone, or a model with one as its `backbone` under a head.
        method: name and options of what was applied; by default what `vadapt.adapt` did.
        backbone: what `vadapt.create` calls the model without the method.
        classes: their names, in the order of the head's outputs.
        statistics: mean and standard deviation of the pixels, in 0-1, that it was trained with.
        extra: what else the file should say of itself; any JSON.
    """
    learned = _learned(model, split(model, trainable))
    arrays = {name: np.asarray(leaf) for name, leaf in learned.items()}
    whole = getattr(model, "backbone", model)
    applied, plan = getattr(whole, "applied", ()), getattr(whole, "plan", None)
    methods = [dict(one) for one in applied] if method is None else method
    if isinstance(methods, list) and len(methods) == 1:
        methods = methods[0]
    named = isinstance(trainable, str | list | tuple)
    header = {
        "base_kind": "backbone",
        "method": methods or None,
        "backbone": backbone,
        "plan": None if plan is None else spell(plan),
        "trainable": trainable if named and trainable != "default" else None,
        "classes": list(classes) or None,
        "statistics": statistics,
        **extra,
    }
    text = {name: json.dumps(value) for name, value in header.items() if value is not None}
    text |= _grids(model, arrays)
    write_arrays(path, arrays, {"vadapt": __version__, "base": base_of(model, learned), **text})


def read_info(path: str | Path) -> AdapterInfo:
    """The header of an adapter file.

    Raises:
        WeightsError: no such file, one that cannot be read, or no adapter file.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no adapter file at {str(path)!r}")
    try:
        header = read_header(path)
    except Exception as error:  # safetensors has a class of its own for what it cannot read
        raise WeightsError(f"{str(path)!r} is damaged or no .safetensors file: {error}") from error
    if "base" not in header or "vadapt" not in header:
        raise WeightsError(
            f"{str(path)!r} is no adapter file: its header does not say the base. "
            "vadapt.load_weights reads files of whole models."
        )
    fields = headers.parse(path, header)
    return AdapterInfo(
        path,
        fields.pop("base"),
        fields.pop("vadapt"),
        **{name: fields.pop(said) for name, said in _FIELDS.items() if said in fields},
        extra=fields,
    )


def save_model(path: str | Path, model: nnx.Module, dtype: str = "float32", **extra: Any) -> None:
    """Writes all weights of a model but a teacher's, heads included, for `load_weights`.

    Args:
        dtype: to store parameters as; "float16" halves the file and is far finer than training
            noise. Running statistics, of any magnitude, stay as they are.
        extra: what the file's header should say besides; any JSON.
    """
    arrays = {
        name: np.asarray(value[...], None if isinstance(value, Statistic) else jnp.dtype(dtype))
        for name, value in variables(model).items()
        if isinstance(value, nnx.Param | Statistic)
        and (isinstance(value, Factor) or not isinstance(value, Frozen))
    }
    text = {name: json.dumps(value) for name, value in extra.items()}
    write_arrays(path, arrays, {"vadapt": __version__, **_grids(model, arrays), **text})


def _grids(model: nnx.Module, arrays: Mapping[str, Any]) -> dict[str, str]:
    """The field of a header that says the grids of the position tables among the arrays."""
    found = {path: grid for path, grid in grids.grids_of(model).items() if path in arrays}
    return {grids.HEADER: json.dumps(found)} if found else {}


def _learned(model: nnx.Module, parts: Partition) -> dict[str, Any]:
    """Return what trains, and the running statistics that stand beside it in a norm."""
    trained = flatten(parts.trainable)
    norms = {name.rpartition("/")[0] for name in trained}
    statistics = {
        name: value.get_value()
        for name, value in variables(model).items()
        if isinstance(value, Statistic) and name.rpartition("/")[0] in norms
    }
    return trained | statistics


def load_adapter(
    model: nnx.Module, source: str | Path, *, trainable: Trainable | None = None
) -> None:
    """Loads an adapter file into a model that has the same method applied, in place.

    `vadapt.adapt_from` also applies what the file says.

    The frozen matrices of an adapter that was trained on a base in int8 are rounded as there.

    Args:
        source: an adapter file, or one on the Hugging Face Hub as in "hf:org/name".
        trainable: what was trained; by default what the file says.

    Raises:
        ConfigError: it was trained on a base in int8, and qwix is not installed.
        WeightsError: it was trained on another base (names both hashes), its leaves differ, or it
            cannot be read.
    """
    info = read_info(local_adapter(source))
    fit = _fit(info, model, trainable)
    _check_base(info, model, fit.parts, fit.learned)
    _check_shapes(info, fit)
    _check_numbers(fit.arrays, fit.learned, str(info.path))
    grids.refuse_others(grids.of_header(info.extra, str(info.path)), model, str(info.path))
    if info.extra.get("frozen_dtype") == INT8:
        _round(info, model, fit.parts)
    assign(model, fit.arrays)


def _round(info: AdapterInfo, model: nnx.Module, parts: Partition) -> None:
    """Give frozen matrices the values that they had when the adapter was trained."""
    try:
        round_frozen(model, parts.frozen)
    except ConfigError as error:
        raise ConfigError(f"{str(info.path)!r} was trained on a base in int8: {error}") from error


def check_shapes(info: AdapterInfo, model: nnx.Module) -> None:
    """Refuse a file whose arrays are not those of its own methods, before memory is taken.

    Args:
        model: with the methods that the file names; abstract, as of `nnx.eval_shape`.

    Raises:
        WeightsError: names leaves that differ.
    """
    fit, places = _fit(info, model, None), variables(model)
    added = [name for name in fit.learned if isinstance(places[name], Adapter | Prompt)]
    arrays = {name: fit.arrays[name] for name in added if name in fit.arrays}
    _check_shapes(info, _Fit(fit.parts, {name: fit.learned[name] for name in added}, arrays))


class _Fit(NamedTuple):
    """The variables that a model learns and the arrays of a file, by the model's paths."""

    parts: Partition
    learned: Mapping[str, Any]
    arrays: Mapping[str, Any]


def _fit(info: AdapterInfo, model: nnx.Module, trainable: Trainable | None) -> _Fit:
    arrays = _placed(read_arrays(info.path), model)
    if trainable is None and not all(map(ends_soon, texts(info.trainable))):
        # Such a pattern is not tried: what it chose are the file's own leaves.
        parts = split(model, lambda path, _: "/".join(map(str, path)) in arrays)
    else:
        parts = split(model, trainable or info.trainable or DEFAULT)
    return _Fit(parts, _learned(model, parts), arrays)


def _check_shapes(info: AdapterInfo, fit: _Fit) -> None:
    wanted = {name: leaf.shape for name, leaf in fit.learned.items()}
    found = {name: array.shape for name, array in fit.arrays.items()}
    if not wanted and found:
        raise WeightsError(
            f"{str(info.path)!r} holds {info.described}, this model has no adapter: "
            "vadapt.adapt_from(model, file) applies and loads"
        )
    if wanted != found:
        names = sorted(set(wanted.items()) ^ set(found.items()))
        raise WeightsError(
            f"{str(info.path)!r} and the model's trainable leaves differ in {len(names)} places: "
            f"{names[:4]}; the file holds {info.described}"
        )


def _check_numbers(arrays: Mapping[str, Any], learned: Mapping[str, Any], title: str) -> None:
    """Refuse arrays that are of another kind of numbers than the model's, or not finite."""
    for name, array in arrays.items():
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        if floating != jnp.issubdtype(learned[name].dtype, jnp.floating):
            raise WeightsError(
                f"{title} holds {name} as {array.dtype}, the model's is {learned[name].dtype}"
            )
        if not is_finite(array):
            raise WeightsError(f"{title} holds infinite numbers or none, in {name}")


def _check_base(
    info: AdapterInfo, model: nnx.Module, parts: Partition, learned: Mapping[str, Any]
) -> None:
    """Refuse an adapter of another base.

    Older files name a hash that other image sizes and heads change: if it is another, nothing can
    be said, which is said.
    """
    if info.base_kind:
        base = base_of(model, learned)
    else:
        base = fingerprint(parts.frozen)
        if base != info.base:
            warnings.warn(
                f"{str(info.path)!r} is of vadapt {info.version}, whose files do not say enough of "
                "their base to check it at another image size or under another head; make sure "
                f"that the weights are those of {info.base_name}",
                stacklevel=4,
            )
            return
    if info.base != base:
        raise WeightsError(
            f"{str(info.path)!r} was trained on base weights {info.base} of {info.base_name}, "
            f"those of this {type(model).__name__} are {base}; load the same pretrained weights "
            "first"
        )


def _placed(arrays: Mapping[str, Any], model: nnx.Module) -> dict[str, Any]:
    """The arrays of a file by a model's paths, whichever of the two has a `backbone`.

    What stood around the backbone in training (a head, a neck, a decoder) is left out where the
    model has no such part.
    """
    own = {path.partition("/")[0] for path in variables(model)}
    prefix = BACKBONE if hasattr(model, "backbone") else ""
    in_file = any(name.startswith(BACKBONE) for name in arrays)
    found = {}
    for name, array in arrays.items():
        if in_file and not prefix:
            if not name.startswith(BACKBONE):
                continue  # a head of another task
            name = name.removeprefix(BACKBONE)
        elif prefix and not in_file and name.partition("/")[0] not in own:
            name = prefix + name
        found[name] = array
    return found
