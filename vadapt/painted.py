"""A sweep over plans of a backbone, and what is written of it: a table, pictures, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vadapt import painters, plots
from vadapt.drawing import save_png
from vadapt.errors import ConfigError
from vadapt.metrics.layers import Groups, groups, normalised
from vadapt.nn import plans
from vadapt.nn.plans import Plan, spell
from vadapt.painters import Examples, Scores

SEEDS = 10  # of shuffles
_HARMFUL = 0.05  # of the score, of a block whose loss sets it apart from the middle
PROTOCOLS = {
    "P0": "heads of the unchanged model",
    "P1": "heads fitted under the plan",
    "P2": "the model trained under the plan, then P1",
}


@dataclass
class Row:
    """A plan, or several shuffles of one kind, and what was measured of it."""

    name: str
    plans: list[Plan]
    middle: int | None  # blocks that it affects, of variants of a middle
    latency: dict[int, float] = field(default_factory=dict)  # in milliseconds, by batch
    # By protocol and task, over seeds of the data and shuffles: mean and deviation; also "median"
    # of the tasks, 0 at chance and 1 for the unchanged model.
    scores: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    best: bool = False  # no other is as fast and better

    @property
    def text(self) -> str:
        """The plan as configs have it."""
        return spell(self.plans[0]) if len(self.plans) == 1 else self.name


def variants(depth: int, loops: int = 3) -> list[Row]:
    """All plans of a backbone that differ, the unchanged one first."""
    rows = [Row("baseline", [plans.baseline(depth)], 0)]
    for name in ("skip", "pairs", "parallel", "loop_parallel", "reverse", "random",
                 "middle_repeat"):  # fmt: skip
        for start in range((depth - 1) // 2, -1, -1):
            said = f"{name}:{start}"
            if name == "random":
                made = [plans.random(depth, start, seed) for seed in range(SEEDS)]
            elif name == "loop_parallel":
                made, said = [plans.loop_parallel(depth, start, loops)], f"{said},{loops}"
            else:
                made = [plans.read(said, depth)]
            rows.append(Row(said, made, len(plans.middle(depth, start))))
    rows += [Row(f"skip_one:{i}", [plans.skip_one(depth, i)], None) for i in range(depth)]
    rows += [Row(f"switch:{i}", [plans.switch(depth, i)], None) for i in range(depth - 1)]
    # A middle of one block is parallel, reversed and shuffled as it is.
    whole = spell(plans.baseline(depth))
    alone = [all(_plain(plan) == whole for plan in row.plans) for row in rows]
    return [row for row, same in zip(rows, alone, strict=True) if row is rows[0] or not same]


def _plain(plan: Plan) -> str:
    """The text of a plan, with groups of one block that runs once as that block."""
    steps = [s.blocks[0] if not isinstance(s, int) and len(s.blocks) * s.loops == 1 else s
             for s in plan]  # fmt: skip
    return spell(steps)


class Sweep:
    """Scores of plans on some draws of data, each plan seen once a draw.

    Args:
        draws: the examples of each task, by seed of the data.
        data: `mean` and `std` of the pixels.
    """

    def __init__(self, backbone: Any, draws: Sequence[Mapping[str, Examples]], data: Any):
        self.backbone, self.draws, self.data = backbone, draws, data
        whole = plans.baseline(backbone.depth)
        self.whole = [painters.see(backbone, whole, draw, data) for draw in draws]
        self.heads = [painters.fit_heads(*pair) for pair in zip(self.whole, draws, strict=True)]
        self.chances = [painters.chance(draw) for draw in draws]
        self.full = [
            painters.score(seen, heads, seen, draw)
            for seen, heads, draw in zip(self.whole, self.heads, draws, strict=True)
        ]
        self._known: dict[str, list[dict[str, Scores]]] = {}

    def measure(self, row: Row) -> None:
        """Fill in a row's scores under P0 and P1."""
        found = [draw for plan in row.plans for draw in self.scores(plan)]
        for protocol in ("P0", "P1"):
            row.scores[protocol] = _summary([each[protocol] for each in found])

    def scores(self, plan: Plan) -> list[dict[str, Scores]]:
        """Scores by protocol, of each draw of the data."""
        key = spell(plan)
        if key not in self._known:
            draws = enumerate(self.draws)
            self._known[key] = [self._score(self.backbone, plan, i, draw) for i, draw in draws]
        return self._known[key]

    def healed(self, row: Row, backbone: Any) -> None:
        """Fill in a row's scores under P2, of a backbone that was trained under its plan."""
        plan = backbone.plan
        found = [self._score(backbone, plan, i, draw)["P1"] for i, draw in enumerate(self.draws)]
        row.scores["P2"] = _summary(found)

    def _score(
        self, backbone: Any, plan: Plan, number: int, draw: Mapping[str, Examples]
    ) -> dict[str, Scores]:
        seen = painters.see(backbone, plan, draw, self.data)
        found = {
            "P0": painters.score(self.whole[number], self.heads[number], seen, draw),
            "P1": painters.score(seen, painters.fit_heads(seen, draw), seen, draw),
        }
        low, high = self.chances[number], self.full[number]
        tasks = [task for task in high if high[task] > low[task]]
        if not tasks:
            raise ConfigError(
                f"the unchanged model, {high}, is nowhere better than chance, {low}: plans cannot "
                "be compared; give it weights, or more images with --train and --test"
            )
        for scores in found.values():
            each = [np.asarray([one[task] for task in tasks]) for one in (scores, low, high)]
            scores["median"] = float(np.median(normalised(each[0], each[1], each[2])))
        return found

    def drop_list(self, number: int, tick: Callable[[], None] = lambda: None) -> list[int]:
        """So many blocks in the order in which they are best left out, by scores under P1."""
        left = list(plans.baseline(self.backbone.depth))
        gone: list[int] = []
        for _ in range(number):
            kept = {}
            for block in left:
                each = self.scores([i for i in left if i != block])
                kept[block] = float(np.mean([one["P1"]["median"] for one in each]))
                tick()
            gone.append(max(kept, key=lambda block: kept[block]))
            left.remove(gone[-1])
        return gone


