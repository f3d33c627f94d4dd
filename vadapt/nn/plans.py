"""Plans: in which order the blocks of a trained transformer run, how often, and which side by side.

A plan is data: numbers of blocks, which may be left out, repeat and stand in any order, and groups
that all take the same. Layers are painters, each of whom may pass the canvas on to any other.

Source: Transformer Layers as Painters, arXiv:2407.09298; the middle of a model, which its variants
change, is counted as in the released code.
"""

from __future__ import annotations

import random as python_random
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vadapt.errors import ConfigError


class Parallel(NamedTuple):
    """Blocks that all take the same, in a plan.

    Args:
        blocks: their numbers.
        loops: how many times in a row.
        scale: what the sum of the blocks' changes is multiplied by before it is added to what they
            take; None for their mean, the paper's choice. 1 keeps the whole change of the sequence.
    """

    blocks: tuple[int, ...]
    loops: int = 1
    scale: float | None = None


Plan = Sequence[int | Parallel]
_MOST = 100  # times that a plan may run as many blocks as there are


def baseline(depth: int) -> Plan:
    """Every block once, in order."""
    return tuple(range(depth))


def middle(depth: int, start: int) -> range:
    """The blocks that a variant changes: `depth - 2 * start - 1` of them.

    Args:
        start: the last block before the middle; as many blocks as this number come after it.

    Raises:
        ConfigError: there is no such middle.
    """
    if not 0 <= start <= (depth - 1) // 2:
        raise ConfigError(
            f"start {start} of the middle of {depth} blocks; it may be 0 to {(depth - 1) // 2}"
        )
    return range(start + 1, depth - start)


def _around(depth: int, start: int, within: Iterable[int | Parallel]) -> Plan:
    """The blocks before the middle, something in its place, the blocks after it."""
    changed = middle(depth, start)
    return (*range(changed.start), *within, *range(changed.stop, depth))


def skip(depth: int, start: int) -> Plan:
    """Without the middle."""
    return _around(depth, start, ())


