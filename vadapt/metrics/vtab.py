"""VTAB-1k's two headline numbers: the mean over its tasks, and that of its groups' means.

Papers report either as "the mean". The eight structured tasks, on which scores are lowest, weigh
8/19 in the first and a third in the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from vadapt.data.vtab import GROUPS, TASKS
from vadapt.errors import ConfigError, nearest


def vtab_means(scores: Mapping[str, float]) -> dict[str, float]:
    """Means of the scores of all 19 tasks, by name.

    Args:
        scores: of each task in `vadapt.data.vtab.TASKS`, all in percent or all as shares.

    Returns:
        "Natural", "Specialized" and "Structured", the mean of each group; "mean_of_tasks", of all
        19; "mean_of_groups", of the three.

    Raises:
        ConfigError: a task is unknown, or some are missing; says which.
    """
    for name in scores:
        if name not in TASKS:
            raise ConfigError(f"VTAB-1k has no task {name!r}; {nearest(name, TASKS)}")
    if missing := [name for name in TASKS if name not in scores]:
        raise ConfigError(
            f"{len(missing)} of {len(TASKS)} tasks have no score, and the means are over all: "
            + ", ".join(missing)
        )
    groups = {
        group: fmean(scores[name] for name, task in TASKS.items() if task.group == group)
        for group in GROUPS
    }
    means = {"mean_of_tasks": fmean(scores.values()), "mean_of_groups": fmean(groups.values())}
    return groups | means


def vtab_table(scores: Mapping[str, float]) -> str:
    """A line for each task, each group's mean, and both means of all; see `vtab_means`."""
    means = vtab_means(scores)
    lines = []
    for group in GROUPS:
        lines += [f"{name:22}{scores[name]:8.2f}" for name in TASKS if TASKS[name].group == group]
        lines.append(f"{group:22}{means[group]:8.2f}")
    for name in ("mean_of_tasks", "mean_of_groups"):
        lines.append(f"{name.replace('_', ' '):22}{means[name]:8.2f}")
    return "\n".join(lines)
