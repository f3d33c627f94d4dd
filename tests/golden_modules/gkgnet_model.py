"""Golden cases of GKGNet's network: graph convolutions, blocks, ViG and the label branch."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc, with_norms
from tests.golden_modules.rein_backbones import nchw
from vadapt.backbones.graphs import PARTS, GraphConv
from vadapt.backbones.vig import ViG, ViGBlock, cells
from vadapt.heads.label_graph import LabelBlock, LabelGraph
from vadapt.heads.vig_classifier import ViGClassifier
from vadapt.losses.multilabel import label_losses
from vadapt.nn.activations import gelu_exact
from vadapt.partition import variables
from vadapt.weights.families.vig import (
    LABELS,
    block_rules,
    conv_rules,
    graph_rules,
    mlp_rules,
    table_of,
)
from vadapt.weights.load import with_arrays
from vadapt.weights.tables import Rule, Table, convert, revert

CONV = conv_rules("", "")
PATCH = (*graph_rules("0", ""), *mlp_rules("1", "/mlp"))
LABEL = block_rules("", "")
ACTIVATIONS = {"gelu": gelu_exact, "relu": jax.nn.relu}


def placed(model: Any, params: Arrays, rules: tuple[Rule, ...]) -> tuple[Any, Table]:
    """A part of the network with its parameters, and its table; names and paths lack a parent."""
    rules = tuple(
        rule._replace(pattern=rule.pattern.removeprefix(r"\."), path=rule.path.removeprefix("/"))
        for rule in rules
    )
    table = Table("gkgnet", rules)
    return with_arrays(model, convert(params, table)[0]), table


def in_training(model: Any, config: Fields) -> Any:
    """The model with norms as the file says."""
    model = with_norms(model, config)
    if config["train"]:
        model.train()
    return model


def drop_path(config: Fields) -> float:
    """The rate of dropped branches, which acts in training alone: a file says not which it drew."""
    if config["train"]:
        only(config, drop_path=(0.0,))
    return config.get("drop_path", 0.0)


def check_block(config: Fields) -> None:
    """Refuse blocks of another making than GKGNet's."""
    only(config, act=("gelu",), mlp_ratio=(4,), conv=("mr",), norm=("batch",))


def statistics(model: Any, table: Table) -> Arrays:
    """The running statistics after a call, under the original's names."""
    values = {path: value[...] for path, value in variables(model).items()}
    names = revert(values, table)[0]
    return {f"new/{name}": value for name, value in names.items() if ".running_" in name}


def rows(ids: Any) -> Any:
    """Neighbours as the original gives them."""
    return rearrange(ids, "b g n k -> (b g) n k")


def convolution(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, conv=("mr",), norm=("batch",), conv_groups=(PARTS,))
    same(config, out_channels=2 * config["channels"])
    model = GraphConv(
        config["channels"],
        groups=config["groups"],
        k=config["k"],
        dilation=config["dilation"],
        activation=ACTIVATIONS[config["act"]],
        rngs=nnx.Rngs(0),
    )
    model, table = placed(model, params, CONV)
    x = nhwc(inputs["x"])
    nodes = rearrange(x, "b h w d -> b (h w) d")
    sources = cells(nodes, x.shape[1:3], config["reduce"])
    bias = inputs["relative_pos"][0] if config["relative_pos"] else None
    y, ids = in_training(model, config)(nodes, sources, bias)
    y = y.reshape(*x.shape[:3], -1)
    return {"y": nchw(y), "nn_idx": rows(ids), **statistics(model, table)}


def patch_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    check_block(config)
    side = math.isqrt(config["n"])
    block = ViGBlock(
        config["channels"],
        reduction=config["reduce"],
        grid=(side, side),
        relative="released" if config["relative_pos"] else None,
        groups=config["groups"],
        k=config["k"],
        dilation=config["dilation"],
        drop_path_rate=drop_path(config),
        rngs=nnx.Rngs(0),
    )
    block, table = placed(block, params, PATCH)
    x = nhwc(inputs["x"])
    size = x.shape[1:3]
    bias = block.bias(size)
    nodes = rearrange(x, "b h w d -> b (h w) d")
    # Norms of training would move their statistics a second time.
    taken, _ = in_training(nnx.clone(block), config).take(
        nodes, lambda y: cells(y, size, block.reduction), bias
    )
    y = in_training(block, config)(x)
    outputs = {"grapher": nchw(taken.reshape(x.shape)), "y": nchw(y)}
    if bias is not None:
        outputs["relative_pos_used"] = (bias.dense() if hasattr(bias, "dense") else bias)[None]
    return outputs | statistics(block, table)


