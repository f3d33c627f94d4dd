"""What backbones of stages have in common: maps that get coarser, and features by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vadapt import remat
from vadapt.backbones.between import Between, begin
from vadapt.nn.blocks import block_numbers
from vadapt.nn.drop import OptionalKey, split_key


class Staged(nnx.Module):
    """A backbone whose blocks stand in stages; each stage gives one map.

    A kind of it sets the four attributes below and overrides `enter` and, where it has norms for
    maps that leave, `leave`. Blocks are called as block(map, key) and keep the map's shape, but
    for the first of a stage; a method that adapts one replaces it in `stages`, or puts something
    around it (`layers`).
    """

    stages: nnx.List[Any]  # an nnx.List of blocks a stage
    widths: tuple[int, ...]  # channels of the stages' maps
    stem_width: int  # channels of what the first stage's blocks take
    strides: tuple[int, ...]  # pixels of the image a step in the stages' maps
    adapter: Any = None  # what a method puts around the blocks, one of it a stage
    between: Any = None  # what a method does between stages, see `between.begin`

    def enter(self, x: Float[Array, "b h w c"], stage: int) -> Float[Array, "b h2 w2 d"]:
        """What a stage's first block takes, of the images (stage 0) or the last stage's map."""
        raise NotImplementedError

    def leave(self, x: Float[Array, "b h w d"], stage: int) -> Float[Array, "b h w d"]:
        """The map of a stage as others see it."""
        return x

    def layers(self, stage: int) -> Sequence[Any]:
        """A stage's blocks as they are called, with what a method has put around them."""
        blocks = self.stages[stage]
        return blocks if self.adapter is None else self.adapter[stage].around(blocks)

    def __call__(
        self, images: Float[Array, "b h w c"], *, key: OptionalKey = None
    ) -> Float[Array, "b h2 w2 d"]:
        """The last stage's map; a key makes the call a training one (drop path acts)."""
        return self.features(images, as_grid=True, key=key)

    def features(
        self,
        images: Float[Array, "b h w c"],
        layers: int | Sequence[int] = -1,
        *,
        as_grid: bool = False,
        norm: bool = True,
        key: OptionalKey = None,
        between: Between | None = None,
    ) -> Any:
        """Outputs of chosen stages.

        Args:
            images: normalised, of any size.
            layers: stage numbers, negative from the end; one number gives one array, a sequence
                a tuple in that order.
            as_grid: return maps [b, h, w, d]; else tokens [b, h * w, d] in raster order.
            norm: apply the stages' output norms; without effect where a model has none.
            key: given in training only.
            between: what to call between stages; None for what a method has put there.

        Raises:
            ConfigError: a stage number that does not exist.
        """
        wanted = block_numbers(layers, len(self.stages), "stages")
        keys = iter(split_key(key, sum(map(len, self.stages))))
        outputs: dict[int, Array] = {}
        between, x = between or begin(self.between, images), images
        for i in range(max(wanted) + 1):
            x = self.enter(x, i)
            if not i:
                _, x = between(-1, x)
            for block in self.layers(i):
                x = remat.call(block, x, next(keys))
            seen, x = between(i, x)
            if i in wanted:
                y = self.leave(seen, i) if norm else seen
                outputs[i] = y if as_grid else rearrange(y, "b h w d -> b (h w) d")
        return outputs[wanted[0]] if isinstance(layers, int) else tuple(outputs[i] for i in wanted)
