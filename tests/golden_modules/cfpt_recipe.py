"""Golden cases of CFPT's recipe: the optimizer's steps, and rates."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from tests.golden_modules.fields import Fields
from tests.golden_modules.pad_models import Arrays
from vadapt.training.optimizers import learning_rate, make_optimizer


def settings(config: Fields, names: list[str]) -> dict[str, Any]:
    """A section `config.optimizer` of the file's settings."""
    steps = config["steps"]
    parts = [f".*{re.escape(part)}.*" for part in config["no_decay_substrings"]]
    # The optimizer refuses patterns without a match.
    spared = [part for part in parts if any(re.fullmatch(part, name) for name in names)]
    return {
        "name": "sgd",
        "lr": config["base_lr"],
        "momentum": config["momentum"],
        "weight_decay": config["weight_decay"],
        "clip_norm": config["clip_norm"],
        "rules": [*((part, {"decay": 0.0}) for part in spared), (".*", {"decay": 1.0})],
        "schedule": staircase(config["warmup_iters"] / steps, (), config["warmup_ratio"]),
    }


def staircase(warmup: float, drops: tuple[float, ...], start: float) -> dict[str, Any]:
    return {"name": "staircase", "warmup": warmup, "drops": drops, "start": start}


def steps(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    section, total = settings(config, list(params)), config["steps"]
    rate = learning_rate(section, total, 1)
    optimizer = make_optimizer(section, params, rate, total_steps=total)
    state, norms = optimizer.init(params), []
    for step in range(total):
        grads = {name: inputs[f"grad{step}/{name}"] for name in params}
        norms.append(optax.tree.norm(grads))
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    outputs = {**params, "grad_norm": jnp.stack(norms), "lr": rate(np.arange(total))}
    return {**outputs, **rates(config, section, inputs)}


def rates(config: Fields, section: dict[str, Any], inputs: Arrays) -> Arrays:
    """Rates of a warm-up of as many steps as an output's name says, and of epochs without one."""
    outputs, shapes, start = {}, config["out_shapes"], config["warmup_ratio"]
    at = np.asarray(inputs["lr_iters"])
    total = int(at.max()) + 1
    for name in shapes:
        if found := re.fullmatch(r"lr_warm(\d+)", name):
            rate = staircase(int(found[1]) / total, (), start)
            outputs[name] = learning_rate({**section, "schedule": rate}, total, 1)(at)
    epochs = shapes["lr_epoch"][0]
    drops = tuple(epoch / epochs for epoch in config["epoch_steps"])
    rate = learning_rate({**section, "schedule": staircase(0.0, drops, start)}, epochs, 1)
    return {**outputs, "lr_epoch": rate(np.arange(epochs))}


MODULES = {
    "SGD momentum + grad clip + weight decay mask + linear warmup, step schedule": steps,
}
