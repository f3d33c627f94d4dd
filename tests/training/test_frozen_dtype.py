"""Frozen weights held in the compute type give the same step, to the bit, in half the memory."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import Literal

from tests.recipes import DISTINCT, config_of, shrunk
from tests.training.toy import ToyTask, toy_config
from vadapt import sharding
from vadapt.partition import split
from vadapt.tasks import make_task
from vadapt.training.loop import fit
from vadapt.training.program import make_program

HALF = jnp.dtype("bfloat16")


def test_frozen_weights_are_held_in_the_compute_type_until_told_otherwise():
    config = config_of("pad_msip")
    assert config.parallel.frozen_dtype == config.parallel.step.compute_dtype == "bfloat16"
    config.parallel.step.compute_dtype = "float32"
    assert config.parallel.frozen_dtype == "float32"
    config.parallel.frozen_dtype = "bfloat16"
    assert config.parallel.step.compute_dtype == "float32"
    config.parallel.step.compute_dtype = "float16"
    assert config.parallel.frozen_dtype == "bfloat16"
    scenes = config_of("pad_msip", "scenes").to_dict()["parallel"]
    assert scenes["frozen_dtype"] == scenes["step"]["compute_dtype"] == "float32"


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("name", DISTINCT)
def test_a_step_uses_frozen_weights_in_the_compute_type_alone(name):
    """Whatever they are stored in, so that no weight of any recipe needs to be in float32."""
    config = shrunk(name)
    config.parallel.step.compute_dtype, config.parallel.frozen_dtype = "bfloat16", "float32"
    task = make_task(config)
    parts = split(nnx.eval_shape(lambda: task.build(pretrained=False)), config.trainable)
    program = make_program(parts, task, config, sharding.make_mesh(1, jax.devices()[:1]))
    number = len(jax.tree.leaves(program.frozen))
    used = uses(program.trace(task.batch_shapes()).jaxpr.jaxpr, number)
    assert used <= {("convert_element_type", HALF)}
    assert bool(used) == bool(number)


def uses(jaxpr, number):
    """What is done to the first inputs of a program, and the type that it gives."""
    followed, found = set(jaxpr.invars[:number]), set()
    for equation in jaxpr.eqns:
        for variable in equation.invars:
            if not isinstance(variable, Literal) and variable in followed:
                found.add((equation.primitive.name, equation.params.get("new_dtype")))
    return found


def test_a_run_is_the_same_to_the_bit_in_either(tmp_path):
    """Its losses, the norms of its gradients, and what it has trained."""
    heads, lines = [], []
    for dtype in ("float32", "bfloat16"):
        config = toy_config(total_steps=3)
        config.parallel.step.compute_dtype, config.parallel.frozen_dtype = "bfloat16", dtype
        config.run.log_every = 1
        outcome = fit(ToyTask(config), config, tmp_path / dtype, devices=jax.devices()[:1])
        text = (tmp_path / dtype / "metrics.jsonl").read_text()
        heads.append(np.asarray(outcome.model.head.kernel[...]))
        found = [json.loads(line) for line in text.splitlines()]
        lines.append([(line["step"], line["loss"], line["grad_norm"]) for line in found])
    assert np.array_equal(*heads)
    assert len(lines[0]) == 3
    assert lines[0] == lines[1]
