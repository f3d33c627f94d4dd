"""Mask2Former's head, for classes of pixels: queries that each give a mask and its class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vadapt import remat
from vadapt.errors import ConfigError
from vadapt.heads.pixel_decoder import NUM_LEVELS, Map, PixelDecoder, size_of
from vadapt.kernels.attention import attention
from vadapt.losses import mask2former as losses
from vadapt.nn.drop import OptionalKey
from vadapt.nn.linear import uniform
from vadapt.nn.mlp import FeedForward
from vadapt.nn.norms import LayerNorm
from vadapt.nn.positions import sine_positions
from vadapt.nn.resize import resize_bilinear
from vadapt.partition import Head, mark


class Predictions(NamedTuple):
    """Predictions of the queries before the first decoder layer and after each; in float32."""

    classes: Float[Array, "l b q k1"]  # logits; the last class is "no object"
    masks: Float[Array, "l b q h w"]  # logits, at the finest map's size


class Attention(nnx.Module):
    """Multi-head attention of queries to keys; one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_normal()
        self.num_heads = num_heads
        self.in_proj = nnx.Linear(width, 3 * width, kernel_init=init, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, kernel_init=init, rngs=rngs)

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        keys: Float[Array, "b n d"],
        values: Float[Array, "b n d"],
        blocked: Bool[Array, "b q n"] | None = None,
    ) -> Float[Array, "b q d"]:
        """Return what the queries take.

        Args:
            blocked: the keys that a query does not see, for all heads.
        """
        kernels = jnp.split(self.in_proj.kernel[...], 3, axis=1)
        assert self.in_proj.bias is not None
        biases = jnp.split(self.in_proj.bias[...], 3)
        q, k, v = (
            rearrange(
                x @ kernel + jnp.broadcast_to(bias, x.shape),
                "b n (h d) -> b n h d",
                h=self.num_heads,
            )
            for x, kernel, bias in zip((queries, keys, values), kernels, biases, strict=True)
        )
        out = attention(q, k, v, mask=None if blocked is None else ~blocked)
        return self.out_proj(rearrange(out, "b q h d -> b q (h d)"))


