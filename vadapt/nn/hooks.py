"""Hooks: methods that act around the blocks of a trunk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.nn.tokens import Tokens

# From images and the number of a block (of a stage, where a backbone has them) to the map that the
# blocks alone make of them.
Glance = Callable[[Any, int], Any]


class Hook(nnx.Module):
    """A method that acts around the blocks of a trunk; blocks themselves stay as they are.

    In training, `before` and `after` may draw from `nn.drop.layer_key`.

    What a forward pass carries from block to block is its state, a tree of arrays: a hook keeps
    nothing in itself, so that a pass is a pure function, also where blocks are rematerialised.
    Numbers of blocks count through all stages of a backbone that has stages.
    """

    def start(self, images: Float[Array, "b h w c"]) -> Any:
        """Return the state at the start of a pass: what all blocks share is computed here, once."""
        return None

    def look(self, images: Float[Array, "b h w c"], glance: Glance) -> Float[Array, "b h w c"]:
        """Return images as the backbone is to see them, of the same size.

        Args:
            glance: the backbone's first look, for hooks that go by it: see `Trunk.glance`.
        """
        return images

    def acts(self, number: int) -> bool:
        """Whether this hook does anything at a block."""
        return True

    def before(self, number: int, x: Tokens, state: Any) -> tuple[Tokens, Any]:
        """Return the block's input and the next state; prompts come and go here."""
        return x, state

    def after(self, number: int, x: Tokens, state: Any) -> tuple[Tokens, Any]:
        """Return what goes on to the next block, of this one's output, and the next state."""
        return x, state

    def shown(self, number: int) -> bool:
        """Whether a tap at this block sees what `after` gave, or what the block did."""
        return True

    def leave(self, x: Float[Array, "b *n d"], state: Any) -> Float[Array, "b *n d"]:
        """Return what leaves the backbone, of what the last block (stage) gave and its norm."""
        return x

    def outputs(self, state: Any, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return outputs by name, for heads and losses, at the end of a pass.

        Args:
            found: outputs of the hooks before this one, whose names it may take up.
        """
        return {}

    def losses(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, ""]]:
        """Terms of the loss that a method brings, of a pass's outputs and the batch's labels."""
        return {}


class Kept(Hook):
    """Keeps what one block takes, as its state."""

    def __init__(self, number: int):
        self.number = number

    def acts(self, number: int) -> bool:
        return number == self.number

    def before(self, number: int, x: Tokens, state: Any) -> tuple[Tokens, Any]:
        return x, x


class Hooks(NamedTuple):
    """The hooks of a model in one forward pass, with their states."""

    modules: tuple[Hook, ...] = ()
    states: tuple[Any, ...] = ()

    @classmethod
    def begin(cls, modules: Sequence[Hook], images: Float[Array, "b h w c"]) -> Hooks:
        """The hooks at the start of a pass of these images."""
        return cls(tuple(modules), tuple(hook.start(images) for hook in modules))

    def look(self, images: Float[Array, "b h w c"], glance: Glance) -> Float[Array, "b h w c"]:
        """Return images as the backbone is to see them, of the same size."""
        return functools.reduce(lambda seen, hook: hook.look(seen, glance), self.modules, images)

    def leave(self, x: Float[Array, "b *n d"]) -> Float[Array, "b *n d"]:
        """Return what leaves the backbone, of what the last block (stage) gave and its norm."""
        for hook, state in zip(self.modules, self.states, strict=True):
            x = hook.leave(x, state)
        return x

    def outputs(self) -> dict[str, Any]:
        """The named outputs of a pass that has ended."""
        found: dict[str, Any] = {}
        for hook, state in zip(self.modules, self.states, strict=True):
            found |= hook.outputs(state, found)
        return found


def hooks_of(model: Any) -> list[Hook]:
    """The hooks of a model, in the order in which they act."""
    found: list[Hook] = []
    for name in getattr(model, "hooks", ()):
        held = getattr(model, name)
        found += [held] if isinstance(held, Hook) else list(held)
    return found


def hook_losses(
    model: Any, outputs: Mapping[str, Any], batch: Mapping[str, Array]
) -> dict[str, Float[Array, ""]]:
    """The terms of the loss that the methods of a backbone bring, by name."""
    terms: dict[str, Any] = {}
    for hook in hooks_of(model):
        terms |= hook.losses(outputs, batch)
    return terms


def check_place(model: Any, name: str) -> None:
    """Refuse a model that has no place for a hook called `name`; see `add_hook`."""
    if not hasattr(model, "hooks"):
        raise ConfigError(
            f"{type(model).__name__} has no blocks to act around; give a backbone "
            "(vadapt.nn.trunk.Trunk)"
        )
    if name in model.hooks:
        raise ConfigError(f"{type(model).__name__} has this method already, as its `{name}`")


def add_hook(model: Any, name: str, hook: Hook | Sequence[Hook]) -> None:
    """Give a model a hook, or one for each of its stages, as the attribute `name`, in place.

    Raises:
        ConfigError: the model runs no blocks around which a hook could act, or has this one.
    """
    check_place(model, name)
    setattr(model, name, hook if isinstance(hook, Hook) else nnx.List(list(hook)))
    model.hooks = (*model.hooks, name)
