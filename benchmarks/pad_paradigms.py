"""The paper's paradigms beside one another, on scenes: `python -m benchmarks.pad_paradigms`.

Every paradigm starts from the shipped backbone (pre-trained on visible scenes), sees the same
number of infrared images, and is judged by a linear probe of its patch features on infrared scenes,
and again on visible ones: what it learnt, and what it forgot. About three minutes a run on two
cores; runs that a results file already holds are not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from configs import mae_scenes, pad_milan_msip, pad_msip
from vadapt.tasks import make_task
from vadapt.tasks.probe import SceneProbe
from vadapt.training.loop import fit

# Title -> config module, argument, changes.
PARADIGMS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "frozen": (pad_msip, "scenes,frozen", {}),
    "continual full": (pad_msip, "scenes,full", {}),
    "continual full, layer decay": (pad_msip, "scenes,full_layer_decay", {}),
    "adapter, fixed scale": (pad_msip, "scenes,adapter_fixed_scale", {}),
    "PAD": (pad_msip, "scenes", {}),
    "PAD, RoI crop": (pad_msip, "scenes", {"data.roi_probability": 0.85}),
    "PAD with MILAN": (pad_milan_msip, "scenes", {}),
}


def measure(title: str, seed: int, steps: int | None) -> dict[str, Any]:
    """The two scores of one run."""
    module, argument, changes = PARADIGMS[title]
    config = module.get_config(argument)
    config.update_from_flattened_dict({**changes, "seed": seed})
    if steps and config.total_steps:
        config.total_steps = steps
    visible = mae_scenes.get_config()
    visible.eval.probe_scenes = config.eval.probe_scenes
    with tempfile.TemporaryDirectory() as workdir:
        outcome = fit(make_task(config), config, workdir)
    if not outcome.finished:
        raise SystemExit("stopped by a signal; the same command does what is left")
    backbone = outcome.model.backbone
    return {
        "paradigm": title,
        "seed": seed,
        "steps": outcome.steps,
        "trained": outcome.trainable_parameters,
        "infrared": SceneProbe(config)(backbone)["probe"],
        "visible": SceneProbe(visible)(backbone)["probe"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and deviation over seeds, as Markdown."""
    lines = ["| paradigm | seeds | steps | infrared | visible |", "|---|---|---|---|---|"]
    for title in PARADIGMS:
        runs = [row for row in rows if row["paradigm"] == title]
        if not runs:
            continue
        cells = []
        for view in ("infrared", "visible"):
            scores = np.array([run[view] for run in runs])
            cells.append(f"{scores.mean():.4f} ± {scores.std():.4f}")
        lines.append(f"| {title} | {len(runs)} | {runs[0]['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is not measured yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the config's")
    parser.add_argument("--only", nargs="+", choices=PARADIGMS, default=list(PARADIGMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/pad_paradigms.jsonl"))
    options = parser.parse_args()
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    options.runs.touch()
    rows = [json.loads(line) for line in options.runs.read_text().splitlines()]
    done = {(row["paradigm"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for title in options.only:
            if (title, seed) in done:
                continue
            print(f"--- {title}, seed {seed}", flush=True)
            rows.append(measure(title, seed, options.steps))
            with options.runs.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(table(rows), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
