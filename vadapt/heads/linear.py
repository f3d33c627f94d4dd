"""Linear classifiers of patches and of images: how far frozen features go by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.errors import ConfigError, nearest
from vadapt.losses import PIXEL_LOSSES
from vadapt.nn.convolutions import FAN_OUT, BatchNorm
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.drop import dropout as drop
from vadapt.nn.resize import resize_bilinear
from vadapt.partition import Head, mark


class LinearHead(nnx.Module):
    """Maps resized to the first one's size, side by side, normalised, and one linear layer.

    With one map it is the linear head of DINOv2's evaluation, with several its multi-scale one.

    Args:
        widths: channels of the maps.
        loss: a name in `vadapt.losses.PIXEL_LOSSES`, or the place of a function like those.

    Source: DINOv2, arXiv:2304.07193, section 7.4.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        loss: str = "cross_entropy",
        rngs: nnx.Rngs,
    ):
        self.pixel_loss = PIXEL_LOSSES[loss]
        self.norm = BatchNorm(sum(widths), rngs=rngs)
        init = nnx.initializers.normal(0.01)
        self.linear = nnx.Linear(sum(widths), num_classes, kernel_init=init, rngs=rngs)
        mark(self, Head)

    def __call__(
        self,
        maps: Sequence[Float[Array, "b _h _w _d"]],
        queries: Any = None,
        key: OptionalKey = None,
    ) -> Float[Array, "b h w k"]:
        size = maps[0].shape[1:3]
        x = jnp.concatenate([resize_bilinear(x, size) for x in maps], axis=-1)
        return self.linear(self.norm(x))

    def scores(
        self, predictions: Float[Array, "b h w k"], size: tuple[int, int]
    ) -> Float[Array, "b _h _w k"]:
        """Class logits of every pixel of an image of this size."""
        return resize_bilinear(predictions.astype(jnp.float32), size)

    def loss(
        self,
        predictions: Float[Array, "b _h _w k"],
        labels: Int[Array, "b h w"],
        key: OptionalKey = None,
    ) -> dict[str, Float[Array, ""]]:
        """Cross-entropy at the labels' size; 255 is ignored."""
        _, height, width = labels.shape
        return {"loss_seg": self.pixel_loss(self.scores(predictions, (height, width)), labels)}


class LabelPredictions(NamedTuple):
    """Predictions of heads for labels of images."""

    logits: Float[Array, "b l"]
    # For each map, the places that every label took from, by group; of heads that choose places.
    chosen: tuple[Int[Array, "b g l k"], ...] = ()


# What an image is classified by, and which outputs of a backbone that takes besides its maps: the
# mean of patches, of prompts, or of both alike ("original" in VPT's code), or the class token.
POOLS: dict[str, tuple[str, ...]] = {
    "img_pool": (),
    "imgprompt_pool": ("prompts",),
    "prompt_pool": ("prompts",),
    "original": ("prompts",),
    "cls": ("class_token",),
}


def pooled(
    map_: Float[Array, "b h w d"],
    prompts: Float[Array, "b p d"] | None,
    pool: str,
    class_token: Float[Array, "b d"] | None = None,
) -> Float[Array, "b d"]:
    """The mean of an image's patches ("img_pool"), prompts ("prompt_pool"), or of them all.

    Or its class token ("cls").

    Raises:
        ConfigError: prompts or class token are wanted, and the backbone gives none; or no such
            pool.

    Source: VPT, arXiv:2203.12119, released code; "original" and "imgprompt_pool" are the same.
    """
    if pool not in POOLS:
        raise ConfigError(f"unknown pool {pool!r}; {nearest(pool, POOLS)}")
    if pool == "cls":
        if class_token is None:
            raise ConfigError(
                "pool 'cls' is the class token, and the backbone gives none: choose 'img_pool', "
                "or a backbone that has one"
            )
        return class_token
    if pool == "img_pool":
        return map_.mean(axis=(1, 2))
    if prompts is None:
        raise ConfigError(
            f"pool {pool!r} is of prompts, and the backbone gives none: apply vpt, or choose "
            "'img_pool'"
        )
    if pool == "prompt_pool":
        return prompts.mean(axis=1)
    patches = map_.reshape(map_.shape[0], -1, map_.shape[-1])
    return jnp.concatenate([prompts, patches], axis=1).mean(axis=1)


