"""Layers that a method changes: they keep their class, their paths and their frozen arrays."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from flax import nnx

from vadapt.errors import ConfigError


class Changed(nnx.Module):
    """What a method mixes into the class of a layer; `change` makes such layers.

    The layer's variables are those of the given one, under their own names. A kind of this sets
    what it adds after `super().__init__(layer)` and calls the frozen layer as `super().__call__`.

    Attributes:
        method: its name, for errors.
        adds: the attributes that hold what the method adds.
    """

    method: ClassVar[str]
    adds: ClassVar[tuple[str, ...]]

    def __init__(self, layer: Any):
        self.plain, _ = nnx.split(layer)  # how to make one like it
        for name, value in vars(layer).items():
            if not name.startswith("_"):  # these are flax's own
                setattr(self, name, nnx.data(value) if value is None else value)

    def plain_layer(self) -> Any:
        """The frozen layer alone; it shares its arrays with this one."""
        values = nnx.to_pure_dict(nnx.state(self))
        return nnx.merge(self.plain, {key: x for key, x in values.items() if key not in self.adds})


def change(kind: type[Changed], layer: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer like the given one, which shares its variables, with a method's change mixed in.

    Args:
        args, kwargs: of the kind, after the layer.

    Raises:
        ConfigError: the layer is one that a method has changed.
    """
    if isinstance(layer, Changed):
        raise ConfigError(
            f"the model already has {layer.method} where {kind.method} is to take hold, and a "
            "layer has room for one: choose other targets, or fold the model first (vadapt.fold)"
        )
    return _class_of(kind, type(layer))(layer, *args, **kwargs)


@functools.cache
def _class_of(kind: type[Changed], layer: type) -> Any:
    return type(f"{kind.__name__}{layer.__name__}", (kind, layer), {"__doc__": kind.__doc__})
