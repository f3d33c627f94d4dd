"""Compiles a config's train step for TPUs that are not here, and says what it will take.

    python -m vadapt.plan --config=configs/pad_msip.py --topology=v5e:4x4

The step is the one that training runs, compiled by libtpu (`pip install 'vadapt[tpu]'`, on any
Linux machine). All figures are the compiler's, of one chip and one step; nothing is executed.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags
from flax import nnx

from vadapt import sharding
from vadapt.command_line import start
from vadapt.partition import human_bytes, num_bytes, split
from vadapt.quantization import INT8, has_qwix
from vadapt.remat import POLICIES
from vadapt.run import full_training
from vadapt.runtime import chips
from vadapt.runtime.flops import matmul_flops
from vadapt.runtime.hlo import Module
from vadapt.tasks import TASKS, make_task
from vadapt.training.former_settings import modernize
from vadapt.training.program import Program, make_program
from vadapt.training.settings import check_settings

Plan = dict[str, Any]
GIB = 2**30
_TRIES, _GROWTH = 5, 4  # compilations of a search, and by how much the batch grows in each


def plan(config: Any, topology: str, *, slices: int = 1) -> Plan:
    """Return what one step of `config` takes on each chip of a TPU topology.

    Args:
        topology: such as "v5e:4x4", see `vadapt.runtime.chips`.
        slices: as many of them.

    Returns:
        `topology`, `slices`, `chips`, `batch` (global, see `shared_batch`), `fits`; and of
        one chip: `memory_bytes` {arguments, outputs, temporaries, total, available} (outputs
        mostly lie where arguments did, which `total` counts once), `flops`, `hbm_bytes`,
        `roofline_seconds` (the longest of the next three), `bound` ("compute", "memory" or
        "network"), `compute_seconds`, `memory_seconds`, `network_seconds`, `collectives`
        [{kind, bytes, axis, count}], `trainable_bytes`, `compile_seconds`. A step that does not
        fit has `fits` False, `needs` (the compiler's word), and no figures of a program.

    Raises:
        ConfigError: libtpu is missing, or topology and config do not go together.
    """
    traced, program = trace(config, topology, slices=slices)
    shape = dict(program.mesh.shape)
    result: Plan = {
        "topology": topology,
        "slices": slices,
        "chips": program.mesh.size,
        "batch": shared_batch(config, program.mesh.size),
        "trainable_bytes": num_bytes(program.state.trainable),
        "frozen_bytes": num_bytes(program.frozen),
    }
    if slices > 1:
        shape = {"slice": slices, **shape, "data": shape["data"] // slices}
    began = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        # A kernel that takes more than the chip's own memory is wrong, not the batch too large.
        if "RESOURCE_EXHAUSTED" not in str(error) or "space vmem" in str(error):
            raise
        return {**result, "fits": False, "needs": _needs(str(error))}
    seconds = time.perf_counter() - began
    return {
        **result,
        "fits": True,
        **figures(compiled, traced.jaxpr.jaxpr, shape, chips.chip(topology)),
        "compile_seconds": round(seconds, 1),
    }


def trace(config: Any, topology: str, *, slices: int = 1) -> tuple[Any, Program]:
    """The step of `config` traced for a TPU topology, and the program it belongs to.

    Raises:
        ConfigError: libtpu is missing, or topology and config do not go together.
    """
    config = copy.deepcopy(config)
    modernize(config)
    check_settings(config, TASKS[config.task.name])
    mesh = sharding.make_mesh(config.parallel.fsdp, chips.devices(topology, slices))
    config.batch_size = shared_batch(config, mesh.size)
    task = make_task(config)
    parts = split(nnx.eval_shape(lambda: task.build(pretrained=False)), config.trainable)
    program = make_program(parts, task, config, mesh)
    return program.trace(task.batch_shapes()), program


def shared_batch(config: Any, chips: int) -> int:
    """The batch of `config`, or the next that its micro-batches and chips can share evenly."""
    grain = chips * config.parallel.step.accumulate
    return -(-config.batch_size // grain) * grain


def figures(compiled: Any, jaxpr: Any, mesh: Mapping[str, int], chip: chips.Chip) -> Plan:
    """Memory, work and traffic of a compiled program on one chip; see `plan`.

    Args:
        jaxpr: the same program, traced.
        mesh: axis names and sizes in the order of its devices, slices first if there are several.
    """
    memory, module = compiled.memory_analysis(), Module(compiled.as_text())
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    # XLA counts what is in a loop once.
    once = matmul_flops(jaxpr, unroll=False)
    flops = compiled.cost_analysis()["flops"] * (matmul_flops(jaxpr) / once if once else 1.0)
    moved = module.memory_traffic()
    groups: dict[tuple[str, str], list[int]] = {}
    for transfer in module.collectives(mesh):
        groups.setdefault((transfer.kind, transfer.axis), []).append(transfer.bytes)
    # A ring sends everything twice to reduce it for all; half of that for the other kinds. What
    # goes from slice to slice takes another network, whose speed is a matter of the machines.
    sent = sum(
        sum(sizes) * (2 if kind == "all-reduce" else 1)
        for (kind, axis), sizes in groups.items()
        if "slice" not in axis
    )
    seconds = {
        "compute": flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "network": sent / chip.network,
    }
    bound = max(seconds, key=lambda side: seconds[side])
    return {
        "memory_bytes": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "total": total,
            "available": chip.memory,
        },
        "flops": flops,
        "hbm_bytes": moved,
        "roofline_seconds": seconds[bound],
        "bound": bound,
        **{f"{side}_seconds": value for side, value in seconds.items()},
        "collectives": [
            {"kind": kind, "axis": axis, "bytes": sum(sizes), "count": len(sizes)}
            for (kind, axis), sizes in groups.items()
        ],
    }


def largest_batch(config: Any, first: Plan, *, say: Callable[[str], None] = print) -> int:
    """The largest global batch whose step compiles within the memory, to about a twentieth.

    Args:
        first: the plan of `config` as it is, to start from.
        say: is told of every compilation.
    """
    unit = first["chips"] * config.parallel.step.accumulate
    best, failed, known = 0, math.inf, first
    for _ in range(_TRIES):
        if known["fits"]:
            best = known["batch"]
            memory = known["memory_bytes"]
            # Temporaries grow with the batch, or somewhat slower.
            guess = best * (memory["available"] - memory["arguments"]) / memory["temporaries"]
            guess = min(guess, best * _GROWTH)
        else:
            failed = known["batch"]
            guess = (best + failed) / 2
        guess = min(guess, (best + failed) / 2)
        grain = 8 * unit if guess >= 64 * unit else unit
        guess = int(guess // grain * grain)
        if guess <= best + best // 20:
            break
        tried = copy.deepcopy(config)
        tried.batch_size = guess
        known = plan(tried, first["topology"], slices=first["slices"])
        say(f"  batch {guess}: " + (_memory(known) if known["fits"] else "does not fit"))
    best = known["batch"] if known["fits"] else best
    say(f"largest batch that fits: {best} ({best // first['chips']} a chip)")
    return best


def variants(config: Any) -> Iterator[tuple[str, Any]]:
    """The config with one thing changed at a time, each with a title."""

    def changed(**settings: Any) -> Any:
        other = copy.deepcopy(config)
        other.update_from_flattened_dict(settings)
        return other

    parallel = config.parallel
    if config.method.name != "none":
        yield "full training", full_training(config)
    for dtype in ("float32", "bfloat16", INT8):
        if dtype != parallel.frozen_dtype and (dtype != INT8 or has_qwix()):
            yield f"frozen in {dtype}", changed(**{"parallel.frozen_dtype": dtype})
    for policy in POLICIES:
        if policy != parallel.step.remat:
            yield f"remat {policy}", changed(**{"parallel.step.remat": policy})
    more = parallel.step.accumulate * 2
    yield f"accumulate {more}", changed(**{"parallel.step.accumulate": more})
    sharded = -1 if parallel.fsdp == 1 else 1
    title = "frozen and optimizer over all chips" if sharded == -1 else "a copy on every chip"
    yield f"fsdp {sharded}: {title}", changed(**{"parallel.fsdp": sharded})


def compare(config: Any, first: Plan, *, say: Callable[[str], None] = print) -> dict[str, Plan]:
    """Plans of `variants`, printed beside that of the config itself."""
    found = {"as configured": first}
    for title, other in variants(config):
        say(f"  {title} ...")
        found[title] = plan(other, first["topology"], slices=first["slices"])
    say(comparison(found))
    return {title: result for title, result in found.items() if result is not first}


def table(found: Plan) -> str:
    """A plan for people, one line for each thing that it says."""
    chips = found["chips"]
    slices = f" x {found['slices']}" * (found["slices"] > 1)
    head = (
        f"{found['topology']}{slices}: {chips} chips, batch {found['batch']}, "
        f"{found['batch'] / chips:g} a chip; of one chip:"
    )
    rows = [
        ("trained", human_bytes(found["trainable_bytes"])),
        ("frozen", human_bytes(found["frozen_bytes"])),
    ]
    if not found["fits"]:
        return _rows(head, [*rows, ("memory", f"does not fit: {found['needs']}")])
    step = found["roofline_seconds"]
    rows += [
        ("memory", _memory(found)),
        ("work", f"{_si(found['flops'], 'FLOP')}, {_ms(found['compute_seconds'])} at its peak"),
        ("HBM", f"{_si(found['hbm_bytes'], 'B')}, {_ms(found['memory_seconds'])} at its peak"),
        ("network", f"{_sent(found)}, {_ms(found['network_seconds'])} at its peak"),
        ("step", f"at least {_ms(step)}, bound by {found['bound']}: at most "
         f"{found['batch'] / step:,.0f} images/s over all chips"),
        ("compiled", f"in {found['compile_seconds']:.0f} s"),
    ]  # fmt: skip
    rows += [
        ("", f"{item['count']} x {item['kind']} over {item['axis']}: {human_bytes(item['bytes'])}")
        for item in found["collectives"]
    ]
    return _rows(head, rows)


def comparison(found: dict[str, Plan]) -> str:
    """Several plans, a line each; all figures are of one chip."""
    head = ("", "memory", "TFLOP", "HBM GB", "sent MB", "at least", "bound by", "trained")
    lines: list[tuple[str, ...]] = [head]
    for title, one in found.items():
        figures = (
            (
                f"{one['memory_bytes']['total'] / GIB:.2f} GiB",
                f"{one['flops'] / 1e12:.3g}",
                f"{one['hbm_bytes'] / 1e9:.3g}",
                f"{sum(item['bytes'] for item in one['collectives']) / 1e6:.3g}",
                _ms(one["roofline_seconds"]),
                one["bound"],
            )
            if one["fits"]
            else ("too much", "", "", "", "", "")
        )
        lines.append((title, *figures, human_bytes(one["trainable_bytes"])))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        f"{line[0]:{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _rows(head: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([head, *(f"  {name:9} {text}" for name, text in rows)])


def _memory(found: Plan) -> str:
    memory = found["memory_bytes"]
    return (
        f"{memory['total'] / GIB:.2f} of {memory['available'] / GIB:.2f} GiB: "
        f"arguments {human_bytes(memory['arguments'])}, "
        f"temporaries {human_bytes(memory['temporaries'])}"
    )


def _sent(found: Plan) -> str:
    return human_bytes(sum(item["bytes"] for item in found["collectives"]))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _si(value: float, unit: str) -> str:
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def _needs(message: str) -> str:
    """The compiler's sentence about memory, out of a page."""
    found = re.search(r"Used \S+ of \S+ hbm|the total memory required.*? HBM \(\S+\)", message)
    return found[0] if found else message.strip().splitlines()[0]


def _define_flags() -> None:
    flags.DEFINE_string("topology", None, "Chips to compile for, such as v5e:4x4.")
    flags.DEFINE_integer("slices", 1, "As many slices of that topology.", lower_bound=1)
    flags.DEFINE_integer("batch", None, "Global batch; by default the config's.", lower_bound=1)
    flags.DEFINE_boolean(
        "search", False, "Also look for the largest batch that fits: up to five compilations more."
    )
    flags.DEFINE_boolean("compare", False, "Also compile variants, and print them side by side.")
    flags.DEFINE_string("out", None, "A JSON file to write the figures to.")


def _follow(given: Any) -> None:
    config = given.config
    if given.batch is not None:
        config.batch_size = given.batch
    print(f"compiling for {given.topology}, a minute or so for a ViT-B ...", flush=True)
    found = plan(config, given.topology, slices=given.slices)
    print(table(found), flush=True)
    say = functools.partial(print, flush=True)
    if given.search:
        found["largest_batch"] = largest_batch(config, found, say=say)
    if given.compare:
        found["variants"] = compare(config, found, say=say)
    if given.out:
        path = Path(given.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    # Nothing runs on an accelerator here, and what is attached to this machine may be busy.
    os.environ["JAX_PLATFORMS"] = "cpu"
    _define_flags()
    start(_follow, ["topology"], "--topology=v5e:4x4")
