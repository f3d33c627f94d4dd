"""Names of DINOv3's ViTs in Hugging Face's files."""

from __future__ import annotations

from vadapt.weights.tables import Rule, Table, joined, linear, norm

# Models in memory have it, files do not.
_PREFIX = r"(?:|model\.)"


def _block_rules(gated: bool) -> tuple[Rule, ...]:
    name, path = _PREFIX + r"layer\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    thirds = [name + rf"attention\.{part}_proj" for part in "qkv"]
    up, down = name + r"mlp\.up_proj", name + r"mlp\.down_proj"
    plain = (*linear(up, mlp + "fc1"), *linear(down, mlp + "fc2"))
    gate = (*joined([name + r"mlp\.gate_proj", up], mlp + "w12"), *linear(down, mlp + "w3"))
    return (
        *norm(name + "norm1", path + "attn/norm"),
        # Keys have no bias.
        Rule(thirds[0] + r"\.bias", attn + "q_bias"),
        Rule(thirds[2] + r"\.bias", attn + "v_bias"),
        *joined(thirds, attn + "qkv"),
        *linear(name + r"attention\.o_proj", attn + "proj"),
        Rule(name + r"layer_scale1\.lambda1", path + "attn/scale/gamma"),
        *norm(name + "norm2", path + "mlp/norm"),
        *(gate if gated else plain),
        Rule(name + r"layer_scale2\.lambda1", path + "mlp/scale/gamma"),
    )


def _table(family: str, gated: bool) -> Table:
    return Table(
        family=family,
        backbone=(
            Rule(r"embeddings\.cls_token", "cls_token", "vector"),
            Rule(r"embeddings\.register_tokens", "registers", "table"),
            Rule(r"embeddings\.patch_embeddings\.weight", "patch_embed/proj/kernel", "conv"),
            Rule(r"embeddings\.patch_embeddings\.bias", "patch_embed/proj/bias"),
            *_block_rules(gated),
            *norm("norm", "norm"),
        ),
        unused=r"embeddings\.mask_token",
    )


DINOV3_HF = _table("dinov3_hf", gated=False)
DINOV3_HF_GATED = _table("dinov3_hf_gated", gated=True)  # the largest
