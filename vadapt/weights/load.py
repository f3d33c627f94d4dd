"""Loading weights into a model: all or nothing, with one report of what happened."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt import sharding
from vadapt.errors import WeightsError
from vadapt.nn.positions import resample, resize_relative
from vadapt.partition import Constant, Tree, flatten, variables
from vadapt.weights import families, grids
from vadapt.weights.base import remember
from vadapt.weights.families import find_family, of_training, unwrapped
from vadapt.weights.files import Lazy, is_finite, lazily
from vadapt.weights.sources import Arrays, arrays_of
from vadapt.weights.tables import convert

_RELATIVE = ("rel_pos_h", "rel_pos_w")  # ends of paths of relative position tables
_PATCHES = "patch_embed/proj/kernel"
_LARGE = 2**20  # bytes


_KINDS = (
    *("missing", "unexpected", "unused", "resized", "assumed"),
    *("cast", "mismatched", "differing"),
)


@dataclass
class Report:
    """A report of a load, by vadapt's path (or the file's name, for what found no place)."""

    family: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model, not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the model
    # In the file, of no use: the model has no such part (a decoder, a projection), or none has.
    unused: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)  # position tables, patch kernels
    assumed: list[str] = field(default_factory=list)  # position tables for the model's own grid
    cast: list[str] = field(default_factory=list)  # other dtype in the file
    mismatched: list[str] = field(default_factory=list)  # other shape, not resizable
    differing: list[str] = field(default_factory=list)  # from what lies beside the weights
    originals: dict[str, Any] = field(default_factory=dict)  # of what was resized, by path

    def __str__(self) -> str:
        lines = [f"{self.family} weights: {len(self.loaded)} loaded"]
        for name in _KINDS:
            items = getattr(self, name)
            if items:
                more = f", ... {len(items) - 4} more" if len(items) > 4 else ""
                lines.append(f"{len(items)} {name} ({', '.join(items[:4])}{more})")
        return "; ".join(lines)


def load_weights(
    model: nnx.Module,
    source: str | Path | Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    grids: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> Report:
    """Loads pretrained weights into a model, in place; either everything fits or nothing changes.

    Position tables and patch kernels of another size are resized, the latter bicubically and
    without rescaling of their sum. Arrays of `.safetensors` are read one after another, and each
    lies where the model's own lay: on its devices, in its sharding.

    Args:
        source: a `.safetensors`, `.npz` or `.pth` file (the last needs torch), a folder of Hugging
            Face's or an orbax checkpoint, "hf:organisation/name" for one from the Hugging Face
            hub or its cache, the name of a shipped asset ("vit_micro_scenes"), or arrays by name.
            Names may be vadapt's paths, or those of the families in docs/weights.md.
        allow_missing: patterns of the model's paths that the file may lack and that then keep
            their values, such as "decoder/.*" for a file with the encoder alone.
        allow_unexpected: patterns of the file's names that the model has no place for; an array
            of another shape than the model's is passed over if both lists allow it. Also of what
            files beside the weights say otherwise, such as "config.json/layer_norm_eps".
        grids: rows and columns of position tables, by vadapt's paths, where the source does not
            say them: vadapt's own files do, those of others have square grids.

    Returns:
        The report; print it.

    Raises:
        WeightsError: anything missing, unexpected, of another shape, not finite, or otherwise than
            `config.json` beside the weights says, all in one message; or the source cannot be read.

    >>> from vadapt.backbones.vit import vit
    >>> model = vit("micro", image_size=64, positions="sincos", rngs=nnx.Rngs(0))
    >>> report = load_weights(model, "vit_micro_scenes", allow_unexpected=["decoder/.*"])
    >>> len(report.loaded), report.missing
    (77, [])
    """
    arrays = arrays_of(source).with_grids(grids)
    values, report = match_weights(
        model, arrays, allow_missing=allow_missing, allow_unexpected=allow_unexpected
    )
    _check(arrays, values, report, allow_unexpected)
    assign(model, values)
    remember(model, report.originals)
    return report


def build_loaded(
    build: Callable[[], Any], source: str | Path | Mapping[str, Any], **allowed: Sequence[str]
) -> tuple[Any, Report]:
    """The model that `build` makes, with weights; those of the source are never drawn at random.

    So the memory it takes is that of the weights, and large models do not wait for random numbers.
    Inside `jax.set_mesh`, arrays lie split over its `fsdp` axis from the start (see
    `sharding.tree_sharding`).

    Args:
        build: of no arguments.
        allowed: as in `load_weights`.

    Raises:
        WeightsError: as `load_weights` does.
    """
    model = nnx.eval_shape(build)
    arrays = arrays_of(source)
    values, report = match_weights(model, arrays, **allowed)
    _check(arrays, values, report, allowed.get("allow_unexpected", ()))
    places = variables(model)
    wheres = sharding.in_set_mesh({path: place.get_value() for path, place in places.items()})
    others = sorted(set(places) - set(values))  # constants, and what may be missing

    def initial() -> dict[str, Any]:
        made = variables(build())
        return {path: made[path].get_value() for path in others}

    made = jax.jit(initial, out_shardings={path: wheres[path] for path in others})()
    assign(model, {**values, **made}, wheres)
    remember(model, report.originals)
    return model, report


def match_weights(
    model: nnx.Module,
    arrays: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> tuple[dict[str, Any], Report]:
    """Return what `load_weights` would set, by the model's paths, without setting it.

    Works on tracers, so that a gradient can be taken with respect to a file's own arrays; and on
    shapes alone: the model may be abstract, and `Lazy` arrays are not read.
    """
    source = arrays_of(arrays)
    places = variables(model)
    report, converted, unknown, shaped = _translate(source, model)
    source = source.with_grids(shaped)
    values: dict[str, Any] = {}
    for path, array in converted.items():
        may_differ = _matches(path, allow_missing) and _matches(path, allow_unexpected)
        if path in places and not (may_differ and _misfits(path, array, places[path])):
            values[path] = _fit(path, array, model, places[path], report, source)
        else:
            unknown.append(path)
    report.loaded = list(values)
    report.unexpected = _not_matching(unknown, allow_unexpected)
    # Constants are right by construction, so that a file may leave them out.
    lacking = [p for p, v in places.items() if p not in values and not isinstance(v, Constant)]
    report.missing = _not_matching(lacking, allow_missing)
    differences = source.beside.differences(model)
    report.differing = [
        f"{name} is {differences[name]}" for name in _not_matching([*differences], allow_unexpected)
    ]
    if report.missing or report.unexpected or report.mismatched or report.differing:
        hint = "vadapt.create(name, weights) makes a model as the files beside the weights say."
        raise WeightsError(
            f"{source.title} does not fit {type(model).__name__}; nothing was loaded. {report}. "
            f"Name what may differ in allow_missing or allow_unexpected. "
            + (hint if report.differing else "")
        )
    report.missing, report.unexpected = lacking, unknown
    return values, report


def _check(
    arrays: Arrays, values: Mapping[str, Any], report: Report, allowed: Sequence[str]
) -> None:
    """Refuse what fits by its names and shapes, and still is nothing to load."""
    families.check(arrays, allowed)
    infinite = [path for path, value in values.items() if not is_finite(value)]
    if infinite:
        more = f" and {len(infinite) - 4} more" if len(infinite) > 4 else ""
        raise WeightsError(
            f"{arrays.title} holds infinite numbers or none, in {', '.join(infinite[:4])}{more}; "
            "nothing was loaded"
        )
    if report.assumed and arrays.is_file:
        warnings.warn(
            f"{arrays.title} does not say the grids of position tables that are of no square; they "
            f"are taken for the model's own ({', '.join(report.assumed)}). If they are of others, "
            "give load_weights its `grids`",
            stacklevel=3,
        )


def table_size(model: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The `image_size` at which a backbone's position table has as many rows as a file's."""
    source = arrays_of(arrays)
    _, converted, _, shaped = _translate(source, model)
    path = next(path for path in converted if path.endswith(grids.TABLE))
    owner, known = _owner(model, path), grids.grid_for(path, {**source.grids, **shaped})
    side = math.isqrt(converted[path].shape[0] - owner.num_table_extra)
    size = tuple(places * owner.patch_size for places in known or (side, side))
    return {"image_size": size[0] if size[0] == size[1] else size}


