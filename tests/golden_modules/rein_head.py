"""Golden cases of Rein's head: its attention, pixel decoder, decoder, losses and scores."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.rein_adapter import rein_options
from tests.golden_modules.rein_backbones import build_dinov2, nchw
from vadapt.adapters import rein
from vadapt.backbones.positions import sine_positions
from vadapt.heads.mask2former import Mask2FormerHead, semantic_scores
from vadapt.heads.pixel_decoder import DeformableAttention, PixelDecoder, Sizes
from vadapt.kernels.deformable_attention import deformable_attention
from vadapt.losses import mask2former as losses
from vadapt.necks.pyramid import pyramid


class Headed(nnx.Module):
    """A model of which the head is all there is."""

    def __init__(self, head: Any):
        self.head = head


class Holder(nnx.Module):
    """A head of which one part is all there is, under that part's name."""

    def __init__(self, name: str, part: Any):
        setattr(self, name, part)


def attend(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    read = deformable_attention(
        inputs["value"],
        [(rows, columns) for rows, columns in config["spatial_shapes"]],
        inputs["sampling_locations"],
        inputs["attention_weights"],
    )
    return {"output": rearrange(read, "b q h d -> b q (h d)")}


def attention_module(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    layer = DeformableAttention(
        config["embed_dims"],
        config["num_heads"],
        num_levels=config["num_levels"],
        num_points=config["num_points"],
        rngs=nnx.Rngs(0),
    )
    holder = Holder("pixel_decoder", Holder("layers", nnx.List([Holder("attn", layer)])))
    prefix = "decode_head.pixel_decoder.encoder.layers.0.self_attn."
    model = imported(Headed(holder), {prefix + name: value for name, value in params.items()})
    attention = model.head.pixel_decoder.layers[0].attn
    sizes = Sizes(map(tuple, config["spatial_shapes"]))
    references = inputs["reference_points"]
    return {"output": attention(inputs["query"], inputs["query_pos"], references, sizes)}


def positions(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    grid = (config["H"], config["W"])
    table = sine_positions(2 * config["num_feats"], grid, temperature=config["temperature"])
    return {"pos": nchw(table[None])}


def decoder_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of `PixelDecoder` from the original's settings."""
    layer = config["encoder"]["layer_cfg"]
    return {
        "depth": config["encoder"]["num_layers"],
        "num_heads": layer["self_attn_cfg"]["num_heads"],
        "hidden": layer["ffn_cfg"]["feedforward_channels"],
        "num_points": layer["self_attn_cfg"]["num_points"],
        "num_groups": config["norm_cfg"]["num_groups"],
    }


def pixel_decoder(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    decoder = PixelDecoder(
        config["in_channels"],
        width=config["feat_channels"],
        outputs=config["out_channels"],
        **decoder_options(config),
        rngs=nnx.Rngs(0),
    )
    named = {f"decode_head.pixel_decoder.{name}": value for name, value in params.items()}
    model = imported(Headed(Holder("pixel_decoder", decoder)), named)
    features, memories = model.head.pixel_decoder(feature_maps(inputs))
    found = {f"memory{i}": nchw(memory) for i, memory in enumerate(memories)}
    return {"mask_features": nchw(features), **found}


def feature_maps(inputs: Arrays) -> list[Any]:
    return [nhwc(inputs[f"feat{i}"]) for i in range(4)]


def build_head(config: dict[str, Any], linked: bool) -> Mask2FormerHead:
    """The head of a golden file's settings."""
    encoder = decoder_options(config["pixel_decoder"])
    decoder = config["transformer_decoder"]
    return Mask2FormerHead(
        config["in_channels"],
        config["num_classes"],
        num_queries=config["num_queries"],
        linked=linked,
        replace_query_feat=config.get("replace_query_feat", False),
        width=config["feat_channels"],
        outputs=config["out_channels"],
        depth=decoder["num_layers"],
        num_heads=decoder["layer_cfg"]["self_attn_cfg"]["num_heads"],
        hidden=decoder["layer_cfg"]["ffn_cfg"]["feedforward_channels"],
        encoder_depth=encoder["depth"],
        encoder_hidden=encoder["hidden"],
        num_points=encoder["num_points"],
        num_groups=encoder["num_groups"],
        rngs=nnx.Rngs(0),
    )


def head(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    queries = inputs.get("query")
    model = Headed(build_head(config, linked=queries is not None))
    model = imported(model, {f"decode_head.{name}": value for name, value in params.items()})
    found = model.head(feature_maps(inputs), queries)
    outputs = {f"cls{i}": classes for i, classes in enumerate(found.classes)}
    return {**outputs, **{f"mask{i}": masks for i, masks in enumerate(found.masks)}}


def loss_settings(config: dict[str, Any]) -> losses.Settings:
    """The loss of a golden file's settings."""
    weights = config["weights"]
    assert weights == config["match_weights"]
    return losses.Settings(
        num_points=config["num_points"],
        oversampling=config["oversample_ratio"],
        importance=config["importance_sample_ratio"],
        class_weight=weights["cls"],
        mask_weight=weights["mask"],
        dice_weight=weights["dice"],
        no_object=config["class_weight"][-1],
    )


def by_class(rows: Any, queries: Any, present: Any) -> Any:
    """Rows in the order of images, then of matched queries, as [b, k, ...]; zero elsewhere."""
    b, k = present.shape
    order = jnp.where(present, queries, jnp.iinfo(jnp.int32).max)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    counts = present.sum(axis=1)
    before = jnp.cumsum(counts) - counts
    number = jnp.where(present, rank + before[:, None], len(rows))
    filled = jnp.concatenate([rows, jnp.zeros((1, *rows.shape[1:]), rows.dtype)])
    return filled[number.reshape(-1)].reshape(b, k, *rows.shape[1:])


def assigned(queries: Any, present: Any, num_queries: int) -> Any:
    """For each query the place of its class among those present, from 1; 0 for no object."""
    places = jnp.where(present, jnp.cumsum(present, axis=1), 0)
    hot = queries[..., None] == jnp.arange(num_queries)[None, None]
    return jnp.where(hot, places[..., None], 0).sum(axis=1)


def layer_loss(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    """One prediction's terms; costs have a column for each class of an image, as in the file."""
    classes, masks, labels = inputs["cls"], inputs["mask"], inputs["gt"]
    settings = loss_settings(config)
    present = losses.classes_present(labels, config["num_classes"])
    matching = inputs["match_points"]
    costs = losses.matching_cost(classes, masks, matching, labels, settings)
    queries = losses.match(costs, present)
    drawn = points_by_class(inputs, "", queries, present)
    points = losses.Points(*(x[None] for x in drawn))
    found = losses.mask2former_loss(
        classes[None], masks[None], labels, points=points, settings=settings
    )
    numbers = assigned(queries, present, config["num_queries"])
    taken = jnp.stack([mask[query] for mask, query in zip(masks, queries, strict=True)])
    where = losses.uncertain_points(taken, drawn, settings)
    outputs = {**found, "loss_points": by_query(where, queries, np.asarray(labels))}
    for i, there in enumerate(classes_of(np.asarray(labels))):
        outputs[f"cost{i}"] = costs[i][:, there]
        outputs[f"assigned_gt_plus1_{i}"] = numbers[i]
    return outputs


def classes_of(labels: np.ndarray) -> list[np.ndarray]:
    """The classes of each image, ascending."""
    return [np.setdiff1d(image, 255) for image in labels]


def by_query(rows: Any, queries: Any, labels: np.ndarray) -> Any:
    """Rows of classes that are there, [b, k, ...], in the order of images, then of queries."""
    return jnp.concatenate(
        [
            rows[i][there[jnp.argsort(queries[i][there])]]
            for i, there in enumerate(map(jnp.asarray, classes_of(labels)))
        ]
    )


def points_by_class(inputs: Arrays, prefix: str, queries: Any, present: Any) -> losses.Points:
    """A file's points for one prediction."""
    candidates, others = (
        by_class(inputs[f"{prefix}{name}_points"], queries, present)
        for name in ("candidate", "random")
    )
    return losses.Points(inputs[f"{prefix}match_points"], candidates, others)


def scores(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    found = semantic_scores(inputs["cls"], inputs["mask"], tuple(config["img_shape"]))
    return {"seg_logits": nchw(found)}


class Segmenter(nnx.Module):
    """A grafted trunk and the head that its queries go to."""

    def __init__(self, config: dict[str, Any]):
        trunk = build_dinov2(config["backbone"])
        options = rein_options(config["backbone"]["reins_config"])
        self.taps = sorted(config["backbone"]["out_indices"])
        self.backbone = rein.apply(trunk, **options)
        self.head = build_head(config["decode_head"], linked=True)

    def __call__(self, images: Any) -> Any:
        maps = self.backbone.features(images, self.taps, as_grid=True, norm=False)
        return self.head(pyramid(maps), rein.queries(self.backbone))


def train_step(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    """All terms of a whole model's loss, with the file's points for each prediction."""
    head, labels = config["decode_head"], inputs["gt"]
    found = imported(Segmenter(config), params)(nhwc(inputs["image"]))
    settings = settings_of_head(head)
    present = losses.classes_present(labels, head["num_classes"])
    points, numbers = [], []
    for i, (classes, masks) in enumerate(zip(*found, strict=True)):
        matching = inputs[f"layer{i}/match_points"]
        costs = losses.matching_cost(classes, masks, matching, labels, settings)
        queries = losses.match(costs, present)
        points.append(points_by_class(inputs, f"layer{i}/", queries, present))
        numbers.append(assigned(queries, present, head["num_queries"]))
    points = losses.Points(*(jnp.stack(kind) for kind in zip(*points, strict=True)))
    terms = losses.mask2former_loss(*found, labels, points=points, settings=settings)
    named = {f"decode_{name.replace('.', '_')}": value for name, value in terms.items()}
    return {**named, "total": sum(terms.values()), "assigned_gt_plus1": jnp.stack(numbers)}


def settings_of_head(config: dict[str, Any]) -> losses.Settings:
    """The loss of a whole model's settings; costs weigh what terms do."""
    train = config["train_cfg"]
    terms = [config[f"loss_{name}"]["loss_weight"] for name in ("cls", "mask", "dice")]
    assert [cost["weight"] for cost in train["assigner"]["match_costs"]] == terms
    return losses.Settings(
        num_points=train["num_points"],
        oversampling=train["oversample_ratio"],
        importance=train["importance_sample_ratio"],
        class_weight=terms[0],
        mask_weight=terms[1],
        dice_weight=terms[2],
        no_object=config["loss_cls"]["class_weight"][-1],
    )


MODULES = {
    "ms_deform_attn": attend,
    "MultiScaleDeformableAttention": attention_module,
    "SinePositionalEncoding": positions,
    "MSDeformAttnPixelDecoder": pixel_decoder,
    "ReinMask2FormerHead": head,
    "Mask2FormerHead": head,
    "Mask2FormerHead._loss_by_feat_single": layer_loss,
    "semantic_inference": scores,
    "EncoderDecoder(loss)": train_step,
}
