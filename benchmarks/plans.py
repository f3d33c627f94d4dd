"""Plans of training for TPUs, as docs/plans.md: `python -m benchmarks.plans`.

Compiles, for machines that are not here, every recipe, beside what an earlier commit made of it,
and PAD's variants beside one another. All figures are the compiler's, none was measured. Two hours
on two cores; plans that the results file already holds are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.input_recipes import ROOT, earlier
from benchmarks.side_by_side import fill
from vadapt import plan

RECIPES = (
    *("mae_scenes", "pad_msip", "pad_milan_msip", "pad_soda", "pad_mfnet"),
    *("linear_dinov2", "rein_gta", "rein_cityscapes", "spm_ade20k", "spm_cityscapes"),
    *("gkgnet_coco:448", "gkgnet_voc", "vig_imagenet"),
)
TOPOLOGY = "v5e:4x4"

Plan = dict[str, Any]


class Store:
    """Plans by name, in a file of JSON lines.

    Args:
        makes: whether plans that are not there are made; else they are None.
    """

    def __init__(self, path: Path, *, makes: bool = True):
        self.path, self.makes = path, makes
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        lines = (json.loads(line) for line in path.read_text().splitlines())
        self.plans = {line["name"]: line for line in lines}

    def get(self, name: str, make: Callable[[], Plan]) -> Plan | None:
        """The plan of that name, made if it is not there yet."""
        if name not in self.plans and self.makes:
            print(f"--- {name}", flush=True)
            made = {"date": str(datetime.date.today()), "versions": versions()}
            self.plans[name] = {"name": name, **made, **make()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.plans[name]) + "\n")
        return self.plans.get(name)


def config_of(name: str) -> Any:
    """The config of a recipe, with the argument behind its colon if there is one."""
    module, _, argument = name.partition(":")
    return importlib.import_module(f"vadapt.configs.{module}").get_config(argument)


def versions() -> dict[str, str]:
    """Versions of what a plan depends on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "libtpu")}


def of_every_recipe(store: Store, before: str) -> str:
    """A table: every recipe, as an earlier commit's step and as it is now.

    Args:
        before: the commit; "" for what the store has of one.
    """
    rows = [
        "| recipe | a chip | memory, GiB | TFLOP | HBM GB | at least, ms | bound by | sent MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in RECIPES:
        now = store.get(name, lambda n=name: plan.plan(config_of(n), TOPOLOGY))
        then = store.plans.get(f"{name}, before")
        if before and not then:
            then = store.get(f"{name}, before", lambda n=name: plan_before(n, before))
        if not now:
            continue
        each = [brief(found) for found in (then, now) if found]
        cells = [" → ".join(dict.fromkeys(pair)) for pair in zip(*each, strict=True)]
        rows.append(row([name, f"{now['batch'] / now['chips']:g}", *cells]))
    return "\n".join(rows)


def plan_before(name: str, commit: str) -> Plan:
    """The plan of a recipe by the files of an earlier commit, in a process of its own."""
    code = (
        "import importlib, json, sys\n"
        "from vadapt import plan\n"
        "name, argument, topology = sys.argv[1:]\n"
        "config = importlib.import_module(f'vadapt.configs.{name}').get_config(argument)\n"
        "print(json.dumps(plan.plan(config, topology)))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        tree = earlier(commit, Path(folder))
        module, _, argument = name.partition(":")
        command = [sys.executable, "-c", code, module, argument, TOPOLOGY]
        variables = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(
            command, cwd=tree, env=variables, check=True, stdout=subprocess.PIPE, text=True
        )
    return {"commit": commit, **json.loads(done.stdout.splitlines()[-1])}


def brief(found: Plan) -> list[str]:
    """Memory to what is sent, as cells of the table of recipes."""
    if not found["fits"]:
        return ["does not fit", *["-"] * 5]
    return [
        f"{found['memory_bytes']['total'] / 2**30:.2f}",
        f"{found['flops'] / 1e12:.3g}",
        f"{found['hbm_bytes'] / 1e9:.3g}",
        f"{found['roofline_seconds'] * 1e3:.3g}",
        found["bound"],
        f"{sum(item['bytes'] for item in found['collectives']) / 1e6:.1f}",
    ]


def of_variants(store: Store) -> str:
    """A table: PAD as published, one thing changed at a time."""
    rows = [
        "| | memory, GiB | TFLOP | HBM GB | at least, ms | bound by | sent MB | trained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    config = config_of("pad_msip")
    scanned = config_of("pad_msip")
    scanned.parallel.step.scan = True
    variants = (("", config), *plan.variants(config), ("scan over depth", scanned))
    for title, other in variants:
        name = f"pad_msip, {title}" if title else "pad_msip"
        found = store.get(name, lambda other=other: plan.plan(other, TOPOLOGY))
        if found:
            rows.append(row([title or "as configured", *figures(found)]))
    return "\n".join(rows)


def figures(found: Plan) -> list[str]:
    """Memory to trained size, as cells of the table of variants."""
    return [*brief(found), f"{found['trainable_bytes'] / 2**20:.1f} MiB"]


def row(cells: list[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    """Makes the plans that are not made yet, and the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=ROOT / "docs/plans.md")
    parser.add_argument("--plans", type=Path, default=ROOT / "benchmarks/results/plans.jsonl")
    parser.add_argument("--before", default="", help="a commit to compare every recipe with")
    parser.add_argument("--kept", action="store_true", help="tables of what is kept; none is made")
    options = parser.parse_args()
    store = Store(options.plans, makes=not options.kept)
    recipes = of_every_recipe(store, options.before)
    tables = {"recipes": recipes, "variants": of_variants(store)}
    page = fill(options.page.read_text(encoding="utf-8"), tables)
    options.page.write_text(page, encoding="utf-8")
    print(f"wrote {options.page}")


if __name__ == "__main__":
    main()