def assign(
    model: nnx.Module, values: Mapping[str, Any], shardings: Mapping[str, Any] | None = None
) -> None:
    """Sets variables by path name, in place; shapes must agree.

    Args:
        shardings: where each is to lie; without, where the variable's value lies now.
    """
    places = variables_in_place(model)
    for path, value in values.items():
        where = getattr(places[path].get_value(), "sharding", None)
        where = where if shardings is None else shardings[path]
        value = np.asarray(value) if isinstance(value, Lazy) else value
        # The memory of the old value is for the next ones.
        places[path].set_value(None)
        places[path].set_value(jax.block_until_ready(jax.device_put(value, where)))
        if value.nbytes >= _LARGE:
            _return_freed_memory()


def _return_freed_memory() -> None:
    """Gives what was freed back to the system.

    glibc keeps arrays of a few MiB for the thread that they came from, and not for this one: a
    process that replaced its weights would hold them nearly twice.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or another C library
        ctypes.CDLL(None).malloc_trim(0)


def with_arrays(model: Any, values: Mapping[str, Any]) -> Any:
    """A copy of the model with other values by path name; tracers too, so it differentiates."""
    graph, state = nnx.split(model)
    tree = nnx.to_pure_dict(state)

    def replace(tree: Mapping[Any, Any], prefix: str) -> Tree:
        return {
            key: replace(value, f"{prefix}{key}/")
            if isinstance(value, Mapping)
            else values.get(f"{prefix}{key}", value)
            for key, value in tree.items()
        }

    unknown = set(values) - set(flatten(tree))
    if unknown:
        raise WeightsError(f"the model has no {sorted(unknown)}")
    return nnx.merge(graph, replace(tree, ""))


def variables_in_place(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The model's own variables by path name: writing to one changes the model."""
    return {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable)
    }


