"""Both means of VTAB-1k, by hand, and what is refused."""

import pytest

from vadapt.data.vtab import TASKS
from vadapt.errors import ConfigError
from vadapt.metrics.vtab import vtab_means, vtab_table

# 7, 4 and 8 tasks, whose means are 80, 90 and 50.
SCORES = {
    **dict(zip(TASKS, [70.0, 90.0, 80.0, 75.0, 85.0, 79.0, 81.0], strict=False)),
    **{"patch_camelyon": 86.0, "eurosat": 96.0, "resisc45": 84.0, "diabetic_retinopathy": 94.0},
    **{"clevr_count": 40.0, "clevr_dist": 60.0, "dmlab": 50.0, "kitti": 80.0},
    **{"dsprites_loc": 55.0, "dsprites_ori": 45.0, "smallnorb_azi": 30.0, "smallnorb_ele": 40.0},
}


def test_both_means_are_there():
    means = vtab_means(SCORES)
    assert means == pytest.approx(
        {
            "Natural": 80.0,
            "Specialized": 90.0,
            "Structured": 50.0,
            "mean_of_tasks": (7 * 80 + 4 * 90 + 8 * 50) / 19,
            "mean_of_groups": 220 / 3,
        }
    )


def test_scores_come_in_any_order():
    assert vtab_means(dict(reversed(SCORES.items()))) == pytest.approx(vtab_means(SCORES))


def test_the_table_has_all_tasks_and_both_means():
    lines = [line.rsplit(maxsplit=1) for line in vtab_table(SCORES).splitlines()]
    table = {name: float(number) for name, number in lines}
    assert len(lines) == 19 + 3 + 2
    assert table.items() >= SCORES.items()
    assert (table["mean of tasks"], table["mean of groups"]) == (69.47, 73.33)
    assert list(table)[7] == "Natural"


def test_unknown_tasks_are_refused():
    with pytest.raises(ConfigError, match=r"no task 'cifar100'; nearest: 'cifar'"):
        vtab_means({**SCORES, "cifar100": 1.0})


def test_missing_tasks_are_named():
    some = {name: score for name, score in SCORES.items() if name not in ("kitti", "dtd")}
    with pytest.raises(ConfigError, match=r"2 of 19 tasks have no score, .*: dtd, kitti$"):
        vtab_means(some)
    with pytest.raises(ConfigError, match="19 of 19 tasks have no score"):
        vtab_table({})
