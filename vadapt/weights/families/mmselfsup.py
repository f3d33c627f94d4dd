"""MMSelfSup's names of MAE and MILAN checkpoints, turned into the official ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vadapt.weights.tables import Family

# No official file has names of these forms, MMSelfSup's pre-training files have many.
SIGN = re.compile(r"(backbone\.layers|neck\.decoder_blocks|target_generator\.tokenizer)\..*")

# Applied to every name in this order, each to what the former left.
STEPS: tuple[tuple[str, str], ...] = (
    (r"^target_generator\.tokenizer\.", ""),  # MILAN's teacher, under CLIP's own names
    (r"^backbone\.ln1\.", "norm."),
    (r"^neck\.ln1\.", "decoder_norm."),
    (r"^(backbone|neck)\.", ""),
    (r"^layers\.", "blocks."),
    (r"^((?:decoder_)?blocks\.\d+)\.ln([12])\.", r"\1.norm\2."),
    (r"^((?:decoder_)?blocks\.\d+)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"^((?:decoder_)?blocks\.\d+)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
)


def renamed(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays under official names if they are MMSelfSup's, else as they are.

    Names that no step knows stay, and are then reported as unexpected like any other.
    """
    if not any(SIGN.fullmatch(name) for name in arrays):
        return arrays
    return {official_name(name): array for name, array in arrays.items()}


def official_name(name: str) -> str:
    """One of MMSelfSup's names as the MAE, MILAN or CLIP checkpoints have it.

    >>> official_name("backbone.layers.3.ffn.layers.0.0.weight")
    'blocks.3.mlp.fc1.weight'
    """
    if name.startswith("target_generator."):
        return re.sub(*STEPS[0], name)  # CLIP's `ln_1` and `transformer` are right already
    for pattern, replacement in STEPS[1:]:
        name = re.sub(pattern, replacement, name)
    return name


FAMILY = Family(renamed=renamed, rank=12)
