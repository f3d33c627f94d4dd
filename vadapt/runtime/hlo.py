"""Reading a compiled program: its collectives, and how many bytes it moves through main memory."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Names for values that are elsewhere already, or markers: nothing moves.
_FREE = {
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
}
_ARRAY = re.compile(r"\b(pred|[suf]\d+\w*|bf16|c64|c128|token)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + _ORDER + r"\))? \{([^}]*)\}"
)
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=" + _ORDER)
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})?\}")


class Collective(NamedTuple):
    """A transfer between chips that a step makes, perhaps of many arrays at once."""

    kind: str  # one of KINDS
    bytes: int  # of what each chip ends up with; of what it had, for a reduce-scatter
    axis: str  # of the mesh: "data", "fsdp", "data+fsdp"; "?" if its groups follow no axis


class Array(NamedTuple):
    """An array in the program's text."""

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _width(self.dtype) // 8

    @property
    def memory_bytes(self) -> int:
        """As it lies in main memory, padded to its tiles; 0 if it lies in a memory on the chip."""
        if re.search(r"S\([1-9]\d*\)", self.layout) or not self.shape:
            return 0
        order, _, tiling = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        shape = list(self.shape)
        if tile and order:
            minor_first = _numbers(order)
            sizes = _numbers(tile[1])[::-1]
            for axis, size in zip(minor_first, sizes, strict=False):
                shape[axis] = -(-shape[axis] // size) * size
        return math.prod(shape) * _width(self.dtype) // 8


class Instruction(NamedTuple):
    """A line of the program's text."""

    name: str
    opcode: str
    arrays: list[Array]  # what it makes
    operands: list[str]
    attributes: str


class Module:
    """The text of an optimised program, `compiled.as_text()`, taken apart."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside: dict[str, Instruction] = {}
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                inside = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif instruction := _parse(line):
                inside[instruction.name] = instruction

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """In the order of the program; one inside a loop counts as often as the loop runs.

        Args:
            mesh: axis names and sizes, in the order of its devices.
        """
        found, channels = [], set()
        for instruction, times in self._walk(self.entry, into_fusions=True):
            kind = instruction.opcode.removesuffix("-start")
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            # One that runs beside other work stands in several fusions, from its start to its end.
            if kind in KINDS and not (channel and channel[1] in channels):
                channels.add(channel[1] if channel else None)
                size = _size(kind, instruction)
                found += [Collective(kind, size, _axis(instruction.attributes, mesh))] * times
        return found

    def memory_traffic(self) -> int:
        """Bytes read from and written to main memory by every instruction.

        Of what is sliced, the slices count; of an array that is updated in its place, the part that
        is new. Of any other operand all of it counts, also of one that is gathered from.
        """
        return sum(
            times * self._traffic(instruction)
            for instruction, times in self._walk(self.entry, into_fusions=False)
        )

    @functools.cached_property
    def _instructions(self) -> dict[str, Instruction]:
        return {
            name: instruction
            for computation in self.computations.values()
            for name, instruction in computation.items()
        }

    def _traffic(self, instruction: Instruction) -> int:
        opcode, arrays = instruction.opcode, instruction.arrays
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        if opcode == "custom-call" and "Bitcast" in instruction.attributes:
            return 0
        if opcode == "copy-start":  # makes (copy, original, context)
            return sum(array.memory_bytes for array in arrays[:2])
        if opcode == "slice-start":  # makes (original, slice, context)
            return arrays[1].memory_bytes or arrays[1]._replace(layout="").memory_bytes
        if opcode == "dynamic-slice" or opcode == "slice":
            (taken,) = arrays
            return _part(self._array(instruction.operands[0]), taken) + taken.memory_bytes
        if opcode == "dynamic-update-slice":
            update = self._array(instruction.operands[1])
            return update.memory_bytes + _part(arrays[0], update)
        if opcode == "fusion":
            return self._fusion_traffic(instruction)
        read = [
            array
            for name in instruction.operands
            if name in self._instructions
            for array in self._instructions[name].arrays
        ]
        return sum(array.memory_bytes for array in [*read, *arrays])

    def _array(self, name: str) -> Array:
        return self._instructions[name].arrays[0]

    def _fusion_traffic(self, fusion: Instruction) -> int:
        inside = self.computations[_called(fusion)["calls"][0]]
        users: dict[str, list[Instruction]] = {}
        for instruction in inside.values():
            for name in instruction.operands:
                users.setdefault(name, []).append(instruction)
        parameters = {
            int(instruction.attributes): name
            for name, instruction in inside.items()
            if instruction.opcode == "parameter"
        }
        moved = 0
        for number, name in enumerate(fusion.operands):
            if name in self._instructions:
                whole = self._instructions[name].arrays
                parts = _parts_read(parameters[number], users)
                moved += (
                    sum(array.memory_bytes for array in whole)
                    if parts is None
                    else sum(_part(whole[0], part) for part in parts)
                )
        *_, root = inside.values()
        made = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
        made = made if len(made) == len(fusion.arrays) else [root] * len(fusion.arrays)
        for array, instruction in zip(fusion.arrays, made, strict=True):
            while instruction.opcode == "bitcast":
                instruction = inside[instruction.operands[0]]
            if instruction.opcode == "dynamic-update-slice":
                moved += _part(array, inside[instruction.operands[1]].arrays[0])
            else:
                moved += array.memory_bytes
        return moved

    def _walk(self, name: str, *, into_fusions: bool) -> Iterator[tuple[Instruction, int]]:
        """Instructions that run, and how often."""
        for instruction in self.computations[name].values():
            called = _called(instruction)
            if instruction.opcode == "while":
                times = self._trips(called["condition"][0])
                for inner, count in self._walk(called["body"][0], into_fusions=into_fusions):
                    yield inner, count * times
            elif instruction.opcode == "conditional":
                longest = max(called["branches"], key=lambda name: len(self.computations[name]))
                yield from self._walk(longest, into_fusions=into_fusions)
            elif instruction.opcode in ("call", "async-start") or (
                into_fusions and instruction.opcode == "fusion"
            ):
                yield from self._walk(called["calls"][0], into_fusions=into_fusions)
            else:
                yield instruction, 1

    def _trips(self, condition: str) -> int:
        """Number of turns of a loop: scans count from zero to the constant in their condition."""
        constants = [
            int(found[1])
            for instruction in self.computations[condition].values()
            if instruction.opcode == "constant"
            and (found := re.match(r"(\d+)", instruction.attributes))
        ]
        return max(constants, default=1)


def _parse(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    made, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    inside, attributes = rest[:end], rest[end + 1 :]
    attributes = re.split(r", (?:metadata|backend_config)=", attributes, maxsplit=1)[0]
    arrays = [
        Array(dtype, tuple(int(x) for x in shape.split(",") if x), layout or "")
        for dtype, shape, layout in _ARRAY.findall(made)
    ]
    if opcode in ("constant", "parameter"):
        attributes = inside
    return Instruction(start[1], opcode, arrays, re.findall(r"%([\w.\-]+)", inside), attributes)


def _parts_read(name: str, users: Mapping[str, list[Instruction]]) -> list[Array] | None:
    """What a fusion reads of a parameter, if that is parts of it alone; else None.

    Nothing of one that is updated in its place.
    """
    parts: list[Array] = []
    for user in users.get(name, []):
        if user.opcode == "bitcast":
            found = _parts_read(user.name, users)
            if found is None:
                return None
            parts += found
        elif user.opcode in ("slice", "dynamic-slice"):
            parts += user.arrays
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return None
    return parts


def _part(whole: Array, part: Array) -> int:
    """Bytes in main memory of a part of an array, which is padded as all of it is."""
    return whole.memory_bytes * part.bytes // max(whole.bytes, 1)


def _closing(text: str) -> int:
    """The place of the bracket that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return len(text)


def _called(instruction: Instruction) -> dict[str, list[str]]:
    """The computations that an instruction calls, by their role."""
    attributes, found = instruction.attributes, {}
    for role, pattern in (
        ("condition", r"condition=%?([\w.\-]+)"),
        ("body", r"body=%?([\w.\-]+)"),
        ("calls", r"(?:calls|to_apply)=%?([\w.\-]+)"),
    ):
        found[role] = re.findall(pattern, attributes)
    branches = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    found["branches"] = (
        re.findall(r"%?([\w.\-]+)", branches[1])
        if branches
        else re.findall(r"(?:false|true)_computation=%?([\w.\-]+)", attributes)
    )
    return found


def _size(kind: str, instruction: Instruction) -> int:
    sizes = [array.bytes for array in instruction.arrays]
    if instruction.opcode == f"{kind}-start" and kind in ("all-gather", "collective-permute"):
        return sizes[1]  # makes (operand, result, ...)
    if kind == "reduce-scatter":
        groups = _groups(instruction.attributes)
        return sum(sizes) * (len(groups[0]) if groups else 1)
    return sum(sizes)


def _axis(attributes: str, mesh: Mapping[str, int]) -> str:
    """The mesh axes that a collective's groups run along."""
    count = math.prod(mesh.values())
    groups = _groups(attributes) or [tuple(range(count))]
    wanted = {frozenset(group) for group in groups}
    ids = np.arange(count).reshape(tuple(mesh.values()))
    for number in range(1, len(mesh) + 1):
        for axes in itertools.combinations(range(len(mesh)), number):
            moved = np.moveaxis(ids, axes, range(ids.ndim - number, ids.ndim))
            lines = moved.reshape(-1, math.prod(ids.shape[axis] for axis in axes))
            along = {frozenset(line) for line in lines.tolist()}
            if "source_target_pairs" in attributes:
                if all(any(pair <= line for line in along) for pair in wanted):
                    return "+".join(list(mesh)[axis] for axis in axes)
            elif along == wanted:
                return "+".join(list(mesh)[axis] for axis in axes)
    return "?"


def _groups(attributes: str) -> list[tuple[int, ...]]:
    """Which devices talk to each other; nothing if the text says all of them."""
    if named := _MESH.search(attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = _order(named[2], named[3]) if named[2] else np.arange(math.prod(sizes.values()))
        ids = ids.reshape(tuple(sizes.values()))
        chosen = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[4])]
        last = range(ids.ndim - len(chosen), ids.ndim)
        size = math.prod(ids.shape[axis] for axis in chosen)
        return [tuple(line) for line in np.moveaxis(ids, chosen, last).reshape(-1, size).tolist()]
    if iota := _IOTA.search(attributes):
        ids = _order(iota[2], iota[3])
        return [tuple(line) for line in ids.reshape(-1, _numbers(iota[1])[-1]).tolist()]
    if listed := _LISTED.search(attributes):
        lines = re.findall(r"\{([\d,]+)\}", listed[1] or "")
        return [tuple(_numbers(line)) for line in lines]
    return []


def _order(shape: str, transposed: str | None) -> np.ndarray:
    """Devices in the order that `[2,4]T(1,0)` says: counted in that shape, then transposed."""
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(transposed)) if transposed else ids


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _width(dtype: str) -> int:
    """Bits of a number."""
    if dtype == "token":
        return 0
    return 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
