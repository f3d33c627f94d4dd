"""Learning rates by depth: the earlier a layer of the backbone, the slower it learns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from vadapt.errors import ConfigError


def layer_factors(paths: Sequence[str], decay: float) -> dict[str, float]:
    """A learning-rate factor for every trained path: decay^(depth - i) for block i of the backbone.

    Blocks count through all stages of a backbone that has stages; what leads into a later stage
    goes with its first block. What comes before block 0 (patches, positions, tokens, a stem) has
    decay^(depth + 1); what is outside the backbone, and its final norms, keeps 1.

    Raises:
        ConfigError: no block of a backbone trains.

    Source: PAD's released code (`param_groups_lrd`); there embeddings are layer 0, block i is
    layer i + 1, and the exponent is depth + 1 minus the layer.
    """
    layers = _Layers.of(paths)
    if not layers.depth:
        raise ConfigError(
            "config.optimizer.layer_decay: no block of a backbone trains, so that there is no "
            "layer to count from; 1.0 is without"
        )
    return {path: decay ** layers.distance(path) for path in paths}


class _Layers(NamedTuple):
    """Where the parts of a backbone stand among its blocks, by the paths of what trains."""

    starts: tuple[int, ...]  # number of the first block of each stage, and that of all blocks
    entered: int  # the stage that the first of `downsamples` leads into

    @classmethod
    def of(cls, paths: Sequence[str]) -> _Layers:
        def most(pattern: str) -> int:
            found = (re.match(f"backbone/{pattern}/", path) for path in paths)
            return max((int(m[1]) + 1 for m in found if m), default=0)

        stages, downsamples = most(r"stages/(\d+)/\d+"), most(r"downsamples/(\d+)")
        numbers = [most(rf"stages/{stage}/(\d+)") for stage in range(stages)]
        starts = itertools.accumulate(numbers or [most(r"blocks/(\d+)")], initial=0)
        return cls(tuple(starts), stages - downsamples if downsamples else 0)

    @property
    def depth(self) -> int:
        return self.starts[-1]

    def distance(self, path: str) -> int:
        """How many layers a part stands before what comes after all blocks, which is 0."""
        if found := re.match(r"backbone/blocks/(\d+)/", path):
            return self.depth - int(found[1])
        if found := re.match(r"backbone/stages/(\d+)/(\d+)/", path):
            return self.depth - self.starts[int(found[1])] - int(found[2])
        if found := re.match(r"backbone/downsamples/(\d+)/", path):
            stage = int(found[1]) + self.entered
            return self.depth - self.starts[stage] + (stage == 0)
        return self.depth + 1 if re.match(rf"backbone/({_BEFORE})\b", path) else 0


_BEFORE = "patch_embed|cls_token|pos_embed|registers|first_norm|stem|positions"