def _summary(found: Sequence[Scores]) -> dict[str, tuple[float, float]]:
    return {
        task: (float(np.mean([x[task] for x in found])), float(np.std([x[task] for x in found])))
        for task in found[0]
    }


def alike_first(matrix: Float[np.ndarray, "t t"]) -> list[int]:
    """All blocks, those first whose output is most like what they take; nothing is evaluated."""
    change = 1 - np.diagonal(np.asarray(matrix), 1)
    return [int(i) for i in np.argsort(change, kind="stable")]


def mark_best(rows: Sequence[Row], batch: int) -> None:
    """Mark the rows that no other is at least as fast as and better, by P1."""
    points = [(row.latency[batch], -row.scores["P1"]["median"][0]) for row in rows]
    for row, (t, s) in zip(rows, points, strict=True):
        row.best = not any(a <= t and b <= s and (a, b) != (t, s) for a, b in points)


def ends_by_score(rows: Sequence[Row]) -> tuple[int, int]:
    """How many blocks at either end cost more than 5 points of the score when left out."""
    costs = [1 - row.scores["P1"]["median"][0] for row in rows if row.name.startswith("skip_one:")]
    mild = np.asarray([cost <= _HARMFUL for cost in costs])
    if not mild.any():
        return len(mild), 0
    return int(mild.argmax()), int(mild[::-1].argmax())


# What is written.


def table(rows: Sequence[Row]) -> str:
    """All rows in Markdown, which terminals can show as well."""
    batches = list(rows[0].latency)
    protocols = [name for name in PROTOCOLS if any(name in row.scores for row in rows)]
    tasks = {name: list(next(r.scores[name] for r in rows if name in r.scores))
             for name in protocols}  # fmt: skip
    head = ["", "plan", "M", "in a row", "runs", *(f"ms, batch {batch}" for batch in batches)]
    head += [f"{name} {task}" for name in protocols for task in tasks[name]]
    lines = [head]
    for row in rows:
        plan = row.plans[0]
        shown = row.name if row.text in (row.name, "") else f"{row.name} = {row.text}"
        line = ["*" if row.best else "", shown, "" if row.middle is None else str(row.middle)]
        line += [str(plans.longest(plan)), str(plans.evaluations(plan))]
        line += [f"{row.latency[batch]:.2f}" for batch in batches]
        for name in protocols:
            line += [_cell(row.scores[name][x]) if name in row.scores else "" for x in tasks[name]]
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * max(width, 1) for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{x:{w}}" for x, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _cell(value: tuple[float, float]) -> str:
    mean, deviation = value
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation > 5e-4 else "")


