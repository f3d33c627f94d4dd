"""Golden cases of Conv-Adapter: alone, and in the blocks of ResNet and ConvNeXt."""

from __future__ import annotations

import jax
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.rein_backbones import nchw
from vadapt.adapters import conv_adapter
from vadapt.adapters.conv_adapter import ConvAdapter
from vadapt.backbones.convnext import EPSILON, ConvNeXt
from vadapt.backbones.resnet import EXPANSION, ResidualBlock
from vadapt.nn.activations import gelu_exact

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": gelu_exact}


class Held(nnx.Module):
    """A module where its name tables expect it."""

    def __init__(self, **held: nnx.Module):
        for name, module in held.items():
            setattr(self, name, module)


class Stages(nnx.Module):
    """One stage, with one block in it."""

    def __init__(self, block: nnx.Module):
        self.stages = nnx.List([nnx.List([block])])


def adapter(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The adapter alone, where a ConvNeXt's block has it."""
    same(config, groups=config["width"])
    side, padding = config["kernel"], config["padding"]
    module = ConvAdapter(
        config["inplanes"],
        config["outplanes"],
        config["width"],
        (side, side),
        strides=config["stride"],
        padding=((padding, padding),) * 2,
        activation=ACTIVATIONS[config["act"]],
        rngs=nnx.Rngs(0),
    )
    model = Stages(Held(dwconv=Held(adapter=module)))
    named = {f"stages.0.0.tuning_module.{name}": value for name, value in params.items()}
    held = imported(model, named).stages[0][0].dwconv.adapter
    return {"y": nchw(held(nhwc(inputs["x"])))}


def bottleneck(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    block = ResidualBlock(
        config["inplanes"],
        config["planes"] * EXPANSION,
        bottleneck=True,
        stride=config["stride"],
        rngs=nnx.Rngs(0),
    )
    same(config, downsample=block.shortcut is not None)
    model = conv_adapter.apply(Stages(block), reduction=config["adapt_size"])
    model = imported(model, {f"layer1.0.{name}": value for name, value in params.items()})
    return {"y": nchw(model.stages[0][0](nhwc(inputs["x"])))}


def convnext_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, kernel=(7,), act=("gelu exact",), ln_eps=(EPSILON,))
    trunk = ConvNeXt(depths=(1,), widths=(config["dim"],), normed=(), rngs=nnx.Rngs(0))
    model = imported(
        conv_adapter.apply(trunk, reduction=config["adapt_size"]),
        {f"stages.0.0.{name}": value for name, value in params.items()},
        allow_missing=["downsamples/.*"],
    )
    return {"y": nchw(model.stages[0][0](nhwc(inputs["x"])))}


MODULES = {
    "ConvAdapter": adapter,
    "ResNet Bottleneck (conv parallel)": bottleneck,
    "ConvNeXt Block": convnext_block,
}
