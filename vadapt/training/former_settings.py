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
    if "model" in found:
        found["model"].setdefault("plan", "")
    data = found.get("data", {})
    if str(data.get("source", "")).startswith("scene"):
        for name in _OF_FILES:
            data.pop(name, None)
    return found


def _copy(tree: Any) -> Any:
    return {key: _copy(x) for key, x in tree.items()} if isinstance(tree, Mapping) else tree


def _compare_optimizer(section: dict[str, Any], batch_size: int) -> None:
    """A section in place: rates as they act, rules apart by what they change, all defaults."""
    if any(name in section for name in FORMER):
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


# Of the optimizer's section of version 0.1, whose schedule went by which of its fields there were,
# and whose rate was that for 256 images.
_SCHEDULE = {"warmup_share": "warmup", "end_lr": "end", "power": "power", "drops": "drops"}
_RULES = {"late": "start", "rates": "rate"}
FORMER = ("base_lr", *_SCHEDULE, *_RULES, "undecayed")


def modernize(config: Any) -> list[str]:
    """Give the optimizers' settings that go by names of version 0.1 those of today, in place.

    Returns:
        A line about each of them.
    """
    notes = []
    sections = {"optimizer": config.optimizer}
    sections |= {f"optimizers.{name}": x for name, x in config.get("optimizers", {}).items()}
    for name, section in sections.items():
        names = [key for key in FORMER if key in section]
        if names:
            with config.unlocked():
                _of_today(section)
            notes.append(
                f"config.{name}.{', '.join(names)}: lr (for lr_batch=256 images), schedule and "
                "rules say this now; see docs/how_to/recipe.md"
            )
    return notes


def _of_today(section: Any) -> None:
    """A section in the words of version 0.1, or with some of them, in those of today; in place."""
    former = {key: section[key] for key in FORMER if key in section}
    for key in former:
        del section[key]
    former = {key: value for key, value in former.items() if value is not None}
    if "base_lr" in former:
        section["lr"], section["lr_batch"] = former["base_lr"], 256
    schedule = {new: former[old] for old, new in _SCHEDULE.items() if old in former}
    if "schedule" not in section:
        name = "staircase" if "drops" in schedule else "polynomial" if "power" in schedule else ""
        if name == "staircase":
            schedule.pop("end", None)
        section["schedule"] = {"name": name or "cosine"}
    section["schedule"].update(schedule)
    rules = [(p, {new: x}) for old, new in _RULES.items() for p, x in former.get(old, ())]
    if "undecayed" in former:
        rules += [(former["undecayed"], {"decay": 0.0}), (".*", {"decay": 1.0})]
    if rules or "rules" not in section:
        section["rules"] = (*rules, *section.get("rules", ()))
