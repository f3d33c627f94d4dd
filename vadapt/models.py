"""Backbones by name, weights into a model, a method into its backbone: each by itself.

`vadapt.system` puts them together, with what stands on top, as a config says.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from flax import nnx

from vadapt import adapters
from vadapt.backbones.families import BACKBONES
from vadapt.backbones.named import HALF, Backbone, Statistics
from vadapt.backbones.staged import Staged
from vadapt.backbones.teachers import Tower, kind_of, tower
from vadapt.errors import WeightsError
from vadapt.options import accepted, check
from vadapt.partition import Constant, Frozen, mark, variables
from vadapt.weights.adapter_file import read_info
from vadapt.weights.base import remember
from vadapt.weights.families import table_of
from vadapt.weights.hub import local_adapter
from vadapt.weights.load import Report, build_loaded, load_weights, match_weights, table_size
from vadapt.weights.sources import arrays_of, beside_of

Pixel = float | Sequence[float]
# What a file of vadapt's own may hold beside a backbone.
BESIDE = ("decoder/.*", "head/.*")


def create(
    name: str,
    weights: str | Path | Mapping[str, Any] = "",
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    rngs: nnx.Rngs | int = 0,
    **options: Any,
) -> Any:
    """A backbone by name, with pretrained weights, or random ones where no weights are given.

    With weights nothing is drawn at random that the source holds, so that a large model takes no
    more memory than its file; and inside `jax.set_mesh(mesh)` it lies on the mesh from the start.

    Args:
        name: "vit_base", "dinov2_large_reg", "clip_base", ...; a wrong one lists the nearest, and
            docs/weights.md has all.
        weights: a file, a folder, "hf:organisation/name", ...: a source of `load_weights`, which
            takes `allow_missing` and `allow_unexpected` too. What files beside the weights say of
            heads, epsilons and activations goes where `options` say nothing.
        rngs: a seed, or flax random streams.
        options: fields of the backbone's class, such as image_size=(224, 320).

    Raises:
        ConfigError: no such backbone.
        WeightsError: the weights do not fit it.

    >>> create("vit_micro", image_size=64).grid
    (8, 8)
    """
    allowed = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    return _created(name, weights, allowed, rngs, options)[0]


def _created(
    name: str,
    weights: str | Path | Mapping[str, Any],
    allowed: Mapping[str, Sequence[str]],
    rngs: nnx.Rngs | int,
    options: Mapping[str, Any],
) -> tuple[Any, Report | None]:
    """A backbone by name, and what happened to its weights if there are some."""
    known = _known(name)
    check("model.options", name, known.build, options, complete=False)
    seed = rngs if isinstance(rngs, int) else None
    source = arrays_of(weights) if weights else None
    told = {} if source is None else source.beside.options(known.build)
    pixels = (source and source.beside.statistics) or known.statistics

    def build() -> Any:
        streams = rngs if seed is None else nnx.Rngs(seed)
        model = known.build(**{**known.options, **told, **options}, rngs=streams)
        model.statistics = tuple(pixels)  # for `vadapt.preprocess`
        return model

    if source is None:
        return build(), None
    return build_loaded(build, source, **allowed)


def told(name: str, weights: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Options of a named backbone that files beside the weights say, such as `num_heads`.

    Raises:
        ConfigError: no such backbone.
        WeightsError: such a file cannot be read.
    """
    return beside_of(weights).options(_known(name).build)


def statistics(name: str, weights: str | Path | Mapping[str, Any] = "") -> Statistics:
    """Mean and standard deviation of the pixels, in 0-1, that a backbone's files were trained on.

    Args:
        weights: whose; what a file beside them says counts more than the name.

    Raises:
        ConfigError: no such backbone.
        WeightsError: a file beside the weights cannot be read.

    >>> statistics("dinov2_small").mean
    (0.485, 0.456, 0.406)
    """
    known = _known(name).statistics
    return beside_of(weights).statistics or known


