"""Golden cases of PAD's detection: ViTDet's backbone with adapters, its positions and rates."""

from __future__ import annotations

import math

import numpy as np
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc, scale_options
from tests.golden_modules.pad_segmentation import Parts
from tests.golden_modules.programs import compiled
from vadapt import adapters
from vadapt.backbones.sam import _offsets
from vadapt.backbones.vitdet import ViTDet
from vadapt.necks.simple_feature_pyramid import MIDDLE, SimpleFeaturePyramid
from vadapt.partition import variables
from vadapt.training.layer_decay import layer_factors
from vadapt.weights.families.vitdet import PAD_DETECTOR
from vadapt.weights.tables import revert


def build_backbone(config: Fields) -> ViTDet:
    """The adapted trunk of a golden file's settings."""
    # Tables that start at zero and others are alike once a file's own are in them.
    only(config, act=("gelu_exact",), rel_pos_zero_init=(False, True))
    in_windows = set(config["window_block_indexes"])
    trunk = ViTDet(
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
        pretrain_size=config["pretrain_img_size"],
        global_blocks=sorted(set(range(config["depth"])) - in_windows),
        window=config["window_size"],
        mlp_ratio=config["mlp_ratio"],
        relative_positions=config["use_rel_pos"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )
    return adapters.apply(trunk, "patchwise_scale", **scale_options(config))


def backbone(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, input_hw=(list(inputs["x"].shape[2:]),))
    model = imported(build_backbone(config), params)
    return {"last_feat": model(nhwc(inputs["x"])).transpose(0, 3, 1, 2)}


def relative_rows(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, k=(config["q"],), table_len=(len(inputs["table"]),))
    return {"rel": _offsets(inputs["table"], config["q"])}


def layer_decay(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Factors of some names of a whole detector, of which the file gives the depth alone."""
    depth = config["num_layers"]
    parts = ("attn.qkv.weight", "adaptmlp.up_proj.weight", "scalar_pred.weight", "attn.rel_pos_h")
    some = (0, 5, 11) if depth > 11 else (0, depth // 2 - 1, depth - 1)
    names = ["pos_embed", "patch_embed.proj.weight"]
    names += [f"blocks.{i}.{part}" for i in some for part in parts]
    model = nnx.eval_shape(lambda: _small_detector(depth))
    paths = _paths(model)
    factors = layer_factors(list(paths), config["lr_decay_rate"])
    by_name = {name: factors[path] for path, name in paths.items()}
    found = {f"backbone.net.{name}": by_name[f"backbone.net.{name}"] for name in names}
    outside = ("backbone.simfp_2.0.weight", "proposal_generator.rpn_head.conv.weight",
               "roi_heads.box_head.fc1.weight")  # fmt: skip
    found |= dict.fromkeys(outside, 1.0)
    return {"name": np.array([*found]), "scale": np.array([*found.values()])}


def _small_detector(depth: int) -> Parts:
    size = {"width": 8, "num_heads": 2, "patch_size": 4, "image_size": 8, "pretrain_size": 8}
    trunk = ViTDet(depth=depth, global_blocks=[0], window=2, **size, rngs=nnx.Rngs(0))
    return Parts(adapters.apply(trunk, "patchwise_scale", hidden=2))


def _paths(model: Parts) -> dict[str, str]:
    """A detector's names by path."""
    found = {}
    for path, variable in variables(model).items():
        array = np.zeros(variable.get_value().shape, np.float32)
        names, _ = revert({path: array}, PAD_DETECTOR, backbone="backbone/")
        found[path] = next(iter(names))
    return found


def simple_feature_pyramid(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(
        config,
        norm=("LN (channels-first, eps 1e-6)",),
        act=("gelu_exact",),
        top=("max-pool kernel 1 stride 2 on p5",),
    )
    x = nhwc(inputs["x"])
    same(config, dim=x.shape[3])
    doublings = [round(math.log2(factor)) for factor in config["scale_factors"]]
    neck = SimpleFeaturePyramid(
        x.shape[3], config["out_channels"], doublings=doublings, rngs=nnx.Rngs(0)
    )
    levels = imported(Parts(neck=neck), params).neck([x])
    first = MIDDLE - doublings[0]
    return {f"p{i}": y.transpose(0, 3, 1, 2) for i, y in enumerate(levels, start=first)}


MODULES = {
    "SimpleFeaturePyramid": simple_feature_pyramid,
    "ViT_adapt detection backbone": backbone,
    "get_rel_pos": compiled(relative_rows),
    "get_vit_lr_decay_rate": layer_decay,
}
