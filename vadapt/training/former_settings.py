"""Settings of runs that an older version began, in the words of this one, so that they go on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vadapt.training.optimizers import OPTIMIZERS, OptimizerSettings

# Names that changed: old to new.
_MOVED = {("task", "semantic_weight"): ("method", "loss_weight")}
# What data files need, and what recipes on the embedded scenes once listed for nothing.
_OF_FILES = ("layout", "split", "tfds_name", "longest", "test_shortest")


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, of any version, so that equal ones are equal; `settings` stays.

    Args:
        settings: what `config.json` holds.
    """
    found = _copy(settings)
    for (section, old), (other, new) in _MOVED.items():
        if old in found.get(section, {}):
            value = found[section].pop(old)
            if found.get(other, {}).get("name", "none") != "none":
                found[other][new] = value
    sections = [found.get("optimizer", {}), *found.get("optimizers", {}).values()]
    for section in sections:
        _compare_optimizer(section, found["batch_size"])
    data = found.get("data", {})
    if str(data.get("source", "")).startswith("scene"):
        for name in _OF_FILES:
            data.pop(name, None)
    return found


def _copy(tree: Any) -> Any:
    return {key: _copy(x) for key, x in tree.items()} if isinstance(tree, Mapping) else tree


def _compare_optimizer(section: dict[str, Any], batch_size: int) -> None:
    """A section in place: rates as they act, rules apart by what they change, all defaults."""
    if "base_lr" in section:
        _of_today(section)
    section.setdefault("name", OptimizerSettings.name)
    known = {
        **inspect.signature(OptimizerSettings).parameters,
        **inspect.signature(OPTIMIZERS[section["name"]]).parameters,
    }
    for name, parameter in known.items():
        if parameter.default is not inspect.Parameter.empty:
            section.setdefault(name, parameter.default)
    lr_batch = section.pop("lr_batch")
    section["lr"] *= batch_size / lr_batch if lr_batch else 1.0
    rules = section.pop("rules")
    for field in ("rate", "decay", "start"):
        section[f"rules of {field}"] = [[p, x[field]] for p, x in rules if field in x]


def _of_today(section: dict[str, Any]) -> None:
    """A section in the words of version 0.1, whose schedule went by which of its fields there were,
    and whose rate was that for 256 images."""
    section["lr"], section["lr_batch"] = section.pop("base_lr"), 256
    schedule = {"warmup": section.pop("warmup_share"), "end": section.pop("end_lr")}
    if section.get("drops") is not None:
        del schedule["end"]
        schedule |= {"name": "staircase", "drops": section.pop("drops")}
    elif section.get("power") is not None:
        schedule |= {"name": "polynomial", "power": section.pop("power")}
    else:
        schedule["name"] = "cosine"
    section["schedule"] = schedule
    rules = [[pattern, {"start": share}] for pattern, share in section.pop("late", ())]
    rules += [[pattern, {"rate": factor}] for pattern, factor in section.pop("rates", ())]
    undecayed = section.pop("undecayed", None)
    if undecayed is not None:
        rules += [[undecayed, {"decay": 0.0}], [".*", {"decay": 1.0}]]
    section["rules"] = rules