class PooledLabels(nnx.Module):
    """A head that classifies one vector per image, with what its subclasses say.

    Args:
        pool: a key of `POOLS`, see `pooled`.
    """

    def __init__(self, pool: str):
        self.pool, self.reads = pool, POOLS.get(pool, ())  # `pooled` refuses others

    def embed(
        self,
        maps: Sequence[Float[Array, "b _h _w _d"]],
        prompts: Float[Array, "b p d"] | None = None,
        class_token: Float[Array, "b d"] | None = None,
    ) -> Float[Array, "b d"]:
        """The vector, by which images are compared, too."""
        return pooled(maps[-1], prompts, self.pool, class_token)

    def classify(self, x: Float[Array, "b d"], key: OptionalKey) -> Float[Array, "b l"]:
        """Logits of that vector."""
        raise NotImplementedError

    def __call__(
        self,
        maps: Sequence[Float[Array, "b _h _w _d"]],
        prompts: Float[Array, "b p d"] | None = None,
        class_token: Float[Array, "b d"] | None = None,
        key: OptionalKey = None,
    ) -> LabelPredictions:
        return LabelPredictions(self.classify(self.embed(maps, prompts, class_token), key))


class LinearLabels(PooledLabels):
    """The mean of the last map, or the class token, normalised, and one linear layer.

    Args:
        pool: a key of `POOLS`, see `pooled`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_labels: int,
        *,
        pool: str = "img_pool",
        rngs: nnx.Rngs,
    ):
        super().__init__(pool)
        self.norm = BatchNorm(widths[-1], rngs=rngs)
        init = nnx.initializers.normal(0.01)
        self.linear = nnx.Linear(widths[-1], num_labels, kernel_init=init, rngs=rngs)
        mark(self, Head)

    def classify(self, x: Float[Array, "b d"], key: OptionalKey) -> Float[Array, "b l"]:
        return self.linear(self.norm(x))


class VPTLabels(PooledLabels):
    """VPT's classifier: of the class token, hidden layers if asked for, and one linear layer.

    Args:
        pool: a key of `POOLS`, see `pooled`.
        num_hidden: layers before the last, each with ReLU, batch norm and dropout behind it.
        dropout: rate behind hidden layers, in training.
        prior: the share of images that a new head gives to each label, by its sigmoid.

    Source: VPT, arXiv:2203.12119, released code.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_labels: int,
        *,
        pool: str = "cls",
        num_hidden: int = 0,
        dropout: float = 0.1,
        prior: float = 0.01,
        rngs: nnx.Rngs,
    ):
        super().__init__(pool)
        self.rate = dropout
        width, hidden = widths[-1], range(num_hidden)
        init = {"kernel_init": FAN_OUT, "rngs": rngs}
        self.hidden = nnx.List([nnx.Linear(width, width, **init) for _ in hidden])
        self.norms = nnx.List([BatchNorm(width, rngs=rngs) for _ in hidden])
        bias = nnx.initializers.constant(math.log(prior / (1 - prior)))
        self.linear = nnx.Linear(width, num_labels, bias_init=bias, **init)
        mark(self, Head)

    def classify(self, x: Float[Array, "b d"], key: OptionalKey) -> Float[Array, "b l"]:
        keys = split_key(key, len(self.hidden))
        for linear, norm, one in zip(self.hidden, self.norms, keys, strict=True):
            x = drop(norm(jax.nn.relu(linear(x))), self.rate, one)
        return self.linear(x)
