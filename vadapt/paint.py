"""Compares plans in which a backbone's blocks run otherwise: what each costs, and what it keeps.

    python -m vadapt.paint --config=linear_dinov2:scenes --out=runs/painted

`vadapt paint` does the same. The backbone is the recipe's, with its method; with --workdir that of
a run, as it was trained. Blocks are left out, repeated, turned round, shuffled, and run side by
side; OUT gets `report.md` (latency, scores, groups of blocks), `report.json` and pictures. With

    --heal=STEPS      plans that leave blocks out are also trained for so many steps by the recipe's
                      task, with a method, before they are scored (P2); see --heal_with, --healed
    --leave_out=N     a drop list: N blocks that go first; with --export=FILE.safetensors also the
                      backbone without them, for `vadapt.create` and recipes

Scenes give labels and masks; other data what they have. docs/painters.md says how to read it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from vadapt import adapters, models, painted, painters, system
from vadapt.command_line import CONFIG, start
from vadapt.data.progress import progress_bar
from vadapt.errors import ConfigError
from vadapt.nn import plans
from vadapt.painted import Row, Sweep
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.trained import load_run
from vadapt.weights.dropped import save_dropped

_ALIKE = 256  # images that states are compared on, at most


def backbone_of(config: Any, workdir: str = "") -> Any:
    """The backbone of a recipe with its method, or of a run of it as it was trained; no plan.

    Raises:
        ConfigError: it has no blocks that plans could run otherwise.
    """
    if workdir:
        model = load_run(workdir).model
        backbone: Any = getattr(model, "backbone", model)
    else:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.model.plan = ""
            config.model.allow_unexpected = (*config.model.allow_unexpected, *models.BESIDE)
        backbone = system.build(config, options=make_task(config).backbone_options)
    backbone.follow("")
    if backbone.counts != "blocks":
        backbone.follow("baseline")  # which says why not
    return backbone


def paint(
    config: Any,
    out: Path,
    *,
    workdir: str = "",
    numbers: tuple[int, int] = (1024, 512),
    seeds: int = 1,
    batches: tuple[int, ...] = (1, 32),
    times: int = 20,
    heal: int = 0,
    heal_with: str = "",
    healed: tuple[str, ...] = (),
    leave_out: int = 0,
    by: str = "score",
    export: str = "",
) -> list[Row]:
    """Measures all plans of a recipe's backbone and writes the report; the flags say what is what.

    Raises:
        ConfigError: no such plan, block or data; or see `backbone_of`.
    """
    if export and not leave_out:
        raise ConfigError("--export writes a backbone without --leave_out=N blocks: give N")
    backbone = backbone_of(config, workdir)
    depth = backbone.depth
    if not 0 <= leave_out < depth:
        raise ConfigError(f"--leave_out={leave_out} of {depth} blocks; it may be 0 to {depth - 1}")
    rows = painted.variants(depth)
    to_heal = _rows_to_heal(rows, healed) if heal else []
    tried = sum(depth - i for i in range(leave_out)) if by == "score" else 0
    with progress_bar() as bar:
        total = seeds + len(rows) + tried
        task = bar.add_task("reading images", total=total)
        tick: Callable[[], None] = lambda: bar.advance(task)  # noqa: E731
        draws = []
        for seed in range(seeds):
            draws.append(painters.read_examples(config, backbone.patch_size, numbers, seed))
            tick()
        bar.update(task, description="scoring plans")
        sweep = Sweep(backbone, draws, config.data)
        for row in rows:
            sweep.measure(row)
            tick()
        bar.update(task, description="timing plans")
        _time(rows, backbone, tuple(config.data.image_size), batches, times)
        images = next(iter(draws[0].values())).train.images[:_ALIKE]
        matrices = painters.likeness(backbone, images, config.data)
        bar.update(task, description="dropping blocks")
        gone = painted.alike_first(matrices["flattened"])[:leave_out]
        if by == "score":
            gone = sweep.drop_list(leave_out, tick)
    painted.mark_best(rows, batches[0])
    notes = _notes(config, backbone, workdir, numbers, seeds, times)
    if leave_out:
        notes.append(f"Left out first, by {by}: {', '.join(map(str, gone))}.")
    title = f"Plans of {config.model.backbone}"
    painted.report(title, rows, matrices, notes, out)  # which training could lose
    for row in to_heal:
        sweep.healed(row, _healed(config, row, heal, heal_with, out))
    if to_heal:
        notes.append(f"P2: {heal} steps of {heal_with or _first_method()!r} under the plan.")
        painted.report(title, rows, matrices, notes, out)
    if export:
        kept = [i for i in plans.baseline(depth) if i not in gone]
        backbone = adapters.fold(backbone, strict=True)
        backbone.follow(plans.spell(kept))
        save_dropped(export, backbone)
    return rows


def _notes(
    config: Any, backbone: Any, workdir: str, numbers: tuple[int, int], seeds: int, times: int
) -> list[str]:
    trained = f", trained in {workdir}" if workdir else f", weights {config.model.weights!r}"
    draws = f", mean and deviation of {seeds} draws" if seeds > 1 else ""
    return [
        f"{type(backbone).__name__} of {backbone.depth} blocks{trained}; data "
        f"{config.data.source!r}, {numbers[0]} images to fit on and {numbers[1]} to test on{draws}."
        f" Latency: median of {times} passes on {jax.devices()[0].device_kind}."
    ]


def _time(
    rows: list[Row],
    backbone: Any,
    image_size: tuple[int, int],
    batches: tuple[int, ...],
    times: int,
) -> None:
    """Fill in latencies, which are those of a plan's form: which blocks run takes no time."""
    known = {painters.form(row.plans[0]): row.plans[0] for row in rows}
    for batch in batches:
        found = painters.latencies(backbone, [*known.values()], image_size, batch, times)
        by_form = dict(zip(known, found, strict=True))
        for row in rows:
            row.latency[batch] = by_form[painters.form(row.plans[0])]


