"""Plans of pre-training for TPUs, as docs/plans.md: `python -m benchmarks.plans`.

Compiles, for machines that are not here: every pre-training for two topologies, with the
largest batch that fits; PAD's variants beside one another; PAD at a constant batch a chip on 4 to
256 chips. All figures are the compiler's, none was measured. Half an hour on two cores; plans that
a results file already holds are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from vadapt import plan

CONFIGS = ("mae_scenes", "pad_milan_msip", "pad_msip")
TOPOLOGIES = ("v5e:4x4", "v5e:16x16")
SCALING = ("v5e:2x2", "v5e:4x4", "v5e:8x8", "v5e:16x16")
A_CHIP = 128  # images, for the scaling

Plan = dict[str, Any]


class Store:
    """Plans by name, in a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        lines = (json.loads(line) for line in path.read_text().splitlines())
        self.plans = {line["name"]: line for line in lines}

    def get(self, name: str, make: Callable[[], Plan]) -> Plan:
        """The plan of that name, made if it is not there yet."""
        if name not in self.plans:
            print(f"--- {name}", flush=True)
            self.plans[name] = {"name": name, **make()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.plans[name]) + "\n")
        return self.plans[name]


def config_of(name: str) -> Any:
    """A config as it is run without arguments."""
    return importlib.import_module(f"vadapt.configs.{name}").get_config()


def of_every_config(store: Store) -> str:
    """A table: every pre-training on both topologies."""
    rows = [
        "| config | topology | batch | a chip | memory | TFLOP | HBM GB | at least | bound by | "
        "sent MB | trained | largest batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in CONFIGS:
        for topology in TOPOLOGIES:
            config = config_of(name)
            # The largest batch a chip is the same on any number of chips: searched for once.
            found = store.get(
                f"{name} on {topology}",
                lambda config=config, topology=topology: planned(
                    config, topology, search=topology == TOPOLOGIES[0]
                ),
            )
            chips = found["chips"]
            most = store.plans[f"{name} on {TOPOLOGIES[0]}"]
            largest = most["largest_batch"] // most["chips"] * chips
            cells = [name, topology, found["batch"], f"{found['batch'] / chips:g}"]
            rows.append(row([*cells, *figures(found), largest]))
    return "\n".join(rows)


def planned(config: Any, topology: str, *, search: bool) -> Plan:
    """A plan, with the largest batch that fits if that is asked for."""
    found = plan.plan(config, topology)
    if search:
        found["largest_batch"] = plan.largest_batch(config, found)
    return found


def of_variants(store: Store) -> str:
    """A table: PAD as published, one thing changed at a time."""
    config = config_of("pad_msip")
    rows = [
        "| | memory | TFLOP | HBM GB | at least | bound by | sent MB | trained |",
        "|---|---|---|---|---|---|---|---|",
        row(["as configured", *figures(store.plans[f"pad_msip on {TOPOLOGIES[0]}"])]),
    ]
    for title, other in plan.variants(config):
        found = store.get(f"pad_msip, {title}", lambda other=other: plan.plan(other, TOPOLOGIES[0]))
        rows.append(row([title, *figures(found)]))
    return "\n".join(rows)


def of_sizes(store: Store) -> str:
    """A table: PAD with a constant batch a chip on more and more chips."""
    rows = [
        "| topology | chips | batch | memory | TFLOP | HBM GB | at least | bound by | sent MB | "
        "trained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for topology in SCALING:
        config = config_of("pad_msip")
        config.parallel.step.accumulate = 1
        sides = [int(side) for side in topology.partition(":")[2].split("x")]
        config.batch_size = A_CHIP * sides[0] * sides[1]
        found = store.get(
            f"scaling on {topology}", lambda c=config, topology=topology: plan.plan(c, topology)
        )
        rows.append(row([topology, found["chips"], found["batch"], *figures(found)]))
    return "\n".join(rows)


def figures(found: Plan) -> list[str]:
    """Memory to trained size, as cells."""
    trained = f"{found['trainable_bytes'] / 2**20:.1f} MiB"
    if not found["fits"]:
        return ["does not fit", *[""] * 5, trained]
    return [
        f"{found['memory_bytes']['total'] / 2**30:.2f} GiB",
        f"{found['flops'] / 1e12:.3g}",
        f"{found['hbm_bytes'] / 1e9:.3g}",
        f"{found['roofline_seconds'] * 1e3:.3g} ms",
        found["bound"],
        f"{sum(item['bytes'] for item in found['collectives']) / 1e6:.1f}",
        trained,
    ]


def row(cells: list[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def page(store: Store) -> str:
    """docs/plans.md."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "libtpu")
    )
    every, variants, sizes = of_every_config(store), of_variants(store), of_sizes(store)
    return f"""# Plans

What a training step takes on TPUs, as libtpu compiles it. **Nothing here was
measured on a TPU**: the figures are the compiler's, of one chip and one step. Made by
`python -m benchmarks.plans` ({versions}, {datetime.date.today()}); for a config and a topology of
your own, `python -m vadapt.plan --config=... --topology=... [--compare]`.

- *memory*: arguments and temporaries; a v5e chip lets a program use 15.75 GiB.
- *TFLOP*: as XLA counts, loops at their full length. *HBM GB*: what instructions read and write
  outside of the chip's own memory, each operand in full. *sent*: results of all collectives.
- *at least*: the longest of FLOPs, HBM bytes and sent bytes, each at the chip's published peak
  (197 TFLOP/s, 819 GB/s, 200 GB/s). A real step takes longer.
- *largest batch*: found by compiling, to about a twentieth; searched for on {TOPOLOGIES[0]} and
  scaled by the chips.

## Pre-training

Of other systems: [rein.md](rein.md#on-a-tpu), [multilabel.md](multilabel.md#on-a-tpu).

{every}

## PAD, one thing changed at a time

On {TOPOLOGIES[0]}, the config's batch of 4096, 256 a chip.

{variants}

Every variant of PAD is bound by HBM traffic, so that the cheapest way into the memory is the one
that moves least: micro-batches (`config.parallel.step.accumulate`). Two are enough for 16 chips and
are the config's; four move less still, as more of each stays on the chip, and are worth a try
there, but leave 4 images a chip and part on 256 chips. `remat=dots` halves the memory for 2 % more
FLOPs, `remat=blocks` takes least. Gradients are added up over chips once, after the last part.

## PAD on more chips

{A_CHIP} images a chip, in one part. What is sent is the gradients of what trains (in bfloat16: XLA
adds them up before it converts), whatever the number of chips.

{sizes}
"""


def main() -> None:
    """Makes the plans that are not made yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/plans.md"))
    parser.add_argument("--plans", type=Path, default=Path("runs/plans.jsonl"))
    options = parser.parse_args()
    text = page(Store(options.plans))
    options.out.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