def draw(rows: Sequence[Row], matrices: Mapping[str, np.ndarray], out: Path) -> dict[str, str]:
    """Write pictures; returns their file names with what they show."""
    found = {}
    titles = {
        "flattened": "Cosine of an image's states before block 0 and after each",
        "tokens": "Cosine of patches' states, without their mean",
    }
    for name, matrix in matrices.items():
        ends, last = groups(matrix), len(matrix) - 1
        marks = sorted({ends.beginning + 1, last + 1 - ends.ending} - {0, last + 1, 1})
        names = ["in", *map(str, range(last))]
        save_png(out / f"{name}.png", plots.draw_matrix(matrix, names, names, titles[name], marks))
        found[f"{name}.png"] = titles[name]
    for protocol in PROTOCOLS:
        curves = _curves(rows, protocol)
        if curves:
            title = f"{protocol}: {PROTOCOLS[protocol]}"
            picture = plots.draw_curves(
                curves, title, "affected blocks (M)",
                "median of the tasks' scores: 0 is chance, 1 the unchanged model",
            )  # fmt: skip
            save_png(out / f"{protocol}.png", picture)
            found[f"{protocol}.png"] = title
    return found


def _curves(rows: Sequence[Row], protocol: str) -> dict[str, plots.Curve]:
    points: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        if row.middle is not None and protocol in row.scores and row.name != "baseline":
            name = row.name.partition(":")[0]
            points.setdefault(name, []).append((row.middle, *row.scores[protocol]["median"]))
    return {name: plots.Curve(*zip(*sorted(each), strict=True)) for name, each in points.items()}


def report(
    title: str,
    rows: Sequence[Row],
    matrices: Mapping[str, np.ndarray],
    notes: Sequence[str],
    out: Path,
) -> None:
    """Write `report.md`, `report.json` and pictures into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(rows, matrices, out)
    found = {name: groups(matrix) for name, matrix in matrices.items()}
    by_score = ends_by_score(rows)
    lines = [
        f"# {title}", "", *notes, "",
        "Scores are percents: kNN and linear top-1 (knn, labels), mean IoU of patches (dense), and "
        "the median of the tasks, with 0 at chance and 100 for the unchanged model. "
        + " ".join(f"{name}: {what}." for name, what in PROTOCOLS.items()),
        "Plans that equal the baseline (a middle of one block) are left out; `*`: no other is as "
        "fast (at the first batch) and better (P1). Shuffles: mean and deviation of "
        f"{SEEDS} seeds.", "", table(rows), "",
        "## Groups", "",
        "| by | blocks at the beginning | at the end | threshold |", "|---|---|---|---|",
        *(f"| {name} states | {each.beginning} | {each.ending} | {each.threshold:.3f} |"
          for name, each in found.items()),
        f"| leaving a block out | {by_score[0]} | {by_score[1]} | 5 points of P1 |", "",
        "Blocks in the order in which they may be left out, by what they change (one minus the "
        f"cosine): {', '.join(map(str, alike_first(matrices['flattened'])))}.", "",
        *(f"![{what}]({name})\n" for name, what in pictures.items()),
    ]  # fmt: skip
    (out / "report.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    content = {
        "title": title,
        "notes": list(notes),
        "rows": [{**asdict(row), "plans": [spell(p) for p in row.plans]} for row in rows],
        "similarity": {name: matrix.tolist() for name, matrix in matrices.items()},
        "groups": {**{k: g._asdict() for k, g in found.items()},
                   "skip_one": Groups(*by_score, _HARMFUL)._asdict()},
    }  # fmt: skip
    (out / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
