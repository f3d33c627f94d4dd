"""Families of files, a module each, and which of them a file is of; nothing here names one."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from vadapt.errors import WeightsError
from vadapt.weights.tables import Family, Table

# What trainers of several processes, and of whole systems, put before every name.
PREFIXES = ("module.", "model.", "backbone.")
# What compilers and trainers put anywhere into names.
_WRAPPED = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Trainings by self-distillation hold two models; the teacher is the one that is kept.
_ROLE = re.compile(r"(?:(?:model|module|state_dict)\.)*(teacher|student)\.(?:module\.)*(.*)")
# What stands beside `backbone.` in whole systems.
BESIDE = ("decode_head.", "auxiliary_head.", "neck.", "bbox_head.")


@functools.cache
def families() -> tuple[Family, ...]:
    """What the modules of this package declare, by rank."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return tuple(sorted(found, key=lambda family: family.rank))


@functools.cache
def tables() -> tuple[Table, ...]:
    """All tables, in the order in which equals count; backbones' with what may lie beside them."""
    beside = [family.beside for family in families() if family.beside is not None]

    def joined(table: Table) -> Table:
        return functools.reduce(lambda table, join: join(table), beside, table)

    return tuple(
        table if family.whole else joined(table) for family in families() for table in family.tables
    )


def of_training(arrays: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The backbone's arrays in a file of a self-distilling training, and the names of all others.

    Of teacher and student it is the teacher's, and of what either holds what is under `backbone.`,
    if anything is. Files of other trainings stay as they are, without what compilers add to names.
    """
    plain = {_WRAPPED.sub("", name): name for name in arrays}
    roles = {name: match for name in plain if (match := _ROLE.fullmatch(name))}
    wanted = "teacher" if any(match[1] == "teacher" for match in roles.values()) else "student"
    chosen = {match[2]: plain[name] for name, match in roles.items() if match[1] == wanted}
    if any(name.startswith("backbone.") for name in chosen):
        chosen = {new: old for new, old in chosen.items() if new.startswith("backbone.")}
    chosen = chosen or plain
    kept = set(chosen.values())
    found = {new: arrays[old] for new, old in chosen.items()}
    return found, [name for name in arrays if name not in kept]


def unwrapped(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays without a prefix that all names share, under the names of the tables.

    Names in `BESIDE` have no part in this.
    """
    arrays, _ = of_training(arrays)
    for prefix in PREFIXES:
        for family in families():
            arrays = arrays if family.renamed is None else family.renamed(arrays)
        if arrays and all(name.startswith((prefix, *BESIDE)) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def family_of(arrays: Mapping[str, Any]) -> str:
    """The family whose names these are, or "vadapt".

    Raises:
        WeightsError: no family has a single one of these names.
    """
    table = table_of(arrays)
    return "vadapt" if table is None else table.family


def table_of(arrays: Mapping[str, Any]) -> Table | None:
    """The table of a file with these names; None for vadapt's own.

    Raises:
        WeightsError: no family has a single one of these names.
    """
    table = find_family(unwrapped(arrays))
    if table is None and not any("/" in name for name in arrays):
        raise WeightsError(f"names of no family that is known here, such as {sorted(arrays)[:4]}")
    return table


def check(arrays: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
    """Refuse arrays that hold what a model computes otherwise.

    Args:
        allowed: patterns of names to pass over.

    Raises:
        WeightsError: as the families' own checks do.
    """
    for family in families():
        if family.check is not None:
            family.check(arrays, allowed)


def find_family(
    arrays: Mapping[str, Any], places: Container[str] = (), backbone: str = ""
) -> Table | None:
    """The table that knows most names, among equals the one that leaves fewest without a place.

    A DINOv2 file has names of a MAE file only, one of which (`mask_token`) has no place in a ViT.
    Some families make a table for a file's own names. None for vadapt's own.

    Args:
        arrays: as `unwrapped` gives them.
        places: the model's paths.
        backbone: as in `tables.convert`.
    """

    def left_over(table: Table) -> int:
        paths = (table.find(name, backbone) for name in arrays if not table.passes_over(name))
        return sum(found is None or found[0] not in places for found in paths)

    for family in families():
        if family.made is not None and (made := family.made(arrays)):
            return made
    known = [sum(map(table.knows, arrays)) for table in tables()]
    if any("/" in name for name in arrays) or not max(known):  # PyTorch's names have dots
        return None
    best = [table for table, number in zip(tables(), known, strict=True) if number == max(known)]
    return min(best, key=left_over)
