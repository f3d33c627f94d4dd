"""Methods: one file per published way to adapt a frozen backbone, each with one `apply`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import nnx

from vadapt.errors import ConfigError, WeightsError
from vadapt.options import check
from vadapt.partition import Adapter, Prompt, flatten, split, variables
from vadapt.registry import Registry
from vadapt.weights.adapter_file import AdapterInfo, check_shapes, load_adapter, read_info
from vadapt.weights.hub import local_adapter
from vadapt.weights.orbax_files import one_line

# What methods give to their parts themselves.
MADE = ("places", "widths", "width", "last", "semantics", "stages", "cell", "grid")
OWN = (
    *("adaptformer", "cls_reinit", "conv_adapter", "frpt", "houlsby", "lora", "patchwise_scale"),
    *("pfeiffer", "pro_tuning", "rein", "side", "spm", "ssf", "svf", "vpt"),
)
METHODS = Registry("method", {name: f"vadapt.adapters.{name}:apply" for name in OWN})


def apply(model: Any, method: str, **options: Any) -> Any:
    """Apply a method to a model by name, to its `backbone` if it has one; options are the method's.

    Name and options are kept on the model as `applied`, for the header of its adapter file.

    Raises:
        ConfigError: no such method or option, or the model lacks what the method takes hold of.
    """
    if hasattr(model, "backbone"):
        adapted = nnx.clone(model)
        adapted.backbone = apply(model.backbone, method, **options)
        return adapted
    function = METHODS[method]
    check("method", method, function, options, given=MADE)
    adapted = function(model, **options)
    if _count_added(adapted) <= _count_added(model):
        raise ConfigError(
            f"{method} took hold nowhere in this {type(model).__name__}: it would train no weight; "
            "see its options"
        )
    kept = {"name": method, **{key: options[key] for key in sorted(options) if key != "rngs"}}
    adapted.applied = (*getattr(model, "applied", ()), _hashable(kept))
    return adapted


def _count_added(model: Any) -> int:
    """Count the variables that methods have added to a model."""
    return sum(isinstance(value, Adapter | Prompt) for value in variables(model).values())


def adapt_from(model: Any, source: str | Path | AdapterInfo) -> Any:
    """The model with what an adapter file holds: its methods applied, its weights loaded.

    Its blocks then run in the file's plan, if it was trained in one.

    Args:
        model: the plain backbone with the pretrained weights that the adapter was trained on, or
            a model with it as its `backbone`; it stays as it is.
        source: an adapter file, or one on the Hugging Face Hub as in "hf:org/name".

    Raises:
        WeightsError: no adapter file, or one of another base.
        ConfigError: a method that is not known here.
    """
    info = source if isinstance(source, AdapterInfo) else read_info(local_adapter(source))
    check_sizes(info, lambda: with_methods(model, info))
    model = with_methods(model, info)
    load_adapter(model, info.path)
    return model


def check_sizes(info: AdapterInfo, build: Callable[[], Any]) -> None:
    """Refuse an adapter file whose header asks for another model than its arrays are of.

    Args:
        build: makes the adapted model, of no arguments; of shapes alone, so that a header may ask
            for any size.

    Raises:
        WeightsError: the shapes differ, or see `abstract`.
        ConfigError: see `abstract`.
    """
    check_shapes(info, abstract(info, build))


def abstract(info: AdapterInfo, build: Callable[[], Any]) -> Any:
    """The model that `build` makes by the header of an adapter file, of shapes alone.

    Raises:
        WeightsError: the header asks for what cannot be built.
        ConfigError: it names what is not known here.
    """
    try:
        return nnx.eval_shape(build)
    except ConfigError as error:
        raise ConfigError(f"{str(info.path)!r}: {error}") from error
    except WeightsError:
        raise
    except Exception as error:  # sizes that are none end in many types, somewhere below a method
        raise WeightsError(
            f"{str(info.path)!r} has a header by which no model can be built: {info.described} "
            f"({one_line(error)})"
        ) from error


def with_methods(model: Any, info: AdapterInfo) -> Any:
    """A copy of a model with a file's plan and methods, of which no weight is loaded."""
    model = nnx.clone(model)
    if info.plan:
        try:
            getattr(model, "backbone", model).follow(info.plan)
        except ConfigError as error:
            raise WeightsError(
                f"{str(info.path)!r} has a plan that does not fit: {error}"
            ) from error
    for method in info.methods:
        if method["name"] != "none":
            options = {key: value for key, value in method.items() if key != "name"}
            model = apply(model, method["name"], **options)
    return model


def fold(model: Any, *, strict: bool = False) -> Any:
    """A copy in which every method that can be is folded into the frozen weights.

    The copy computes the same, to rounding, without the adapters' cost; LoRA alone leaves a plain
    backbone. A method whose contribution depends on the input (`patchwise_scale`) cannot be folded:
    it stays, with a warning that says so.

    Args:
        strict: raise instead of warning.

    Raises:
        ConfigError: `strict`, and a method stays.
    """
    model = nnx.clone(model)
    for _, node in list(nnx.iter_graph(model)):
        if not isinstance(node, nnx.Module):
            continue
        for name, child in list(vars(node).items()):
            if hasattr(child, "folded"):
                setattr(node, name, child.folded())
    left = flatten(split(model, Adapter | Prompt).trainable)
    for _, node in nnx.iter_graph(model):
        if hasattr(node, "applied"):
            node.applied = tuple(method for method in node.applied if not _folds(dict(method)))
    if not left:
        return model
    message = (
        f"{len(left)} adapter weights stay ({', '.join(list(left)[:2])}, ...): what they add "
        "depends on the input, so that it cannot be folded into frozen weights. Keep the adapter "
        "file beside the backbone, or export the model whole (StableHLO)."
    )
    if strict:
        raise ConfigError(message)
    warnings.warn(message, stacklevel=2)
    return model


def _folds(method: dict[str, Any]) -> bool:
    module = sys.modules[METHODS[method["name"]].__module__]
    return any(hasattr(value, "folded") for value in vars(module).values())


def _hashable(value: Any) -> Any:
    """A mapping as pairs, a list as a tuple: static fields of a module must be hashable."""
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