def _first_method() -> str:
    return next(iter(adapters.METHODS))


def _rows_to_heal(rows: list[Row], names: tuple[str, ...]) -> list[Row]:
    """The rows of these names; by default all that leave out a middle."""
    known = {row.name: row for row in rows}
    if unknown := [name for name in names if name not in known or len(known[name].plans) > 1]:
        raise ConfigError(f"--healed={unknown[0]}: expected some of {', '.join(known)}")
    return [known[name] for name in names] or [r for r in rows if r.name.startswith("skip:")]


def _healed(config: Any, row: Row, steps: int, method: str, out: Path) -> Any:
    """The backbone after a short run of the recipe's task under a plan, by the ordinary trainer."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.plan = row.name
        if config.method.name == "none":
            config.method = {"name": method or _first_method()}
        config.total_steps, config.baselines = steps, False
        config.eval.every = config.run.pictures_every = 0
        config.run.checkpoint_every = steps
    workdir = out / "healed" / row.name.replace(":", "_").replace(",", "_")
    if not run(config, workdir):
        raise ConfigError(f"training under {row.name} was stopped; the same command goes on")
    model = load_run(workdir).model
    return getattr(model, "backbone", model)


def _define_flags() -> None:
    flags.DEFINE_string("out", None, "Folder for the report.")
    flags.DEFINE_string("workdir", "", "A run whose backbone is taken, as it was trained.")
    flags.DEFINE_string("weights", None, "The backbone's weights; by default the recipe's.")
    flags.DEFINE_integer("train", 1024, "Images that heads are fitted on.", lower_bound=1)
    flags.DEFINE_integer("test", 512, "Images to test on.", lower_bound=1)
    flags.DEFINE_integer("seeds", 1, "Draws of images, for deviations.", lower_bound=1)
    flags.DEFINE_list("batches", ["1", "32"], "Batches that are timed.")
    flags.DEFINE_integer("times", 20, "Passes of which latency is the median.", lower_bound=1)
    flags.DEFINE_integer("heal", 0, "Steps of training under a plan; 0: none.", lower_bound=0)
    flags.DEFINE_string("heal_with", "", "Method of that, where the recipe has none.")
    flags.DEFINE_list("healed", [], "Plans to train under, as skip:2; by default all skips.")
    flags.DEFINE_integer("leave_out", 0, "Blocks of the drop list.", lower_bound=0)
    flags.DEFINE_enum(
        "by", "score", ["score", "similarity"], "What the drop list goes by: the score without a "
        "block, greedily, or how little a block changes, without evaluating."
    )  # fmt: skip
    flags.DEFINE_string("export", "", "A .safetensors file for the backbone without these blocks.")


def _follow(given: Any) -> None:
    config = CONFIG.value
    if given.weights is not None:
        config.model.weights = given.weights
    if not all(text.isdecimal() and int(text) for text in given.batches) or not given.batches:
        raise ConfigError(f"--batches={','.join(given.batches)}: expected numbers, such as 1,32")
    rows = paint(
        config,
        Path(given.out),
        workdir=given.workdir,
        numbers=(given.train, given.test),
        seeds=given.seeds,
        batches=tuple(map(int, given.batches)),
        times=given.times,
        heal=given.heal,
        heal_with=given.heal_with,
        healed=tuple(given.healed),
        leave_out=given.leave_out,
        by=given.by,
        export=given.export,
    )
    print(painted.table(rows))
    print(f"\n{Path(given.out) / 'report.md'}")
    if given.export:
        print(given.export)


if __name__ == "__main__":
    _define_flags()
    start(_follow, ["out"], "--out=DIR")
