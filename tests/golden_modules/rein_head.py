"""Golden cases of Rein's head: its attention, pixel decoder, decoder and scores."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.programs import compiled
from tests.golden_modules.rein_backbones import nchw
from tests.golden_modules.rein_loss import settings_of_head
from vadapt.heads.mask2former import Mask2FormerHead, semantic_scores
from vadapt.heads.pixel_decoder import NUM_LEVELS, DeformableAttention, PixelDecoder, Sizes
from vadapt.kernels.deformable_attention import deformable_attention
from vadapt.nn.positions import sine_positions


class Headed(nnx.Module):
    """A model of which the head is all there is."""

    def __init__(self, head: Any):
        self.head = head


class Holder(nnx.Module):
    """A head of which one part is all there is, under that part's name."""

    def __init__(self, name: str, part: Any):
        setattr(self, name, part)


def attend(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    *_, heads, width = inputs["value"].shape
    same(config, num_heads=heads, head_dim=width, num_points=inputs["attention_weights"].shape[-1])
    read = deformable_attention(
        inputs["value"],
        [(rows, columns) for rows, columns in config["spatial_shapes"]],
        inputs["sampling_locations"],
        inputs["attention_weights"],
    )
    return {"output": rearrange(read, "b q h d -> b q (h d)")}


def attention_module(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
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


def positions(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    grid = (config["H"], config["W"])
    extent = config["scale"]
    table = sine_positions(
        2 * config["num_feats"],
        grid,
        temperature=config["temperature"],
        extent=extent if config["normalize"] else None,
        epsilon=config["eps"],
    )
    return {"pos": nchw(table[None])}


def check_positions(config: Fields, width: int) -> None:
    """Refuse sine encodings other than the decoders'."""
    same(config, num_feats=width // 2)
    only(config, normalize=(True,))


def mlp_hidden(config: Fields, width: int) -> int:
    """Hidden width of a feed-forward."""
    same(config, embed_dims=width)
    only(config, num_fcs=(2,), ffn_drop=(0.0,), dropout_layer=(None,), add_identity=(True,))
    only(config["act_cfg"], type=("ReLU",), inplace=(True, False))  # the same numbers
    return config["feedforward_channels"]


def decoder_options(config: Fields, width: int) -> dict[str, Any]:
    """The options of `PixelDecoder` from the original's settings, for features of a width."""
    encoder, norm, strides = config["encoder"], config["norm_cfg"], config["strides"]
    layer = encoder["layer_cfg"]
    attention = layer["self_attn_cfg"]
    only(config, type=("mmdet.MSDeformAttnPixelDecoder",), num_outs=(NUM_LEVELS,))
    only(norm, type=("GN",))
    only(config["act_cfg"], type=("ReLU",))
    only(encoder, init_cfg=(None,))
    same(attention, embed_dims=width)
    only(attention, num_levels=(NUM_LEVELS,), dropout=(0.0,), batch_first=(True,))
    only(attention, norm_cfg=(None,), init_cfg=(None,))
    only(attention, im2col_step=(64,))  # how much is computed at a time
    check_positions(config["positional_encoding"], width)
    # They scale places and sides alike, so that their order is all that matters.
    if len(strides) != NUM_LEVELS + 1 or strides != sorted(strides):
        raise ValueError(f"strides are {strides}; vadapt takes {NUM_LEVELS + 1}, fine to coarse")
    return {
        "depth": encoder["num_layers"],
        "num_heads": attention["num_heads"],
        "hidden": mlp_hidden(layer["ffn_cfg"], width),
        "num_points": attention["num_points"],
        "num_groups": norm["num_groups"],
    }


def pixel_decoder(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    decoder = PixelDecoder(
        config["in_channels"],
        width=config["feat_channels"],
        outputs=config["out_channels"],
        **decoder_options(config, config["feat_channels"]),
        rngs=nnx.Rngs(0),
    )
    named = {f"decode_head.pixel_decoder.{name}": value for name, value in params.items()}
    model = imported(Headed(Holder("pixel_decoder", decoder)), named)
    features, memories = model.head.pixel_decoder(feature_maps(inputs))
    found = {f"memory{i}": nchw(memory) for i, memory in enumerate(memories)}
    return {"mask_features": nchw(features), **found}


def feature_maps(inputs: Arrays) -> list[Any]:
    number = sum(name.startswith("feat") for name in inputs)
    return [nhwc(inputs[f"feat{i}"]) for i in range(number)]


def attention_heads(config: Fields, width: int) -> int:
    """Heads of an attention of the decoder."""
    same(config, embed_dims=width)
    only(config, attn_drop=(0.0,), proj_drop=(0.0,), dropout_layer=(None,), batch_first=(True,))
    return config["num_heads"]


def build_head(config: Fields, linked: bool) -> Mask2FormerHead:
    """The head of a golden file's settings, those of its loss included."""
    width, decoder = config["feat_channels"], config["transformer_decoder"]
    encoder, layer = decoder_options(config["pixel_decoder"], width), decoder["layer_cfg"]
    heads = attention_heads(layer["self_attn_cfg"], width)
    same(layer["cross_attn_cfg"], num_heads=heads)
    attention_heads(layer["cross_attn_cfg"], width)
    only(config, num_transformer_feat_level=(NUM_LEVELS,), align_corners=(False,))
    only(config, enforce_decoder_input_project=(False,))
    only(decoder, return_intermediate=(True,), init_cfg=(None,))
    check_positions(config["positional_encoding"], width)
    if not linked:
        only(config, replace_query_feat=(False,))
    return Mask2FormerHead(
        config["in_channels"],
        config["num_classes"],
        num_queries=config["num_queries"],
        linked=linked,
        replace_query_feat=config.get("replace_query_feat", False),
        width=width,
        outputs=config["out_channels"],
        depth=decoder["num_layers"],
        num_heads=heads,
        hidden=mlp_hidden(layer["ffn_cfg"], width),
        encoder_depth=encoder["depth"],
        encoder_heads=encoder["num_heads"],
        encoder_hidden=encoder["hidden"],
        num_points=encoder["num_points"],
        num_groups=encoder["num_groups"],
        loss_points=settings_of_head(config).num_points,
        rngs=nnx.Rngs(0),
    )


def head(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    queries = inputs.get("query")
    model = Headed(build_head(config, linked=queries is not None))
    model = imported(model, {f"decode_head.{name}": value for name, value in params.items()})
    found = model.head(feature_maps(inputs), queries)
    outputs = {f"cls{i}": classes for i, classes in enumerate(found.classes)}
    return {**outputs, **{f"mask{i}": masks for i, masks in enumerate(found.masks)}}


def scores(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    found = semantic_scores(inputs["cls"], inputs["mask"], tuple(config["img_shape"]))
    return {"seg_logits": nchw(found)}


MODULES = {
    "ms_deform_attn": attend,
    "MultiScaleDeformableAttention": attention_module,
    "SinePositionalEncoding": compiled(positions),
    "MSDeformAttnPixelDecoder": pixel_decoder,
    "ReinMask2FormerHead": head,
    "Mask2FormerHead": head,
    "semantic_inference": compiled(scores),
}
