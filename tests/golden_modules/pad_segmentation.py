"""Golden cases of PAD's segmentation: inference in windows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tests.golden_modules.pad_models import Arrays, nhwc
from vadapt.tasks.sliding import Inference


def slide_inference(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    """The network that stands in: a convolution, times a factor of the place in the window."""
    kernel = inputs["w"].transpose(2, 3, 1, 0)
    factor = 1 + 0.5 * jnp.tanh(inputs["ramp"].transpose(1, 2, 0))

    def score(images: Any) -> Any:
        scores = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return scores * factor[None, : scores.shape[1], : scores.shape[2]]

    images = nhwc(inputs["img"])
    inference = Inference(tuple(config["crop"]), tuple(config["stride"]))
    logits = inference(score, images, images.shape[1:3])
    rescaled = inference(score, images, tuple(config["ori_shape"]))
    return {
        "logits": logits.transpose(0, 3, 1, 2),
        "rescaled": rescaled.transpose(0, 3, 1, 2),
        "pred": rescaled.argmax(-1),
    }


MODULES = {"slide_inference": slide_inference}