def _translate(
    arrays: Mapping[str, Any], model: nnx.Module
) -> tuple[Report, dict[str, Any], list[str], dict[str, grids.Grid]]:
    """A report to be filled, the arrays by vadapt's paths, and names that mean nothing.

    Also the grids of position tables whose shapes say them.
    """
    arrays, others = of_training(arrays)
    arrays = unwrapped(arrays)
    backbone = "backbone/" if hasattr(model, "backbone") else ""
    places = variables(model)
    table = find_family(arrays, places, backbone)
    if table is None:
        # vadapt's own names: of a whole model, or of its backbone alone. Either may be the file,
        # either the model.
        def place(name: str) -> str:
            options = (name, backbone + name, name.removeprefix("backbone/"))
            return next((option for option in options if option in places), name)

        direct = {place(name): array for name, array in arrays.items()}
        return Report("vadapt"), direct, [], {}
    parts = {path.split("/")[0] for path in places}

    def is_unused(name: str) -> bool:
        path = table.find_in_head(name)
        absent = path is not None and path.split("/")[0] not in parts
        return table.passes_over(name) or absent

    passed_over = {name for name in arrays if is_unused(name)}
    unused = [*(name for name in arrays if name in passed_over), *others]
    used = {name: array for name, array in arrays.items() if name not in passed_over}
    converted, unknown = convert(used, table, backbone=backbone)
    return (
        Report(table.family, unused=unused),
        converted,
        unknown,
        grids.of_shapes(used, table, backbone),
    )


def _fit(
    path: str,
    array: Any,
    model: nnx.Module,
    place: nnx.Variable,
    report: Report,
    source: Arrays,
) -> Any:
    value, wanted = array, place.get_value()
    if path.endswith(grids.TABLE) and len(value.shape) == 2:
        value = _fit_positions(path, value, model, report, source)
    if path.endswith(_RELATIVE) and value.shape != wanted.shape and len(value.shape) == 2:
        rows = wanted.shape[0]
        report.resized.append(f"{path}: {value.shape[0]} to {rows}")
        value = lazily(lambda x: resize_relative(jnp.asarray(x), rows), value)
    if path.endswith(_PATCHES) and value.shape != wanted.shape and len(value.shape) == 4:
        size = wanted.shape[0]
        report.resized.append(f"{path}: patches of {value.shape[0]} to {size}")
        value = lazily(lambda x: resample(jnp.asarray(x), (size, size)), value)
    if value is not array:
        report.originals[path] = array
    if value.shape != wanted.shape:
        report.mismatched.append(f"{path}: file {tuple(array.shape)}, model {wanted.shape}")
        return wanted
    if _kind(value) != _kind(wanted):
        report.mismatched.append(f"{path}: file {value.dtype}, model {wanted.dtype}")
        return wanted
    if value.dtype != wanted.dtype:
        report.cast.append(f"{path}: {value.dtype} to {wanted.dtype}")
        return lazily(lambda x: x.astype(wanted.dtype), value)
    return value


def _kind(array: Any) -> str:
    """Numbers of other kinds mean something else: integers for floats are quantized."""
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer)
    return next((kind.__name__ for kind in kinds if jnp.issubdtype(array.dtype, kind)), "other")


def _misfits(path: str, array: Any, place: nnx.Variable) -> bool:
    """Whether an array is of another shape than its place, and nothing that is resized."""
    resized = ("pos_embed", _PATCHES, *_RELATIVE)
    return np.shape(array) != place.shape and not path.endswith(resized)


def _fit_positions(path: str, table: Any, model: nnx.Module, report: Report, source: Arrays) -> Any:
    owner, known = _owner(model, path), grids.grid_for(path, source.grids)
    fitted = grids.fit(table, owner, known, own=source.own, in_file=source.is_file)
    report.resized += [f"{path}: {fitted.resized}"] if fitted.resized else []
    report.assumed += [f"{path}: {fitted.assumed}"] if fitted.assumed else []
    return fitted.table


def _owner(model: Any, path: str) -> Any:
    """The module of a variable."""
    for part in path.split("/")[:-1]:
        model = getattr(model, part)
    return model


def _not_matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if not _matches(name, patterns)]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