def label_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    check_block(config)
    same(config, num_labels=inputs["label"].shape[1])
    options = {"groups": config["groups"], "k": config["k"], "drop_path_rate": drop_path(config)}
    block = LabelBlock(config["channels"], **options, rngs=nnx.Rngs(0))
    block, table = placed(block, params, LABEL)
    labels, ids = in_training(block, config)(inputs["label"], nhwc(inputs["features"]))
    return {"label": labels, "nn_idx": rows(ids), **statistics(block, table)}


class GKGNet(nnx.Module):
    """A ViG and the label branch."""

    def __init__(self, config: Fields):
        only(config, act=("gelu",))
        rngs, rate = nnx.Rngs(0), drop_path(config)
        self.backbone = pyramid(config, groups=config["patch_groups"], drop_path_rate=rate)
        self.head = LabelGraph(
            config["channels"],
            config["num_labels"],
            groups=config["groups"],
            k=config["k_label"],
            depth=config["num_gcn"],
            drop_path_rates=[stage[0].drop_path_rate for stage in self.backbone.stages],
            rngs=rngs,
        )


def pyramid(config: Fields, groups: int, drop_path_rate: float = 0.0) -> ViG:
    return ViG(
        widths=config["channels"],
        depths=config["blocks"],
        groups=groups,
        k=config["k"],
        max_dilation=config["max_dilation"],
        reductions=config["reduce_ratios"],
        image_size=config["size"],
        drop_path_rate=drop_path_rate,
        rngs=nnx.Rngs(0),
    )


def gkgnet(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    model = in_training(imported(GKGNet(config), params), config)
    maps = model.backbone.features(nhwc(inputs["img"]), (0, 1, 2, 3), as_grid=True)
    labels, chosen = model.head.nodes(maps)
    mean = maps[-1].mean(axis=(1, 2))
    outputs = {"label_emb": labels, "gap": mean, "last_label_nn_idx": rows(chosen[-1])}
    outputs |= scored(model.head.logits(labels, mean), config, inputs)
    table = table_of(params)
    assert table is not None
    # GKGNet's names have a first part that ViG's, which are written, lack.
    names = statistics(model, table._replace(backbone=_under("backbone/", table.backbone)))
    return outputs | {name.replace("new/", "new/backbone.", 1): x for name, x in names.items()}


def _under(prefix: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule._replace(path=prefix + rule.path) for rule in rules)


def scored(logits: Any, config: Fields, inputs: Arrays) -> Arrays:
    losses = label_losses(
        logits,
        inputs["gt_label"],
        smoothing=config["label_smooth"],
        gamma_positive=config["gamma_pos"],
        gamma_negative=config["gamma_neg"],
        clip=config["clip"],
        asymmetric_weight=config["asl_weight"],
    )
    return {
        "logits": logits,
        "prob": jax.nn.sigmoid(logits),
        "bce_loss": losses["loss_bce"],
        "asy_loss": losses["loss_asl"],
        "loss_total": sum(losses.values(), jnp.zeros(())),
    }


def query_head(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    head = LabelGraph((config["channels"],), config["num_labels"], rngs=nnx.Rngs(0))
    own = {f"head.{name}": value for name, value in params.items()}
    values = convert(own, Table("gkgnet", LABELS))[0]
    head = with_arrays(head, {path.removeprefix("head/"): x for path, x in values.items()})
    return scored(head.logits(inputs["label"], inputs["gap"]), config, inputs)


def classifier(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, kind=("pyramid", "isotropic"))
    if config["kind"] == "pyramid":
        backbone = pyramid(config, config["groups"])
    else:
        numbers = config["num_knn"]
        same(config, k=numbers[0])
        backbone = ViG(
            widths=(config["n_filters"],),
            depths=(config["n_blocks"],),
            groups=config["groups"],
            k=(numbers[0], numbers[-1]),
            max_dilation=config["max_dilation"],
            reductions=(1,),
            relative=None,
            stem_stride=16,
            image_size=config["size"],
            rngs=nnx.Rngs(0),
        )
        (blocks,) = backbone.stages
        same(config, num_knn=[block.conv.k for block in blocks])
        same(config, dilations=[block.conv.dilation for block in blocks])
    options = {"hidden": config["head_hidden"]}
    model = ViGClassifier(backbone, config["n_classes"], **options, rngs=nnx.Rngs(0))
    return {"logits": imported(model, params)(nhwc(inputs["img"]))}


MODULES = {
    "group_kgcn": convolution,
    "patch_block": patch_block,
    "cross_level_block": label_block,
    "gkgnet": gkgnet,
    "label_query_head": query_head,
    "vig_classifier": classifier,
}
