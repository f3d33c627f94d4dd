"""What PAD costs beside continual full pre-training, by the compiler's own count."""

import jax
import jax.numpy as jnp

from tests.training.test_step import lowered_step
from vadapt.configs import pad_msip
from vadapt.tasks import make_task


def step_flops(paradigm):
    config = pad_msip.get_config(paradigm)
    config.model.weights = ""
    config.eval.probe_scenes = 0
    task = make_task(config)
    images = {"image": jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.uint8)}
    # What is compiled has a thousandth more, and takes twenty times as long.
    step = lowered_step(task.build, task.loss, config.trainable, images)
    return step.cost_analysis()["flops"]


def test_a_pad_step_costs_at_most_86_percent_of_a_full_one():
    # The decoder trains in both.
    assert step_flops("pad") <= 0.86 * step_flops("full")