def middle_repeat(depth: int, start: int) -> Plan:
    """The block in the center in the place of each of the middle."""
    return _around(depth, start, [depth // 2] * len(middle(depth, start)))


def reverse(depth: int, start: int) -> Plan:
    """The middle backwards."""
    return _around(depth, start, reversed(middle(depth, start)))


def random(depth: int, start: int, seed: int) -> Plan:
    """The middle shuffled as Python's own generator does of that seed."""
    order = list(middle(depth, start))
    python_random.Random(seed).shuffle(order)
    return _around(depth, start, order)


def loop_parallel(depth: int, start: int, loops: int = 3, scale: float | None = None) -> Plan:
    """The middle side by side, several times in a row."""
    group = tuple(middle(depth, start))
    return _around(depth, start, [Parallel(group, loops, scale)] if group else ())


def parallel(depth: int, start: int, scale: float | None = None) -> Plan:
    """The middle side by side."""
    return loop_parallel(depth, start, 1, scale)


def pairs(depth: int, start: int) -> Plan:
    """The middle in groups of two neighbors side by side, which each add their whole change."""
    blocks = list(middle(depth, start))
    rows = [blocks[i : i + 2] for i in range(0, len(blocks), 2)]
    return _around(
        depth, start, [row[0] if len(row) == 1 else Parallel(tuple(row), 1, 1.0) for row in rows]
    )


def skip_one(depth: int, block: int) -> Plan:
    """Without one block.

    Raises:
        ConfigError: there is no such block.
    """
    check((block,), depth)
    return tuple(i for i in range(depth) if i != block)


def switch(depth: int, block: int) -> Plan:
    """One block and the next exchanged.

    Raises:
        ConfigError: there are no such two blocks.
    """
    check((block, block + 1), depth)
    order = list(range(depth))
    order[block], order[block + 1] = block + 1, block
    return tuple(order)


# By the names that the paper's code has for them, with what each takes after the depth.
VARIANTS = {
    "baseline": baseline,
    "skip": skip,
    "middle_repeat": middle_repeat,
    "reverse": reverse,
    "random": random,
    "parallel": parallel,
    "loop_parallel": loop_parallel,
    "pairs": pairs,
    "skip_one": skip_one,
    "switch": switch,
}


def check(plan: Plan, depth: int) -> Plan:
    """Return a plan that a model of `depth` blocks can run.

    Raises:
        ConfigError: it names a block that does not exist, has a group without blocks or loops, or
            runs more than 100 times as many blocks as there are.
    """
    if unknown := [i for i in executed(plan) if not 0 <= i < depth]:
        raise ConfigError(f"blocks {unknown} in the plan of a model of {depth}")
    if evaluations(plan) > _MOST * depth:
        raise ConfigError(
            f"a plan that runs {evaluations(plan)} blocks of a model of {depth}; at most "
            f"{_MOST * depth}"
        )
    for step in plan:
        if isinstance(step, Parallel) and (not step.blocks or step.loops < 1):
            raise ConfigError(f"a group of a plan needs blocks and at least one loop, got {step}")
    return plan


def executed(plan: Plan) -> list[int]:
    """The numbers of the blocks that run, in order; of a group each once."""
    return [i for step in plan for i in (step.blocks if isinstance(step, Parallel) else (step,))]


def longest(plan: Plan) -> int:
    """The number of blocks that run one after the other."""
    return sum(step.loops if isinstance(step, Parallel) else 1 for step in plan)


def evaluations(plan: Plan) -> int:
    """The number of times that a block runs."""
    return sum(step.loops * len(step.blocks) if isinstance(step, Parallel) else 1 for step in plan)


def spell(plan: Plan) -> str:
    """A plan for people and configs; `read` reads it.

    >>> spell((0, 1, 2, Parallel((3, 4), loops=3), Parallel((5, 6), scale=1.0), 7))
    '0-2,(3,4)x3,(5,6)*1,7'
    """
    parts: list[str] = []
    row: list[int] = []
    for step in (*plan, None):
        if isinstance(step, int) and (not row or step == row[-1] + 1):
            row.append(step)
            continue
        if row:
            parts.append(f"{row[0]}-{row[-1]}" if len(row) > 2 else ",".join(map(str, row)))
        row = [step] if isinstance(step, int) else []
        if isinstance(step, Parallel):
            scale = "" if step.scale is None else f"*{step.scale:g}"
            loops = f"x{step.loops}" if step.loops > 1 else ""
            parts.append(f"({','.join(map(str, step.blocks))}){loops}{scale}")
    return ",".join(parts)


_PART = re.compile(
    r"(?P<first>\d+)(?:-(?P<last>\d+))?"
    r"|\((?P<group>[\d,-]+)\)(?:x(?P<loops>\d+))?(?:\*(?P<scale>[\d.e+-]+))?"
)


def read(text: str, depth: int) -> Plan:
    """A plan out of its text: numbers, ranges and groups, joined by commas.

    Args:
        text: such as "0-3,(4-8)x3,9-11": blocks 4 to 8 side by side, three times. A number after
            "*" is the group's scale, see `Parallel`; a range may run backwards. A name of
            `VARIANTS` with its arguments does as well: "skip:3", "random:3,0".

    Raises:
        ConfigError: what cannot be read, or not be run by a model of `depth` blocks.

    >>> read("0,1,(2-4)x2,5", 6)
    (0, 1, Parallel(blocks=(2, 3, 4), loops=2, scale=None), 5)
    """
    text = text.replace(" ", "")
    name, _, rest = text.partition(":")
    try:
        if name in VARIANTS:
            return check(VARIANTS[name](depth, *(int(x) for x in rest.split(",") if x)), depth)
        steps: list[int | Parallel] = []
        place = 0
        while place < len(text):
            found = _PART.match(text, place)
            if not found or text[found.end() : found.end() + 1] not in ("", ","):
                raise ValueError(text[place:])
            place = found.end() + 1
            if found["group"]:
                parts = found["group"].split(",")
                blocks = tuple(i for part in parts for i in _range(part, depth))
                scale = float(found["scale"]) if found["scale"] else None
                steps.append(Parallel(blocks, int(found["loops"] or 1), scale))
            else:
                steps += _range(found[0], depth)
        return check(tuple(steps), depth)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"plan {text!r} cannot be read; write blocks, ranges and groups as in "
            f"'0-3,(4-8)x3,9-11', or one of {', '.join(VARIANTS)} as in 'skip:3'"
        ) from error


def _range(text: str, depth: int) -> range:
    """The numbers of "4", of "4-8", or of "8-4" backwards."""
    first, _, last = text.partition("-")
    start, end = int(first), int(last or first)
    if unknown := [i for i in dict.fromkeys((start, end)) if i >= depth]:
        raise ConfigError(f"blocks {unknown} in the plan of a model of {depth}")
    step = 1 if end >= start else -1
    return range(start, end + step, step)
