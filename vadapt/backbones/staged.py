"""Backbones of stages: maps that get coarser, and features by stage."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.images import check_images
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import Passed, Trunk, run_blocks


class Staged(Trunk):
    """A backbone whose blocks stand in stages; each stage gives one map.

    A kind of it sets the four attributes below and overrides `enter` and, where it has norms for
    maps that leave, `leave`. Blocks are called as block(map, key) and keep the map's shape, but
    for the first of a stage; a method that adapts one replaces it in `stages`. Where blocks take
    tokens instead, `advance` makes these of the map, and `context` says what else blocks take.
    `features` counts stages; hooks count blocks, through all stages.
    """

    counts = "stages"
    stages: nnx.List[Any]  # an nnx.List of blocks a stage
    widths: tuple[int, ...]  # channels of the stages' maps
    stem_width: int  # channels of what the first stage's blocks take
    strides: tuple[int, ...]  # pixels of the image a step in the stages' maps

    @property
    def depth(self) -> int:
        return len(self.stages)

    @property
    def ends(self) -> tuple[int, ...]:
        """The number of the last block of each stage."""
        return tuple(end - 1 for end in itertools.accumulate(map(len, self.stages)))

    def enter(self, x: Float[Array, "b h w c"], stage: int) -> Float[Array, "b h2 w2 d"]:
        """Return the input of a stage's first block, of the images (stage 0) or the last map."""
        raise NotImplementedError

    def advance(self, x: Tokens, stage: int) -> Tokens:
        """Return what a stage's first block takes, of the images (stage 0) or the last stage's."""
        return x.with_array(self.enter(x.array, stage))

    def context(self, x: Tokens) -> tuple[Any, ...]:
        """Return what blocks are called with besides an array and a key."""
        return ()

    def __call__(
        self, images: Float[Array, "b h w c"], *, key: OptionalKey = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The last stage's map; a key makes the call a training one (drop path acts)."""
        return self.features(images, as_grid=True, key=key)

    def run(
        self,
        images: Float[Array, "b h w c"],
        taps: Collection[int] = (),
        *,
        key: OptionalKey = None,
    ) -> Passed:
        if self.plan is not None:
            raise ConfigError(f"{type(self).__name__} has stages, which run in their order alone")
        check_images(images, self.in_channels)
        keys = split_key(key, sum(map(len, self.stages)))
        hooks = self.begin(images)
        passed = Passed(Tokens(hooks.look(images, self.glance)), {}, hooks)
        seen, first = {}, 0
        for stage in range(max(taps, default=self.depth - 1) + 1):
            blocks, end = self.stages[stage], self.ends[stage]
            passed = run_blocks(
                blocks,
                self.advance(passed.x, stage),
                hooks=passed.hooks,
                taps=(end,),
                keys=keys[first : end + 1],
                context=self.context,
                first=first,
            )
            seen[stage], first = passed.seen[end], end + 1
        return passed._replace(seen=seen)