class DecoderLayer(nnx.Module):
    """Queries read a map inside their masks, then each other; normed after each addition."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, rngs: nnx.Rngs):
        self.cross_attn = Attention(width, num_heads, rngs=rngs)
        self.self_attn = Attention(width, num_heads, rngs=rngs)
        self.mlp = FeedForward(width, hidden, rngs=rngs)
        self.norms = nnx.List([LayerNorm(width, epsilon=1e-5) for _ in range(3)])

    def __call__(
        self,
        x: Float[Array, "b q d"],
        places: Float[Array, "b q d"],
        keys: Float[Array, "b n d"],
        values: Float[Array, "b n d"],
        blocked: Bool[Array, "b q n"],
    ) -> Float[Array, "b q d"]:
        x = self.norms[0](x + self.cross_attn(x + places, keys, values, blocked))
        x = self.norms[1](x + self.self_attn(x + places, x + places, x))
        return self.norms[2](x + self.mlp(x))


class Mask2FormerHead(nnx.Module):
    """Pixel decoder, transformer decoder, and predictions after each of its layers.

    Args:
        inputs: widths of the maps of strides 4, 8, 16, 32.
        linked: whether a call brings the queries (Rein's); else the head has its own.
        replace_query_feat: of linked queries: whether they give the first contents of the queries
            too, through a linear layer, or their positions only, as in Rein's releases for CLIP and
            SAM, where the contents are learned.
        num_points: that a query of the pixel decoder looks at, a level and head.
        encoder_heads: heads of the pixel decoder; None for `num_heads`.
        loss_points: of a mask that the loss looks at; 112 x 112 as published.

    Source: Mask2Former, arXiv:2112.01527; Rein, arXiv:2312.04265, for linked queries.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        num_classes: int,
        *,
        num_queries: int = 100,
        linked: bool = True,
        replace_query_feat: bool = True,
        width: int = 256,
        outputs: int = 256,
        depth: int = 9,
        num_heads: int = 8,
        hidden: int = 2048,
        encoder_depth: int = 6,
        encoder_heads: int | None = None,
        encoder_hidden: int = 1024,
        num_points: int = 4,
        num_groups: int = 32,
        loss_points: int = 12544,
        rngs: nnx.Rngs,
    ):
        def table(rows: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (rows, width)))

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            init = uniform(inputs**-0.5)
            return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)

        self.num_classes, self.num_queries, self.linked = num_classes, num_queries, linked
        self.loss_points = loss_points
        self.pixel_decoder = PixelDecoder(
            inputs,
            width=width,
            outputs=outputs,
            depth=encoder_depth,
            num_heads=encoder_heads or num_heads,
            hidden=encoder_hidden,
            num_points=num_points,
            num_groups=num_groups,
            rngs=rngs,
        )
        self.layers = nnx.List(
            [DecoderLayer(width, num_heads, hidden, rngs=rngs) for _ in range(depth)]
        )
        self.post_norm = LayerNorm(width, epsilon=1e-5)
        self.level_embed = table(NUM_LEVELS)
        replaced = linked and replace_query_feat
        self.query_embed = None if linked else table(num_queries)
        self.query_feat = None if replaced else table(num_queries)
        self.queries_to_feat = linear(width, width) if replaced else None
        self.cls_embed = linear(width, num_classes + 1)
        self.mask_embed = nnx.List(
            [linear(width, width), linear(width, width), linear(width, outputs)]
        )
        self.reads = ("queries",) if linked else ()  # outputs of the backbone's adapters
        mark(self, Head)

    def __call__(
        self,
        maps: Sequence[Map],
        queries: Float[Array, "*b q d"] | None = None,
        key: OptionalKey = None,
    ) -> Predictions:
        """Predictions before the first decoder layer and after each.

        Args:
            maps: of strides 4, 8, 16, 32, fine to coarse; any sizes do.
            queries: of a linked head, one for each mask, the same for all images or each
                image's own; their number is free unless the head has contents of its own for
                them.
            key: of training, for which this head has no use.

        Raises:
            ConfigError: queries for a head that has its own, or none for one that has not.
        """
        x, places = self._first(queries)
        features, memories = self.pixel_decoder(maps)
        x, places = (
            jnp.broadcast_to(y.astype(features.dtype), (features.shape[0], *y.shape[-2:]))
            for y in (x, places)
        )
        sources = [self._source(memory, i) for i, memory in enumerate(memories)]
        # Resizing masks is resizing what they are products of.
        small = [
            resize_bilinear(features.astype(jnp.float32), size_of(memory)) for memory in memories
        ]
        found = [x]
        for i, layer in enumerate(self.layers):
            level = i % NUM_LEVELS
            blocked = self._blocked(x, small[level])
            x = remat.call(layer, x, places, *sources[level], blocked)
            found.append(x)
        # All but the last at once: features are read once, and their gradients added up inside of
        # one product. The last by itself, as it is all that scores take.
        parts = [self._predict(jnp.stack(some), features) for some in (found[:-1], found[-1:])]
        return Predictions(*(jnp.concatenate(kind) for kind in zip(*parts, strict=True)))

    def scores(self, predictions: Predictions, size: tuple[int, int]) -> Float[Array, "b h w k"]:
        """Scores of every class at every pixel of an image of `size`, by the last predictions."""
        return semantic_scores(predictions.classes[-1], predictions.masks[-1], size)

    def probabilities(self, scores: Float[Array, "*b k"]) -> Float[Array, "*b k"]:
        """Shares of the classes in `scores`, which are sums over queries and no logits."""
        return scores / jnp.maximum(scores.sum(-1, keepdims=True), jnp.finfo(scores.dtype).tiny)

    def loss(
        self, predictions: Predictions, labels: Int[Array, "b h w"], key: Key[Array, ""]
    ) -> dict[str, Float[Array, ""]]:
        """The terms of the loss, to be summed; `losses.mask2former_loss` with random points."""
        settings = losses.Settings(num_points=self.loss_points)
        return losses.mask2former_loss(
            predictions.classes, predictions.masks, labels, key, settings=settings
        )

    def _first(self, queries: Array | None) -> tuple[Array, Array]:
        """Contents and positions of the queries, each with an axis of images or of one."""
        if (queries is None) == self.linked:
            raise ConfigError(
                "this head has no queries: call it with some, as Rein gives them, or build it with "
                "linked=False"
                if self.linked
                else "this head has its own queries; build it with linked=True for others"
            )
        own = self.query_embed
        places = queries if own is None else own[...]
        assert places is not None
        places = places.reshape(-1, *places.shape[-2:])
        if self.queries_to_feat is not None:
            return self.queries_to_feat(places), places
        assert self.query_feat is not None
        if places.shape[1] != self.num_queries:
            raise ConfigError(f"{places.shape[1]} queries for a head of {self.num_queries}")
        return self.query_feat[...][None], places

    def _source(self, memory: Map, level: int) -> tuple[Array, Array]:
        """Keys and values of a level's map."""
        size, width = size_of(memory), memory.shape[3]
        values = rearrange(memory, "b h w d -> b (h w) d")
        values = values + jnp.broadcast_to(self.level_embed[...][level], values.shape)
        positions = jnp.asarray(sine_positions(width, size).reshape(-1, width), values.dtype)
        return values + jnp.broadcast_to(positions[None], values.shape), values

    def _embed(self, x: Array) -> tuple[Array, Array]:
        """Normed queries, and what their masks are products of."""
        x = self.post_norm(x)
        first, second, third = self.mask_embed
        return x, third(jax.nn.relu(second(jax.nn.relu(first(x)))))

    def _predict(self, x: Float[Array, "l b q d"], features: Map) -> tuple[Array, Array]:
        """Logits of classes and of masks, by queries as several layers left them."""
        x, embedded = self._embed(x)
        masks = jnp.einsum(
            "lbqd,bhwd->lbqhw", embedded, features, preferred_element_type=jnp.float32
        )
        return self.cls_embed(x).astype(jnp.float32), masks

    def _blocked(self, x: Array, features: Map) -> Bool[Array, "b q n"]:
        """The pixels outside each query's mask; none where the mask is empty."""
        embedded = self._embed(jax.lax.stop_gradient(x))[1].astype(jnp.float32)
        masks = jnp.einsum("bqd,bhwd->bqhw", embedded, jax.lax.stop_gradient(features))
        outside = rearrange(masks < 0, "b q h w -> b q (h w)")
        return outside & ~outside.all(axis=-1, keepdims=True)


def semantic_scores(
    classes: Float[Array, "b q k1"], masks: Float[Array, "b q h w"], size: tuple[int, int]
) -> Float[Array, "b _ _ k"]:
    """For every pixel and class, the sum over the queries of P(class) * P(in the mask).

    The masks are resized first (bilinear, half-pixel centres), then squashed; "no object" has a
    share of the classes' softmax, and no score.
    """
    probs = jax.nn.softmax(classes.astype(jnp.float32), axis=-1)[..., :-1]
    masks = jnp.moveaxis(masks.astype(jnp.float32), 1, -1)
    return jnp.einsum("bqk,bhwq->bhwk", probs, jax.nn.sigmoid(resize_bilinear(masks, size)))
