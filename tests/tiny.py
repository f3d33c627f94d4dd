"""Backbones that are small enough for processes that tests start; they go by their places."""

from vadapt.backbones.vit import ViT, vit
from vadapt.options import takes


@takes(ViT)
def one_block(**options):
    """The micro ViT with one of its six blocks."""
    return vit("micro", **{"depth": 1, **options})
