"""Names of Swin checkpoints: the official ones, timm's and Hugging Face's.

Official names, which timm had up to 0.8, count what merges patches with the stage before it, timm's
present ones with the stage behind it. Classifiers are passed over by an import and absent from an
export; the norm before them is that of the last of four stages. Windows' indices and masks, which
older files hold, are computed.
"""

from __future__ import annotations

from typing import Any

from vadapt.backbones.swin import PATCH, Swin
from vadapt.weights.tables import Family, Rule, Table, conv, joined, linear, norm
from vadapt.weights.transformers_config import ACTIVATIONS, QKV, Config, Form, first_fields

_LAST = "norms/3"
_COMPUTED = r".*\.(?:relative_position_index|attn_mask)"


def _merge(name: str, path: str) -> tuple[Rule, ...]:
    reduction = Rule(name + r"reduction\.weight", path + "/reduction/kernel", "linear")
    return (*norm(name + "norm", path + "/norm"), reduction)


def _merges_before(name: str) -> tuple[Rule, ...]:
    """Under the number of the stage before it; `name` has that number."""
    return _merge(name + r"\.downsample\.", r"merges/\1")


def _merges_behind(name: str) -> tuple[Rule, ...]:
    """Under the number of the stage behind it."""
    return tuple(
        rule for i in range(3) for rule in _merge(rf"{name}{i + 1}\.downsample\.", f"merges/{i}")
    )


def _plain(merges: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of the official names and timm's, which differ in `merges` alone."""
    block, path = r"layers\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/\2/"
    return (
        *conv(r"patch_embed\.proj", "patch_embed/proj"),
        *norm(r"patch_embed\.norm", "patch_embed/norm"),
        *merges,
        *norm(block + "norm1", path + "attn/norm"),
        *linear(block + r"attn\.(qkv|proj)", path + r"attn/inner/\3"),
        Rule(block + r"attn\.relative_position_bias_table", path + "attn/inner/table"),
        *norm(block + "norm2", path + "mlp/norm"),
        *linear(block + r"mlp\.(fc1|fc2)", path + r"mlp/inner/\3"),
        *norm("norm", _LAST),
        *norm(r"norm(\d)", r"norms/\1"),  # of the official detectors and segmenters
    )


SWIN = Table(
    family="swin",
    backbone=_plain(_merges_before(r"layers\.([0-2])")),
    unused=rf"head\.(?:weight|bias)|{_COMPUTED}",
)

SWIN_TIMM = Table(
    family="swin_timm",
    backbone=_plain(_merges_behind(r"layers\.")),
    unused=rf"head\.fc\..*|{_COMPUTED}",
)

_HF = r"(?:|swin\.)"  # the prefix is that of classifiers
_HF_BLOCK, _PATH = _HF + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/\2/"
_ATTN = _HF_BLOCK + r"attention\."
_THIRDS = (r"(?:self\.query|q_proj)", r"(?:self\.key|k_proj)", r"(?:self\.value|v_proj)")

# Names in files first; models of transformers 5 have others in memory.
SWIN_HF = Table(
    family="swin_hf",
    backbone=(
        *conv(_HF + r"embeddings\.patch_embeddings\.projection", "patch_embed/proj"),
        *norm(_HF + r"embeddings\.norm", "patch_embed/norm"),
        *_merges_before(_HF + r"encoder\.layers\.([0-2])"),
        *norm(_HF_BLOCK + "layernorm_before", _PATH + "attn/norm"),
        *joined([_ATTN + part for part in _THIRDS], _PATH + "attn/inner/qkv"),
        *linear(_ATTN + r"(?:output\.dense|o_proj)", _PATH + "attn/inner/proj"),
        Rule(
            _ATTN + r"(?:self|relative_position_bias)\.relative_position_bias_table",
            _PATH + "attn/inner/table",
        ),
        *norm(_HF_BLOCK + "layernorm_after", _PATH + "mlp/norm"),
        *linear(_HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)", _PATH + "mlp/inner/fc1"),
        *linear(_HF_BLOCK + r"(?:output\.dense|mlp\.fc2)", _PATH + "mlp/inner/fc2"),
        *norm(_HF + "layernorm", _LAST),
        *(
            rule
            for i in range(4)
            for rule in norm(rf"hidden_states_norms\.stage{i + 1}", f"norms/{i}")
        ),
    ),
    unused=rf"classifier\..*|{_HF}embeddings\.mask_token|decoder\..*|{_COMPUTED}",
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    block = model.stages[0][0]
    return {
        **first_fields("SwinModel", "swin", model.patch_embed.proj.kernel),
        "embed_dim": model.stem_width,
        "depths": [len(stage) for stage in model.stages],
        "num_heads": [stage[0].attn.inner.num_heads for stage in model.stages],
        "window_size": block.attn.inner.window,
        "mlp_ratio": block.mlp.inner.fc1.kernel.shape[1] / model.stem_width,
        "qkv_bias": block.attn.inner.qkv.bias is not None,
        "patch_size": PATCH,
        "layer_norm_eps": block.mlp.norm.epsilon,
        "hidden_act": ACTIVATIONS[block.mlp.inner.activation],
    }


FORM = Form(
    *(Swin, "swin_.*", SWIN_HF, _config),
    has={
        "four stages",
        "norm of the last stage",
        "windows of one size",
        "norms' epsilon of 1e-5",
        "known activation",
    },
    may={QKV},
)
FAMILY = Family(
    (SWIN, SWIN_TIMM, SWIN_HF),
    rank=11,
    forms={"swin": FORM},
    configs={"swin": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "window_size": 7}},
)
