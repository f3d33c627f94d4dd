"""Golden cases of PAD's segmentation: backbone, heads, rates of layers, inference in windows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import (
    RELATIVE,
    Arrays,
    imported,
    nhwc,
    scale_options,
    with_norms,
)
from tests.golden_modules.programs import compiled
from vadapt import adapters
from vadapt.backbones.vit import ViT
from vadapt.heads.upernet import UPerNet
from vadapt.necks.learned import Deconvolutions
from vadapt.partition import EVERYTHING, flatten, split, variables
from vadapt.tasks.sliding import Inference
from vadapt.training.layer_decay import layer_factors
from vadapt.training.optimizers import decays
from vadapt.weights.families.upernet import PAD_SEGMENTER
from vadapt.weights.tables import revert


def slide_inference(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The network that stands in: a convolution, times a factor of the place in the window."""
    same(config, num_classes=len(inputs["w"]))
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


class Parts(nnx.Module):
    """What a segmenter has, as far as a golden file has it."""

    def __init__(self, backbone: Any = None, neck: Any = None, head: Any = None):
        self.backbone, self.neck, self.head = backbone, neck, head


def build_backbone(config: Fields) -> ViT:
    """The adapted trunk of a golden file's settings."""
    only(config, act=("gelu_exact",))
    own, shared = config["use_rel_pos_bias"], config.get("use_shared_rel_pos_bias", False)
    trunk = ViT(
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
        in_channels=config.get("in_chans", 3),
        mlp_ratio=config["mlp_ratio"],
        positions="learned" if config["use_abs_pos_emb"] else "none",
        relative_positions=RELATIVE[own, shared],
        qkv_bias=config["qkv_bias"],
        layer_scale=config["init_values"],
        drop_path_rate=config.get("drop_path_rate", 0.0),
        norm_epsilon=config["ln_eps"],
        final_norm=False,
        rngs=nnx.Rngs(0),
    )
    return adapters.apply(trunk, "patchwise_scale", **scale_options(config))


DOUBLINGS = {16: (2, 1, 0, -1), 8: (1, 0, -1, -2)}


def backbone(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    neck = Deconvolutions(
        config["embed_dim"],
        doublings=DOUBLINGS[config["patch_size"]],
        normed=False,
        rngs=nnx.Rngs(0),
    )
    model = with_norms(imported(Parts(build_backbone(config), neck), params), config)
    taps = sorted(config["out_indices"])
    maps = model.backbone.features(nhwc(inputs["x"]), taps, as_grid=True, norm=False)
    return {f"f{i}": x.transpose(0, 3, 1, 2) for i, x in enumerate(model.neck(maps))}


def upernet(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The head and the FCN beside it, with their losses."""
    maps = [nhwc(inputs[f"f{i}"]) for i in range(sum(name[0] == "f" for name in inputs))]
    widths = config["in_channels"]
    weight, auxiliary_weight = config.get("loss_weights", (1.0, 0.4))
    if weight != 1.0:
        raise ValueError(f"loss_weights[0] is {weight}; vadapt's UPerNet has no weight of its own")
    model = UPerNet(
        [widths] * len(maps) if isinstance(widths, int) else widths,
        config["num_classes"],
        channels=config["channels"],
        pool_scales=config["pool_scales"],
        auxiliary=2 if "aux_channels" in config else None,
        auxiliary_channels=config.get("aux_channels", 0),
        auxiliary_weight=auxiliary_weight,
        ignore=config.get("ignore_index", 255),
        align_corners=config.get("align_corners", False),
        rngs=nnx.Rngs(0),
    )
    whole = any(name.startswith("decode_head.") for name in params)
    named = params if whole else {f"decode_head.{k}": v for k, v in params.items()}
    head = with_norms(imported(Parts(head=model), named), config).head
    found = head(maps)
    outputs = {"logits": found.logits.transpose(0, 3, 1, 2)}
    if "labels" not in inputs:
        return outputs
    terms = head.loss(found, jnp.asarray(inputs["labels"])[:, 0])
    return {
        **outputs,
        "aux_logits": found.auxiliary.transpose(0, 3, 1, 2),
        "loss": terms["loss_seg"],
        "aux_loss": terms["loss_auxiliary"],
        "total": sum(terms.values()),
    }


def layer_decay_groups(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Rates and decays by name; the file gives the depth only, and heads that stand in."""
    sizes = {
        "embed_dim": 8,
        "num_heads": 2,
        "patch_size": 16,
        "img_size": 32,
        "mlp_ratio": 4,
        "use_abs_pos_emb": True,
        "use_rel_pos_bias": True,
        "qkv_bias": True,
        "init_values": 1.0,
        "ln_eps": 1e-6,
        "down_size": 4,
        "patch_wise_scalar": True,
    }
    model = Parts(
        build_backbone(sizes | config),
        Deconvolutions(8, normed=False, rngs=nnx.Rngs(0)),
    )
    values = {path: value[...] for path, value in variables(model).items()}
    leaves = flatten(split(model, EVERYTHING).trainable)
    reverted = {
        f"backbone.{name}": path
        for path in leaves
        for name in revert({path: values[path]}, PAD_SEGMENTER, backbone="backbone/")[0]
    }
    by_name = {name.replace("backbone.backbone.", "backbone."): p for name, p in reverted.items()}
    scales = layer_factors(list(leaves), config["layer_decay_rate"])
    # Stand-ins for heads: a layer, and a norm behind one of them.
    stand_ins = {
        "auxiliary_head.bias": 1,
        "auxiliary_head.weight": 2,
        "decode_head.0.bias": 1,
        "decode_head.0.weight": 2,
        "decode_head.1.bias": 1,
        "decode_head.1.weight": 1,
    }
    names = sorted([*by_name, *stand_ins])
    decayed = {name: decays(path, leaves[path]) for name, path in by_name.items()}
    decayed |= {name: axes > 1 for name, axes in stand_ins.items()}
    factors = [scales[by_name[name]] if name in by_name else 1.0 for name in names]
    return {
        "name": np.array(names),
        "lr_scale": np.array(factors),
        "lr": config["lr"] * np.array(factors),
        "weight_decay": np.array([config["weight_decay"] * decayed[name] for name in names]),
    }


MODULES = {
    "slide_inference": compiled(slide_inference),
    "MAE_adapt segmentation backbone": backbone,
    "UPerHead + FCNHead": upernet,
    "LayerDecayOptimizerConstructor": layer_decay_groups,
}
