"""The downstream proof: a linear probe of patch features on labelled scenes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vadapt.data.scenes import CLASSES, SceneOptions, Scenes
from vadapt.metrics.linear_probe import patch_labels, probe_confusion, probe_scores
from vadapt.tasks.inputs import normalise
from vadapt.tasks.pixel_reports import class_rows
from vadapt.training.report import Report

# Far from any training seed, so that no scene of the probe was ever trained on.
TRAIN_SEED, TEST_SEED = 900_001, 900_002


class SceneProbe:
    """A linear probe: how well classes of patches can be read from frozen features.

    Fields of `config.eval`: `probe_scenes` (to fit on, and as many to test on) and `probe_view`;
    of `config.data`: `image_size`, `mean`, `std`.
    """

    def __init__(self, config: Any, view: str | None = None):
        self.config = config
        self.view = view or config.eval.probe_view

    @functools.cached_property
    def scenes(self) -> list[tuple[UInt8[np.ndarray, "s h w c"], UInt8[np.ndarray, "s h w"]]]:
        """(images, masks) to fit on and to test on."""
        return [self._render(TRAIN_SEED), self._render(TEST_SEED)]

    def _render(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.config.data.image_size
        number = self.config.eval.probe_scenes
        source = Scenes(
            number,
            view=self.view,
            fields=("image", "mask"),
            seed=seed,
            options=SceneOptions(height=height, width=width),
            cache=False,
        )
        records = [source[i] for i in range(number)]
        return np.stack([r["image"] for r in records]), np.stack([r["mask"] for r in records])

    def __call__(self, backbone: Any) -> dict[str, float]:
        """`probe` (mean IoU over classes) and `probe_accuracy`, both of patches, in [0, 1]."""
        return self._named(self._confusion(backbone))

    def report(self, backbone: Any) -> tuple[dict[str, float], Report]:
        """The same, and classes and confusions of the patches."""
        confusion = self._confusion(backbone)
        rows = class_rows(CLASSES, confusion, "patches")
        return self._named(confusion), Report(rows=rows, by="IoU", confusion=confusion)

    def _named(self, confusion: Int[np.ndarray, "k k+1"]) -> dict[str, float]:
        scores = probe_scores(confusion)
        return {"probe": scores["miou"], "probe_accuracy": scores["accuracy"]}

    def _confusion(self, backbone: Any) -> Int[np.ndarray, "k k+1"]:
        graph, state = nnx.split(backbone)
        tree = nnx.to_pure_dict(state)
        sides = []
        for images, masks in self.scenes:
            labels = patch_labels(masks.astype(np.int32), backbone.patch_size, len(CLASSES))
            features = self._features(graph, tree, images)
            sides += [features.reshape(-1, features.shape[-1]), labels.reshape(-1)]
        return probe_confusion(*sides, num_classes=len(CLASSES))

    def _features(self, graph: Any, tree: Any, images: np.ndarray) -> Float[np.ndarray, "s h w d"]:
        batch = min(64, len(images))
        data = self.config.data
        chunks = []
        for start in range(0, len(images), batch):
            # The last chunk overlaps the one before, so that one shape is compiled.
            start = min(start, len(images) - batch)
            chunk = _grid_features(graph, tree, images[start : start + batch], data.mean, data.std)
            chunks.append((start, np.asarray(chunk, np.float32)))
        features = np.empty((len(images), *chunks[0][1].shape[1:]), np.float32)
        for start, chunk in chunks:
            features[start : start + batch] = chunk
        return features


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _grid_features(graph: Any, tree: Any, images: Array, mean: float, std: float) -> Array:
    return nnx.merge(graph, tree).features(normalise(images, mean, std), as_grid=True)