def other_statistics(
    weights: str | Path | Mapping[str, Any], mean: Pixel, std: Pixel
) -> Statistics | None:
    """What files beside weights say of their training's pixels, where data go by something else.

    Data whose channels all have the same statistics are gray, such as infrared, and go by their
    own on purpose. Half and half, though, is nobody's data: a network was trained so.

    Args:
        mean, std: of the data, in 0-1; one number, or one a channel.

    Returns:
        None where both are alike, the data are gray, or no file says anything.

    Raises:
        WeightsError: a file beside the weights cannot be read.
    """
    own = beside_of(weights).statistics
    if own is None:
        return None
    given = [(row,) * 3 if isinstance(row, int | float) else tuple(row) for row in (mean, std)]
    is_gray = all(len(set(row)) == 1 for row in given)
    if _alike(given, own) or (is_gray and not _alike(given, HALF)):
        return None
    return own


def _alike(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    return np.allclose(one, other, rtol=0, atol=1e-3)


def recognise(arrays: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The named backbone that a file's arrays are of, and options that make it fit to the letter.

    Shapes are looked at, no array is read.

    Returns:
        A name and options for `create`: an `image_size` where the file's position table is made for
        another than the name's own.

    Raises:
        WeightsError: names of no known family, or shapes of no named backbone.
    """
    arrays = arrays_of(arrays)
    made, arrays = arrays.beside.made, arrays.bare()  # what lies beside is for `create` to heed
    table = table_of(arrays)
    always = {} if table is None else dict(table.options)
    named = [(name, known) for name, known in BACKBONES.items() if not table or table.is_of(name)]
    for (name, known), options in [(one, o) for one in named for o in ({}, *one[1].others)]:
        with contextlib.suppress(WeightsError):
            own = {name: made[name] for name in made.keys() & accepted(known.build)}
            wanted = {**known.options, **options, **own}
            model = _abstract(known.build, tuple(sorted(wanted.items())))
            _, report = match_weights(model, arrays, allow_unexpected=BESIDE)
            size = table_size(model, arrays) if report.resized else {}
            return name, {**always, **options, **size}
    family = "vadapt" if table is None else table.family
    raise WeightsError(
        f"these are {family} weights, of no size that has a name here; give the name of a "
        "backbone and what differs, such as --backbone=vit_base "
        '--options=\'{"depth": 6, "width": 512, "num_heads": 8}\''
    )


@functools.lru_cache(maxsize=64)
def _abstract(build: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Any:
    """The shapes of a backbone; several files may be looked at, and tracing takes a moment."""
    return nnx.eval_shape(lambda: build(**dict(options), rngs=nnx.Rngs(0)))


def _known(name: str) -> Backbone:
    found = BACKBONES[name]
    return found if isinstance(found, Backbone) else Backbone(found)


def apply_method(
    model: Any, method: Any, *, known: Mapping[str, Any] = MappingProxyType({}), seed: int = 0
) -> Any:
    """The model with the methods of `config.method` in its backbone; "none" changes nothing.

    Fields: `name`, the options of that method's `apply`, and `then`, a section of such fields: the
    method that is applied next, if there is one.

    Args:
        known: what the data say, such as `num_classes`: a method that has such an option and is
            not given it takes it from here.
    """
    for one in methods_of(method):
        name, given = one["name"], {key: value for key, value in one.items() if key != "name"}
        wanted = accepted(adapters.METHODS[name])
        needed = {key: value for key, value in known.items() if key in wanted}
        model = adapters.apply(model, name, **needed | given, rngs=nnx.Rngs(seed))
    return model


def methods_of(method: Any) -> list[dict[str, Any]]:
    """Name and options of each method of `config.method`, in the order of applying.

    >>> methods_of({"name": "cls_reinit", "then": {"name": "vpt", "num_tokens": 5}})
    [{'name': 'cls_reinit'}, {'name': 'vpt', 'num_tokens': 5}]
    """
    found, section = [], method
    while section:
        found.append({key: value for key, value in section.items() if key != "then"})
        section = section.get("then")
    return [one for one in found if one["name"] != "none"]


def load(model: nnx.Module, config: Any) -> Report | None:
    """Loads `config.weights` into a model, in place; an empty name leaves it at random.

    Fields: `weights`, `allow_missing`, `allow_unexpected`; see `load_weights`.
    """
    return _load_from(config["weights"], model, config) if config["weights"] else None


def load_adapted(model: nnx.Module, config: Any) -> Report:
    """Loads pretrained weights and an adapter that was trained on them, to train on, in place.

    The adapter is loaded into the plain backbone that its file names, where its base is checked;
    from there everything goes into the model, which may be made for another image size or have
    tables besides.

    Fields: `weights`, `adapter` (a file of a run, or "hf:..."), `allow_missing`,
    `allow_unexpected`.

    Args:
        model: a backbone with the adapter's method applied.

    Raises:
        WeightsError: the adapter was trained on other weights, or does not fit.
    """
    info = read_info(local_adapter(config["adapter"]))
    options = info.extra.get("options", {})
    name = info.backbone or config["backbone"]
    allowed = {"allow_unexpected": BESIDE}
    if not config["weights"]:  # with some, shapes are compared with theirs
        build = functools.partial(_created, name, "", allowed, 0, options)
        adapters.check_sizes(info, lambda: adapters.with_methods(build()[0], info))
    plain, found = _created(name, config["weights"], allowed, 0, options)
    # Fixed tables that no file holds are made for an image size; the model has made its own.
    tables = {path for path, v in variables(model).items() if isinstance(v, Constant)}
    passed_over = tables - {*found.loaded} if found else set()
    arrays = {
        path: v.get_value()
        for path, v in variables(adapters.adapt_from(plain, info)).items()
        if path not in passed_over
    }
    report = _load_from(arrays, model, config)
    remember(model, dict(getattr(plain, "resized_from", ())))
    return report


def _load_from(source: Any, model: nnx.Module, config: Any) -> Report:
    """`load_weights` with what `config` allows to differ."""
    return load_weights(
        model,
        source,
        allow_missing=tuple(config["allow_missing"]),
        allow_unexpected=tuple(config["allow_unexpected"]),
    )


def widths(backbone: Any, layers: Sequence[int]) -> list[int]:
    """Channels of the maps of these blocks, or stages, of a backbone."""
    if isinstance(backbone, Staged):
        return [backbone.widths[layer] for layer in layers]
    return [backbone.width] * len(layers)


def strides(backbone: Any, layers: Sequence[int]) -> list[int]:
    """Pixels of the image from one place to the next, in the maps of these blocks or stages."""
    if isinstance(backbone, Staged):
        return [backbone.strides[layer] for layer in layers]
    return [backbone.patch_size] * len(layers)


def create_teacher(
    name: str, weights: str, *, image_size: int | Sequence[int], rngs: nnx.Rngs | int = 0
) -> Tower:
    """A tower that a student learns from, with its weights; nothing ever trains it.

    Args:
        name: "clip_b16", "slip_b16", "dino_b16" or "vit_micro".
        weights: as in `load_weights`; what the file holds besides the tower (a text tower) is
            passed over. An empty name leaves it at random.

    Raises:
        ConfigError: no such teacher.
        WeightsError: the file lacks a part of the tower.
    """
    rngs = nnx.Rngs(rngs) if isinstance(rngs, int) else rngs
    teacher = tower(name, image_size=image_size, rngs=rngs)
    if weights:
        arrays = arrays_of(weights)
        pattern = kind_of(name).names
        arrays = arrays.only(key for key in arrays if re.fullmatch(pattern, key))
        if not arrays:
            raise WeightsError(f"{arrays.title} holds no {name!r}: no name matches {pattern!r}")
        load_weights(teacher, arrays)
    return mark(teacher, Frozen)
