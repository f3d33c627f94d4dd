"""The loop over the blocks of a trunk, and what all trunks have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt import remat
from vadapt.errors import ConfigError
from vadapt.nn.drop import OptionalKey, drawing_from
from vadapt.nn.hooks import Hook, Hooks, hooks_of
from vadapt.nn.plans import Parallel, Plan, check, executed, read
from vadapt.nn.sites import Site
from vadapt.nn.sites import sites as sites_of
from vadapt.nn.tokens import Tokens
from vadapt.partition import Constant


class Passed(NamedTuple):
    """A pass through blocks: what the last one gave, what was tapped, and the hooks after it."""

    x: Tokens
    seen: dict[int, Tokens]
    hooks: Hooks


def run_blocks(
    blocks: Sequence[Any],
    x: Tokens,
    *,
    plan: Plan | None = None,
    hooks: Hooks | None = None,
    taps: Collection[int] = (),
    keys: Sequence[OptionalKey] | None = None,
    context: Callable[[Tokens], tuple[Any, ...]] = lambda x: (),
    first: int = 0,
) -> Passed:
    """Call blocks one after the other: the only loop over blocks.

    Args:
        blocks: modules called as block(array, key, *context), which keep the array's shape, but for
            the first of a stage.
        plan: the order, see `vadapt.nn.plans`; None for each once. Parameters and hooks belong to
            a block, wherever and however often it runs. Blocks of a group that are alike, and that
            nothing acts around, run as one, over their stacked weights.
        taps: numbers of blocks whose output is wanted. A tap at a block that a plan leaves out
            takes the nearest lower one that runs; one inside a group takes the group's mean.
        keys: of the blocks, in training.
        context: what blocks are called with besides, such as a rotation, of what a block takes.
        first: number of the first of the blocks, for hooks and taps.

    Raises:
        ConfigError: the plan cannot be run (`plans.check`), or leaves out all up to a tap.
    """
    keys = [None] * len(blocks) if keys is None else keys
    hooks = Hooks() if hooks is None else hooks
    order = range(len(blocks)) if plan is None else plan
    wanted = _sources(order, len(blocks), first, taps)
    seen: dict[int, Tokens] = {}

    def call(number: int, x: Tokens, hooks: Hooks) -> tuple[Tokens, Tokens, Hooks]:
        return _call(blocks[number], first + number, x, hooks, keys[number], context)

    for step in _scannable(order, blocks, hooks, {*wanted.values()}, first):
        if isinstance(step, range):
            x = _scan([blocks[i] for i in step], x, [keys[i] for i in step], context)
            shown, numbers = x, step[-1:]
        elif isinstance(step, Parallel):
            acted_on = any(h.acts(first + i) for h in hooks.modules for i in step.blocks)
            together = not acted_on and _are_alike([blocks[i] for i in step.blocks])
            for _ in range(step.loops):
                if together:
                    chosen = [(blocks[i], keys[i]) for i in step.blocks]
                    total = x.with_array(_sum_of(chosen, x, context)).without_prompts().array
                else:
                    total, hooks = _sum_by_turns(step.blocks, x, hooks, call)
                x = x.without_prompts()
                x = x.with_array(_merged(step, x.array, total))
            shown, numbers = x, step.blocks
        else:
            x, shown, hooks = call(step, x, hooks)
            numbers = (step,)
        for number in numbers:
            seen |= {tap: shown for tap, source in wanted.items() if source == first + number}
    return Passed(x, seen, hooks)


def _call(
    block: Any,
    number: int,
    x: Tokens,
    hooks: Hooks,
    key: OptionalKey,
    context: Callable[[Tokens], tuple[Any, ...]],
) -> tuple[Tokens, Tokens, Hooks]:
    """Return what goes on after a block, what a tap sees of it, and the hooks after it."""
    acting = [i for i, hook in enumerate(hooks.modules) if hook.acts(number)]
    if not acting:
        with drawing_from(key):
            y = x.with_array(remat.call(block, x.array, key, *context(x)))
        return y, y, hooks

    def forward(modules: Any, x: Tokens, states: Any, key: OptionalKey) -> Any:
        block, *methods = modules
        states = list(states)
        with drawing_from(key):
            for i, hook in enumerate(methods):
                x, states[i] = hook.before(number, x, states[i])
            y = shown = x.with_array(block(x.array, key, *context(x)))
            for i, hook in enumerate(methods):
                y, states[i] = hook.after(number, y, states[i])
                shown = y if hook.shown(number) else shown
        return y, shown, states

    modules = nnx.List([block, *(hooks.modules[i] for i in acting)])
    given = [hooks.states[i] for i in acting]
    y, shown, given = remat.call(modules, x, given, key, function=forward)
    states = list(hooks.states)
    for i, state in zip(acting, given, strict=True):
        states[i] = state
    return y, shown, hooks._replace(states=tuple(states))


def _sources(order: Plan, number: int, first: int, taps: Collection[int]) -> dict[int, int]:
    """The block whose output each tap takes."""
    running = executed(check(order, number))
    found = {}
    for tap in taps:
        lower = [first + i for i in running if first + i <= tap]
        if not lower:
            raise ConfigError(f"the plan runs no block up to {tap}, where a map is wanted")
        found[tap] = max(lower)
    return found


# Scanning over depth.


def _scannable(
    order: Plan, blocks: Sequence[Any], hooks: Hooks, taps: Collection[int], first: int
) -> list[int | Parallel | range]:
    """The order, with blocks in a row that can be one scan as a range.

    Raises:
        ConfigError: scanning is asked for, and no two blocks in a row can be.
    """
    if not remat.is_scanned() or len(blocks) < 2:
        return list(order)
    graphs = [_graph(block) for block in blocks]

    def alone(number: int) -> bool:
        acted_on = any(hook.acts(first + number) for hook in hooks.modules)
        return graphs[number] is None or acted_on

    def goes_on(row: range, number: int) -> bool:
        alike = graphs[number] == graphs[row.start]
        return alike and number == row.stop and first + row.stop - 1 not in taps

    steps: list[int | Parallel | range] = []
    for step in order:
        row = steps[-1] if steps else None
        if isinstance(step, Parallel) or alone(step):
            steps.append(step)
        elif isinstance(row, range) and goes_on(row, step):
            steps[-1] = range(row.start, step + 1)
        else:
            steps.append(range(step, step + 1))
    steps = [s[0] if isinstance(s, range) and len(s) == 1 else s for s in steps]
    if not any(isinstance(step, range) for step in steps):
        reasons = sorted({type(h).__name__ for h in hooks.modules}) or [
            "they differ, or are tapped"
        ]
        raise ConfigError(
            "scanning over depth needs two blocks in a row that are alike and that nothing acts "
            f"around; in the way: {', '.join(reasons)}. Set parallel.step.scan=False"
        )
    return steps


def _graph(block: Any) -> Any:
    """All of a block but its weights and tables, equal in blocks that can be stacked.

    None where it keeps a state, which no two blocks share.
    """
    graph, _, state = nnx.split(block, (nnx.Param, Constant), ...)
    return None if jax.tree.leaves(state) else graph


def _scan(
    blocks: Sequence[Any],
    x: Tokens,
    keys: Sequence[OptionalKey],
    context: Callable[[Tokens], tuple[Any, ...]],
) -> Tokens:
    """Alike blocks as one loop in the compiled program, over their stacked weights."""
    call, stacked = _stacked(blocks, keys, context(x))
    array, _ = jax.lax.scan(lambda array, one: (call(array, one), None), x.array, stacked)
    return x.with_array(array)


def _stacked(
    blocks: Sequence[Any], keys: Sequence[OptionalKey], more: tuple[Any, ...]
) -> tuple[Callable[[Array, Any], Array], Any]:
    """A call of one of alike blocks, of an array and its slice of what is stacked; and that."""
    graph, _ = nnx.split(blocks[0])
    states = [nnx.to_pure_dict(nnx.state(block)) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    drawn = None if keys[0] is None else jnp.stack([key for key in keys if key is not None])

    def call(array: Array, one: Any) -> Array:
        state, key = one
        with drawing_from(key):
            return remat.call(nnx.merge(graph, state), array, key, *more)

    return call, (stacked, drawn)


# Groups that run side by side.


def _are_alike(blocks: Sequence[Any]) -> bool:
    """Whether blocks differ in their weights alone, so that these can be stacked."""
    graphs = [_graph(block) for block in blocks]
    return graphs[0] is not None and all(graph == graphs[0] for graph in graphs)


def _sum_of(
    chosen: Sequence[tuple[Any, OptionalKey]],
    x: Tokens,
    context: Callable[[Tokens], tuple[Any, ...]],
) -> Float[Array, "b *n d"]:
    """The sum of what alike blocks make of the same, computed as one."""
    blocks, keys = zip(*chosen, strict=True)
    call, stacked = _stacked(blocks, keys, context(x))
    return jax.vmap(call, in_axes=(None, 0))(x.array, stacked).sum(axis=0)


def _sum_by_turns(
    numbers: Sequence[int],
    x: Tokens,
    hooks: Hooks,
    call: Callable[[int, Tokens, Hooks], tuple[Tokens, Tokens, Hooks]],
) -> tuple[Float[Array, "b *n d"], Hooks]:
    """The sum of what blocks make of the same, one after the other; and the hooks after them."""
    total = jnp.zeros_like(x.without_prompts().array)
    for number in numbers:
        y, _, hooks = call(number, x, hooks)
        total = total + y.without_prompts().array
    return total, hooks


def _merged(
    group: Parallel, before: Float[Array, "b *n d"], total: Float[Array, "b *n d"]
) -> Float[Array, "b *n d"]:
    """What goes on after a group, of what it took and the sum of what its blocks made of it."""
    number = len(group.blocks)
    if group.scale is None:
        return total / number
    return before + group.scale * (total - number * before)


# What all trunks have in common.


class Features(NamedTuple):
    """The result of a forward pass: the maps of the chosen blocks, and outputs by name."""

    maps: Any  # one array for one number, a tuple for several
    outputs: dict[str, Any]


class Trunk(nnx.Module):
    """A backbone whose blocks run in `run_blocks`.

    A kind of it implements `run`, and `leave` where it has norms for what leaves.
    """

    hooks: tuple[str, ...] = ()  # names of the attributes that hold hooks, in the order they act
    plan: Any = None  # see `run_blocks`; `follow` sets it
    counts: str = "blocks"  # what numbers given to `features` count
    num_extra: int = 0  # tokens before the patches
    in_channels: int = 3  # of images
    has_class_token: bool = False  # the first of the tokens before the patches
    takes_prompts: bool = False  # whether blocks take tokens that methods add to the sequence

    @property
    def depth(self) -> int:
        """The number of blocks (stages, where a backbone has them) that `features` counts."""
        raise NotImplementedError

    def run(
        self, images: Float[Array, "b h w c"], taps: Collection[int] = (), *, key: OptionalKey
    ) -> Passed:
        """A pass up to the last of the taps, or to the end without taps."""
        raise NotImplementedError

    def follow(self, plan: str) -> None:
        """Run blocks as a text says from here on, see `plans.read`; "" for each once, in order.

        Raises:
            ConfigError: it cannot be read or run, or the backbone has stages.
        """
        if plan and self.counts != "blocks":
            raise ConfigError(
                f"plan {plan!r}: a {type(self).__name__} has {self.counts}, which run in their "
                "order alone; plans are for backbones of blocks that are alike, such as a ViT"
            )
        self.plan = read(plan, self.depth) if plan else None

    def sites(self, *kinds: str) -> list[Site]:
        """The places where a method can take hold; see `vadapt.nn.sites.sites`."""
        return sites_of(self, *kinds)

    def leave(self, x: Float[Array, "b *n d"], number: int) -> Float[Array, "b *n d"]:
        """The output of a block (of a stage) as others see it: normed, if it has a norm."""
        return x

    def outgoing(self, x: Tokens, number: int, hooks: Hooks, *, norm: bool = True) -> Tokens:
        """What a block (a stage) gave, as others see it: without prompts, behind norm and hooks."""
        x = x.without_prompts()
        array = self.leave(x.array, number) if norm else x.array
        return x.with_array(hooks.leave(array) if number == self.depth - 1 else array)

    def begin(self, images: Float[Array, "b h w c"], *more: Hook) -> Hooks:
        """The model's hooks, and others, at the start of a pass."""
        return Hooks.begin([*hooks_of(self), *more], images)

    def glance(self, images: Float[Array, "b h w c"], layer: int) -> Float[Array, "b gh gw d"]:
        """The map of a block (of a stage) without any hooks; nothing in it is random."""
        bare = nnx.clone(self)
        bare.hooks = ()
        return bare.features(images, layer, as_grid=True)

    def features(
        self,
        images: Float[Array, "b h w c"],
        layers: int | Sequence[int] = -1,
        *,
        as_grid: bool = False,
        norm: bool = True,
        key: OptionalKey = None,
    ) -> Any:
        """The maps of `extract`."""
        return self.extract(images, layers, as_grid=as_grid, norm=norm, key=key).maps

    def extract(
        self,
        images: Float[Array, "b h w c"],
        layers: int | Sequence[int] = -1,
        *,
        as_grid: bool = False,
        norm: bool = True,
        key: OptionalKey = None,
    ) -> Features:
        """Outputs of chosen blocks (of stages), and what methods give besides, by name.

        Prompts that methods added are an output, as the last of the chosen blocks leaves them; so
        is the class token.

        Args:
            layers: their numbers, negative from the end; one number gives one array, a sequence a
                tuple in that order.
            as_grid: return maps [b, h, w, d]; else tokens [b, n, d], special tokens included.
            norm: apply the norms for what leaves, where a model has them.
            key: given in training only; dropout and drop path then act.

        Raises:
            ConfigError: a number that does not exist.
        """
        wanted = block_numbers(layers, self.depth, self.counts)
        passed = self.run(images, wanted, key=key)
        found = {}
        for number in dict.fromkeys(wanted):
            found[number] = self.outgoing(passed.seen[number], number, passed.hooks, norm=norm)
        maps = tuple(found[i].map if as_grid else found[i].tokens for i in wanted)
        outputs = passed.hooks.outputs()
        if wanted and (last := passed.seen[wanted[-1]]).num_prompts:
            outputs["prompts"] = self.leave(last.prompts, wanted[-1]) if norm else last.prompts
        if wanted and self.has_class_token:
            outputs["class_token"] = found[wanted[-1]].special[:, 0]
        return Features(maps[0] if isinstance(layers, int) else maps, outputs)


def block_numbers(layers: int | Sequence[int], depth: int, what: str = "blocks") -> tuple[int, ...]:
    """Numbers of blocks (or of `what`), negative ones from the end, as numbers from 0.

    Raises:
        ConfigError: a block number that does not exist.
    """
    wanted = (layers,) if isinstance(layers, int) else tuple(layers)
    if any(not -depth <= layer < depth for layer in wanted):
        raise ConfigError(f"layers {wanted} of a model with {depth} {what} (0 to {depth - 1})")
    return tuple(layer % depth for layer in wanted)
