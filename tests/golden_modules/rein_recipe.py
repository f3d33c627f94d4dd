"""Golden cases of Rein's recipe: rates over the steps, and what decays."""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays
from tests.golden_modules.programs import compiled
from vadapt.training.optimizers import OptimizerSettings, Treatment, treatments
from vadapt.training.schedules import warmup_polynomial
from vadapt.weights.families.dinov2 import DINOV2
from vadapt.weights.families.rein import REIN, with_rein

# vadapt's patterns for what the original finds by a part of its names.
PARTS = {
    "norm": r"head/(.*/)?(norms/\d+|post_norm)/.*",
    "query_embed": "head/query_embed",
    "level_embed": "head/level_embed",
    "learnable_tokens": r"adapter/(\d+/)?tokens(_[ab])?",
    "reins.scale": "adapter/scale",
    "pixel_decoder": "head/pixel_decoder/.*",
}
NORMS = r".*(norm|norms)(/.*|\d)"  # by what they are, whatever the original calls them


def schedule(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    *before, poly = config["schedulers"]
    if len(before) > 1:
        raise ValueError(f"{len(before)} schedulers before the last; vadapt has one warm-up")
    for linear in before:
        only(linear, type=("LinearLR",), begin=(0,))
    warmup, start = (before[0]["end"], before[0]["start_factor"]) if before else (0, 1.0)
    only(poly, type=("PolyLR",))
    same(poly, begin=warmup)
    same(config, at=np.asarray(inputs["iteration"]).tolist())
    if max(config["at"]) >= config["total"]:
        raise ValueError(f"rates at {config['at']} of {config['total']} steps")
    rate = warmup_polynomial(
        jnp.asarray(inputs["iteration"], jnp.float32),
        peak=config["base_lr"],
        end=poly["eta_min"],
        warmup=warmup,
        total=poly["end"],
        power=poly["power"],
        start=start,
    )
    return {"lr": rate}


def groups(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """How many names of each kind our rules call so; the file lists rates and decays by name."""
    table, optimized = with_rein(DINOV2), config["optimized"]
    names = optimized.names()
    low_rank = any("learnable_tokens_a" in name for name in names)
    same(config, reins_type="LoRAReins" if low_rank else "Reins")

    def path(name: str) -> str:
        found = table.find(name.removeprefix("backbone.")) or REIN.find(name)
        return found[0] if found else ""

    places = {name: path(name) for name in (*names, *config["frozen"])}
    trained = {
        name: place
        for name, place in places.items()
        if place.startswith(("adapter/", "neck/", "head/"))
    }
    found = optimizer_rules(config, sorted(trained.values()))
    wrong = {}
    for name, place in trained.items():
        rates = [config["lr"] * found[place].rate, config["weight_decay"] * found[place].decay]
        expected = optimized.get(name)
        if expected is None or not np.allclose(rates, expected, rtol=1e-9, atol=0.0):
            wrong[name] = (rates, expected)
    if wrong:
        raise LookupError(f"rates differ: {wrong}")
    return {
        "n_optimized": np.asarray(len(trained)),
        "n_frozen": np.asarray(len(places) - len(trained)),
    }


def optimizer_rules(config: Fields, paths: list[str]) -> dict[str, Treatment]:
    """How every path is treated, by vadapt's own rules.

    Of the original's keys the longest that is in a name decides, of equal ones the first by the
    alphabet; norms that no key names have a factor of decay of their own, all else decays.
    """
    keys = config["custom_keys"]
    unknown = sorted(set(keys.names()) - set(PARTS))
    if unknown:
        raise ValueError(f"custom_keys {unknown}; PARTS has no pattern for them")
    in_order = sorted(sorted(keys.names()), key=len, reverse=True)
    factors = {"rate": "lr_mult", "decay": "decay_mult"}
    rules = [
        (PARTS[name], {ours: keys[name].get(theirs, 1.0) for ours, theirs in factors.items()})
        for name in in_order
    ]
    rules += [(NORMS, {"decay": config["norm_decay_mult"]}), (".*", {"decay": 1.0})]
    # The optimizer refuses patterns without a match.
    matched = [rule for rule in rules if any(re.fullmatch(rule[0], path) for path in paths)]
    schedule = {"name": "polynomial"}
    settings = OptimizerSettings(lr=config["lr"], schedule=schedule, rules=matched)
    return treatments(settings, {path: np.zeros(()) for path in paths})


MODULES = {
    "lr_schedule": compiled(schedule),
    "PEFTOptimWrapperConstructor": groups,
}
