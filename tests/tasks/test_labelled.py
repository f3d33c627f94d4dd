"""Labeled pixels on their way into a recipe's batches stay what they were, to the bit."""

import hashlib
import importlib

import numpy as np
import pytest

from vadapt.data.transforms import apply_all
from vadapt.tasks import labelled

# Hashes of what they made of `records` when whole images were resized and colors went by float64.
STREAMS = {
    "linear_dinov2": "bd3bf961bcbfed85",
    "rein_cityscapes": "1853787a6e91165c",
    "spm_ade20k": "ef52b8f2135b88e6",
    "spm_cityscapes": "71d3f86a43a0d005",
}


def records():
    """Images of three sizes, of patches with noise, and their masks."""
    rng = np.random.default_rng(7)
    for height, width in ((96, 160), (130, 90), (64, 200)):
        patches = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
        image = patches.repeat(8, 0).repeat(8, 1)[:height, :width]
        image = image + rng.integers(-9, 10, image.shape)
        mask = rng.integers(0, 5, (height // 16 + 1, width // 16 + 1)).astype(np.uint8)
        mask = mask.repeat(16, 0).repeat(16, 1)[:height, :width]
        mask[:5] = 255
        yield {"image": image.clip(0, 255).astype(np.uint8), "mask": mask}


@pytest.mark.parametrize("recipe", STREAMS)
def test_a_recipes_crops_are_what_they_were(recipe):
    data = importlib.import_module(f"vadapt.configs.{recipe}").get_config().data
    data.image_size = tuple(side // 8 for side in data.image_size)
    data.short_edges = tuple(side // 8 for side in data.short_edges)
    data.longest //= 8
    feed = labelled.training_feed(data)
    digest = hashlib.sha256()
    for number, record in enumerate(records()):
        for seed in range(8):
            rng = np.random.default_rng((number, seed))
            made = apply_all(feed.transforms, record, rng)
            for name in feed.fields:
                digest.update(f"{name}{made[name].dtype}{made[name].shape}".encode())
                digest.update(np.ascontiguousarray(made[name]).tobytes())
            digest.update(rng.bytes(4))  # as many draws as before
    assert digest.hexdigest()[:16] == STREAMS[recipe]
