"""VPT: learned prompts that a frozen transformer sees beside its patches.

Source: Visual Prompt Tuning, arXiv:2203.12119; what its text leaves open is as in the released
code, whose defaults these are. `deep=True` is what the paper reports as its best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.adapters.pixel_prompts import Below, Frame
from vadapt.errors import ConfigError, nearest
from vadapt.nn.attention import RelativeBias
from vadapt.nn.drop import dropout as drop
from vadapt.nn.drop import layer_key
from vadapt.nn.hooks import Hook, add_hook, check_place
from vadapt.nn.linear import uniform
from vadapt.nn.positions import resize_table
from vadapt.nn.tokens import Tokens
from vadapt.options import takes
from vadapt.partition import Prompt, mark

LOCATIONS = ("prepend", "add", "add-1", "pad", "below")
KEY = 2**30  # the number that prompts draw their dropout by, beyond those of a block's layers


class VPT(Hook):
    """Prompts of some blocks: those of the first are `prompts`, those of the others `deep`.

    A block's prompts take the place of what the block before has made of its own. They have no
    positions. After the last block that has some, prompts go on as any token does.

    Args:
        stages: numbers of the blocks of each stage; of a backbone without stages, of all.
        widths: of the stages.
        cell: pixels of a patch's side, which enters the first values' size only.
        grid: (rows, columns) of the patches; for the location "add" alone.
        num_tokens: a block; p in the paper.
        deep: whether every block has prompts of its own, or the first alone has some.
        project: width of the prompts; one linear layer, which all blocks share, widens them. None
            for prompts of the backbone's width.
        dropout: rate on the prompts, in training.
        num_layers: how many blocks have prompts of their own; None for all. With
            `from_end` these are the last ones, and no prompts stand before them.
        shared: whether all blocks after the first that have prompts (of a stage) have the same.
        expand: whether blocks behind the last one with prompts of its own still see prompts.
        location: "prepend" between class token and patches, "add" one for each place, added to its
            patch, "add-1" one that is added to all patches.

    Raises:
        ConfigError: an option's value is unknown, or does not go with another.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        widths: Sequence[int],
        *,
        cell: int = 16,
        grid: tuple[int, int] | None = None,
        num_tokens: int = 10,
        deep: bool = False,
        project: int | None = None,
        dropout: float = 0.0,
        num_layers: int | None = None,
        from_end: bool = False,
        shared: bool = False,
        expand: bool = True,
        location: str = "prepend",
        rngs: nnx.Rngs,
    ):
        chosen = _chosen([n for stage in stages for n in stage], deep, num_layers, from_end)
        if len(widths) > 1 and project is not None:
            raise ConfigError("a projection has one width, and this model's stages have several")
        if num_tokens < 1:
            raise ConfigError(f"num_tokens is {num_tokens}; there is at least one")
        self.location, self.grid, self.rate, self.expand = location, grid, dropout, expand
        number = {"add": math.prod(grid or (0,)), "add-1": 1}.get(location, num_tokens)
        first = widths[0] if project is None else project
        init = uniform((6 / (3 * cell**2 + first)) ** 0.5)

        def prompts(*lead: int, width: int) -> Prompt:
            return Prompt(
                init(rngs.params(), (*lead, number, width if project is None else project))
            )

        start = next(i for i, stage in enumerate(stages) if chosen[0] in stage)
        self.prompts = prompts(width=widths[start])
        self.first, self.end = chosen[0], chosen[-1]
        self.deep = nnx.Dict({})
        rows = []
        for i, (stage, width) in enumerate(zip(stages, widths, strict=True)):
            own = [number for number in stage if number in chosen[1:]]
            if own:
                self.deep[str(i)] = prompts(1 if shared else len(own), width=width)
            rows += [(number, str(i), 0 if shared else j) for j, number in enumerate(own)]
        self.rows = tuple(rows)  # of blocks, by number: in which of `deep`, and which of it
        self.proj = None if project is None else _widening(project, widths[0], rngs)

    def acts(self, number: int) -> bool:
        ends = number == self.end and not self.expand
        return number == self.first or self.place(number) is not None or ends

    def place(self, number: int) -> tuple[str, int] | None:
        """In which of `deep` a block's prompts are, and as which of its rows; None for no such."""
        return next(((stage, row) for n, stage, row in self.rows if n == number), None)

    def of(self, number: int) -> Float[Array, "p d"]:
        """The prompts of a block, at the backbone's width."""
        place = self.place(number)
        found = self.prompts[...] if place is None else self.deep[place[0]][place[1]]
        return found if self.proj is None else self.proj(found)

    def before(self, number: int, x: Tokens, state: None) -> tuple[Tokens, None]:
        if number != self.first and self.place(number) is None:
            return x, state
        rows = self.of(number).astype(x.array.dtype)
        if self.location == "add":
            assert self.grid is not None
            _, height, width, _ = x.map.shape
            rows = resize_table(rows, self.grid, (height, width), num_extra=0)
        batch = jnp.broadcast_to(rows, (x.array.shape[0], *rows.shape))
        batch = drop(batch, self.rate, layer_key(KEY))
        if self.location == "prepend":
            return x.with_prompts(batch), state
        patches = x.patches
        return x.with_patches(patches + jnp.broadcast_to(batch, patches.shape)), state

    def after(self, number: int, x: Tokens, state: None) -> tuple[Tokens, None]:
        if number == self.end and not self.expand:
            x = x.without_prompts()
        return x, state


def _widening(project: int, width: int, rngs: nnx.Rngs) -> nnx.Linear:
    """The layer that prompts of another width go through."""
    fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    bias = uniform(project**-0.5)
    return mark(nnx.Linear(project, width, kernel_init=fan_out, bias_init=bias, rngs=rngs), Prompt)


