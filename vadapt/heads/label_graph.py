"""GKGNet's label branch: labels are nodes that take from the patches of every map.

Source: GKGNet, arXiv:2308.14378, released code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.backbones.graphs import GraphBlock
from vadapt.heads.linear import LabelPredictions
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.linear import uniform
from vadapt.partition import Head, mark

SMALL = nnx.initializers.normal(0.01)


class LabelBlock(GraphBlock):
    """A graph block whose nodes are labels; their neighbours are places of a map, as they are."""

    def __call__(
        self,
        labels: Float[Array, "b l d"],
        features: Float[Array, "b h w d"],
        key: OptionalKey = None,
    ) -> tuple[Float[Array, "b l d"], Int[Array, "b g l k"]]:
        """The labels, and the places that each took from, by group, in raster order."""
        places = rearrange(features, "b h w d -> b (h w) d")
        return self.update(labels, lambda nodes: places, key=key)


class OwnRow(nnx.Module):
    """A linear layer of which each label has its own output alone: the diagonal."""

    def __init__(self, width: int, num_labels: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(SMALL(rngs.params(), (width, num_labels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_labels,), jnp.float32))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l"]:
        y = jnp.einsum("bld,dl->bl", x, self.kernel[...])
        return y + jnp.broadcast_to(self.bias[...], y.shape)


class LabelGraph(nnx.Module):
    """Scores of labels from maps, fine to coarse or of one stride, of any backbone.

    Labels start from a table, the same for every image, and take from one map after the other; an
    affine layer leads from a map's width to the next one's. A label's logit is one row's product
    with its node and another's with the mean of the last map.

    Args:
        widths: channels of the maps.
        groups, k: of the graphs between labels and places, see `graphs.GraphConv`.
        depth: blocks on the last map; the others have one each.
        drop_path_rates: of the blocks on each map; none for 0. GKGNet has those of the first
            blocks of its backbone's stages.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_labels: int,
        *,
        groups: int = 2,
        k: int = 9,
        depth: int = 1,
        drop_path_rates: Sequence[float] = (),
        rngs: nnx.Rngs,
    ):
        number = len(widths)
        rates = drop_path_rates or (0.0,) * number
        self.table = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (num_labels, widths[0])))

        def blocks(i: int) -> list[LabelBlock]:
            options = {"groups": groups, "k": k, "drop_path_rate": rates[i]}
            times = depth if i == number - 1 else 1
            return [LabelBlock(widths[i], **options, rngs=rngs) for _ in range(times)]

        self.blocks = nnx.List([nnx.List(blocks(i)) for i in range(number)])
        self.widen = nnx.List([_affine(a, b, rngs) for a, b in itertools.pairwise(widths)])
        self.fc1 = OwnRow(widths[-1], num_labels, rngs=rngs)
        self.fc2 = nnx.Linear(widths[-1], num_labels, kernel_init=SMALL, rngs=rngs)
        mark(self, Head)

    def __call__(
        self, maps: Sequence[Float[Array, "b _h _w _d"]], key: OptionalKey = None
    ) -> LabelPredictions:
        """Logits, and the places of each map that every label took from in its last block there."""
        labels, chosen = self.nodes(maps, key)
        return LabelPredictions(self.logits(labels, maps[-1].mean(axis=(1, 2))), chosen)

    def nodes(
        self, maps: Sequence[Float[Array, "b _h _w _d"]], key: OptionalKey = None
    ) -> tuple[Float[Array, "b l d"], tuple[Int[Array, "b g l k"], ...]]:
        """The labels' nodes after the last map, and the places that they took from in each."""
        table = self.table[...].astype(maps[0].dtype)
        labels = jnp.broadcast_to(table, (maps[0].shape[0], *table.shape))
        keys = iter(split_key(key, sum(map(len, self.blocks))))
        chosen: list[Array] = []
        for i, (features, blocks) in enumerate(zip(maps, self.blocks, strict=True)):
            labels = self.widen[i - 1](labels) if i else labels
            for block in blocks:
                labels, ids = block(labels, features, next(keys))
                chosen[i:] = [ids]
        return labels, tuple(chosen)

    def logits(
        self, labels: Float[Array, "b l d"], mean: Float[Array, "b d"]
    ) -> Float[Array, "b l"]:
        """Each label's own row of both layers, of its node and of the mean of the last map."""
        return self.fc1(labels) + self.fc2(mean)


def _affine(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = uniform(inputs**-0.5)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)
