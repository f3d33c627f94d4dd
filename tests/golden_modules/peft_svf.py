"""Golden cases of SVF: layers whose kernels are taken apart by the module itself."""

from __future__ import annotations

from typing import Any

from flax import nnx

from tests.golden_modules.fields import Fields, same
from tests.golden_modules.pad_models import Arrays, nhwc
from tests.golden_modules.rein_backbones import nchw
from vadapt.adapters.changed import change
from vadapt.adapters.svf import Decomposed, full_rank
from vadapt.weights.load import with_arrays


def plain_conv(config: Fields, inputs: Arrays) -> nnx.Conv:
    """The convolution that a case takes apart."""
    same(config, bias="bias" in inputs)
    side, padding = config["kernel"], config["padding"]
    layer = nnx.Conv(
        config["in_channels"],
        config["out_channels"],
        (side, side),
        strides=config["stride"],
        padding=((padding, padding),) * 2,
        kernel_dilation=config["dilation"],
        use_bias=config["bias"],
        rngs=nnx.Rngs(0),
    )
    same(config, full_rank=full_rank(layer))
    values = {"kernel": inputs["weight"].transpose(2, 3, 1, 0)}
    return with_arrays(layer, values | ({"bias": inputs["bias"]} if config["bias"] else {}))


def conv_values(config: Fields, inputs: Arrays) -> Arrays:
    """The singular values, which the module finds."""
    layer = change(Decomposed, plain_conv(config, inputs), config["rank"])
    return {"c.vector_S": layer.vector_s[...].reshape(1, -1, 1, 1)}


def conv(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    plain, x = plain_conv(config, inputs), nhwc(inputs["x"])
    layer = change(Decomposed, plain, config["rank"])
    values = params["c.vector_S"].reshape(-1)

    def with_values(values: Any) -> Any:
        return nchw(with_arrays(layer, {"vector_s": values})(x))

    return {
        "y": with_values(values),
        "y_scaled": with_values(values * inputs["delta"]),
        "y_original_conv": nchw(plain(x)),
        "S": layer.vector_s[...],
    }


def linear(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    plain = nnx.Linear(config["in_features"], config["out_features"], rngs=nnx.Rngs(0))
    plain = with_arrays(plain, {"kernel": inputs["weight"].T, "bias": inputs["bias"]})
    layer = change(Decomposed, plain, config["rank"])
    return {"y": with_arrays(layer, {"vector_s": params["vector_S"].reshape(-1)})(inputs["x"])}


MODULES = {
    "SVD_Conv2d built by resolver()": conv,
    "SVD_Linear with factors actually loaded": linear,
}
MADE = {"SVD_Conv2d built by resolver()": conv_values}