def _chosen(
    blocks: Sequence[int], deep: bool, num_layers: int | None, from_end: bool
) -> tuple[int, ...]:
    """Numbers of the blocks that have prompts of their own."""
    if not deep:
        if num_layers is not None or from_end:
            raise ConfigError("num_layers and from_end are of deep prompts: give deep=True as well")
        return tuple(blocks[:1])
    number = len(blocks) if num_layers is None else num_layers
    if not 1 <= number <= len(blocks):
        raise ConfigError(f"num_layers is {number}; the model has {len(blocks)} blocks")
    return tuple(blocks[-number:] if from_end else blocks[:number])


@takes(VPT)
def apply(
    model: Any,
    *,
    location: str = "prepend",
    num_tokens: int = 10,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> Any:
    """Give a model prompts, as its `vpt`; the given model stays as it is.

    Args:
        model: a ViT, or a backbone of stages whose blocks take tokens (Swin). Locations other than
            "prepend" and "add" suit any backbone with blocks.
        location: as in `VPT`; or "pad", a learned frame of pixels around the image, which is shrunk
            into it, or "below", learned channels of the image with patch weights of their own.
        num_tokens: p; pixels of the frame, channels of the image.
        options: those of `VPT`; "pad" and "below" take none.

    Raises:
        ConfigError: the model has no place for such prompts, or an option's value is unknown.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = vit("micro", image_size=64, rngs=nnx.Rngs(0))
    >>> count(split(apply(model, num_tokens=5, deep=True)).trainable) == 6 * 5 * 96
    True
    """
    if location not in LOCATIONS:
        raise ConfigError(f"unknown location {location!r}; {nearest(location, LOCATIONS)}")
    check_place(model, "vpt")
    _check_model(model, location)
    model, rngs = nnx.clone(model), rngs or nnx.Rngs(0)
    patch = _patch_size(model)
    if location in ("pad", "below"):
        if options:
            raise ConfigError(f"{sorted(options)} are not of prompts at {location!r}")
        kind = Frame if location == "pad" else Below
        add_hook(model, "vpt", kind(model, patch, num_tokens, rngs=rngs))
        return model
    options |= {"num_tokens": num_tokens, "location": location, "rngs": rngs}
    grid = getattr(model, "grid", None)
    hook = VPT(_stages(model), _widths(model), cell=patch, grid=grid, **options)
    add_hook(model, "vpt", hook)
    return model


def _stages(model: Any) -> list[list[int]]:
    numbers = itertools.count()
    lengths = map(len, model.stages) if hasattr(model, "stages") else [len(model.blocks)]
    return [[next(numbers) for _ in range(length)] for length in lengths]


def _widths(model: Any) -> Sequence[int]:
    return model.widths if hasattr(model, "stages") else [model.width]


def _patch_size(model: Any) -> int:
    return model.strides[0] if hasattr(model, "strides") else model.patch_size


def _check_model(model: Any, location: str) -> None:
    """Refuse a model that has no place for prompts there."""
    name = type(model).__name__
    if location == "prepend":
        if not model.takes_prompts:
            raise ConfigError(
                f"vpt: the blocks of this {name} work on maps, which have no place for prompts; "
                "give a ViT or a Swin, or choose another location: 'add-1', 'pad', 'below'"
            )
        if any(isinstance(node, RelativeBias) for _, node in nnx.iter_graph(model)):
            raise ConfigError(
                f"vpt: the relative positions of this {name} are of its own tokens alone; choose "
                "another location: 'add', 'add-1', 'pad', 'below'"
            )
    elif location != "add-1" and not hasattr(model, "grid"):
        raise ConfigError(
            f"vpt: prompts at {location!r} are for images of one size, and this {name} has none; "
            "give a ViT, or choose 'prepend' or 'add-1'"
        )


def from_class_tokens(model: Any, images: Float[Array, "b h w c"], groups: Int[Array, " b"]) -> Any:
    """Start every prompt from a mean of class tokens; the given model stays as it is.

    The p prompts of a block become the means of the class tokens that this block gives for the
    images of p groups, such as classes, without prompts; those of an empty group stay.

    Args:
        model: with prompts at "prepend", not projected.
        images: as the model takes them.
        groups: number of each image's group, from 0 to p - 1.

    Raises:
        ConfigError: the model has no such prompts, or no class token.
    """
    hook = getattr(model, "vpt", None)
    if not isinstance(hook, VPT) or hook.location != "prepend" or hook.proj is not None:
        raise ConfigError("no prompts that stand before patches, without a projection, to start")
    if not getattr(model, "num_table_extra", 0):
        raise ConfigError(f"this {type(model).__name__} has no class token to start prompts from")
    model = nnx.clone(model)
    plain = nnx.clone(model)
    plain.hooks = tuple(name for name in plain.hooks if name != "vpt")
    numbers = [model.vpt.first, *(number for number, *_ in model.vpt.rows)]
    shares = jnp.asarray(groups)[None] == jnp.arange(hook.prompts.shape[0])[:, None]
    sizes = shares.sum(axis=1, keepdims=True)
    for number, tokens in zip(numbers, plain.features(images, numbers, norm=False), strict=True):
        means = shares.astype(tokens.dtype) @ tokens[:, 0]
        means = means / jnp.maximum(sizes, 1).astype(tokens.dtype)
        rows = jnp.where(sizes > 0, means, model.vpt.of(number))
        place = model.vpt.place(number)
        if place is None:
            model.vpt.prompts[...] = rows
        else:
            deep = model.vpt.deep[place[0]]
            deep[...] = deep[...].at[place[1]].set(rows)
    return model
