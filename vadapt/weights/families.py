"""All name tables, and which of them a file is of."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from vadapt.errors import WeightsError
from vadapt.weights import mmselfsup, vig
from vadapt.weights.clip import CLIP, CLIP_HF, CLIP_TOWER, SLIP
from vadapt.weights.convnext import CONVNEXT, CONVNEXT_HF, CONVNEXT_MM, CONVNEXT_TIMM
from vadapt.weights.dinov2 import DINOV2, DINOV2_HF
from vadapt.weights.dinov3 import DINOV3_HF, DINOV3_HF_GATED
from vadapt.weights.eva02 import EVA02
from vadapt.weights.mae import MAE
from vadapt.weights.rein import REIN, with_rein
from vadapt.weights.resnet import RESNET, RESNET_HF, RESNET_V1C, RESNET_V1C_TIMM
from vadapt.weights.sam import SAM, SAM_HF
from vadapt.weights.siglip import SIGLIP_HF
from vadapt.weights.tables import Table
from vadapt.weights.upernet import PAD_SEGMENTER
from vadapt.weights.vit import VIT_HF

_BACKBONES: tuple[Table, ...] = (
    *(MAE, VIT_HF),
    *(CLIP, CLIP_TOWER, CLIP_HF, SLIP, SIGLIP_HF),
    *(DINOV2, DINOV2_HF, DINOV3_HF, DINOV3_HF_GATED),
    EVA02,
    *(SAM, SAM_HF),
    *(RESNET, RESNET_V1C, RESNET_V1C_TIMM, RESNET_HF),
    *(CONVNEXT, CONVNEXT_MM, CONVNEXT_TIMM, CONVNEXT_HF),
)
# Among equals the first counts: a trunk alone is a MAE's, not a whole segmenter's.
FAMILIES: tuple[Table, ...] = (REIN, *map(with_rein, _BACKBONES), PAD_SEGMENTER)
# What trainers of several processes, and of whole systems, put before every name.
PREFIXES = ("module.", "backbone.")
# What stands beside `backbone.` in whole systems.
BESIDE = ("decode_head.", "auxiliary_head.", "neck.")


def unwrapped(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays without a prefix that all names share, and MMSelfSup's under official names.

    Names in `BESIDE` have no part in this.
    """
    for prefix in PREFIXES:
        arrays = mmselfsup.renamed(arrays)
        if arrays and all(name.startswith((prefix, *BESIDE)) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays


def family_of(arrays: Mapping[str, Any]) -> str:
    """The family whose names these are: that of one of `FAMILIES`, or "vadapt".

    Raises:
        WeightsError: no family has a single one of these names.
    """
    table = find_family(unwrapped(arrays))
    if table is None and not any("/" in name for name in arrays):
        raise WeightsError(f"names of no family that is known here, such as {sorted(arrays)[:4]}")
    return "vadapt" if table is None else table.family


def find_family(
    arrays: Mapping[str, Any], places: Container[str] = (), backbone: str = ""
) -> Table | None:
    """The table that knows most names, among equals the one that leaves fewest without a place.

    A DINOv2 file has names of a MAE file only, one of which (`mask_token`) has no place in a ViT.
    ViG's and GKGNet's files have tables of their own. None for vadapt's own names.

    Args:
        arrays: as `unwrapped` gives them.
        places: the model's paths.
        backbone: as in `tables.convert`.
    """

    def left_over(table: Table) -> int:
        paths = (table.find(name, backbone) for name in arrays if not table.passes_over(name))
        return sum(found is None or found[0] not in places for found in paths)

    if made := vig.table_of(arrays):
        return made
    known = [sum(map(table.knows, arrays)) for table in FAMILIES]
    if any("/" in name for name in arrays) or not max(known):  # PyTorch's names have dots
        return None
    best = [table for table, number in zip(FAMILIES, known, strict=True) if number == max(known)]
    return min(best, key=left_over)
