"""FRPT: a frozen network sees its image a second time, drawn wider where it matters.

Source: Fine-grained Retrieval Prompt Tuning, arXiv:2207.14465; what its text leaves open is as in
the released code. `vadapt.heads.retrieval` is the head that goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.kernels.bilinear import sample
from vadapt.nn.hooks import Glance, Hook, add_hook, check_place
from vadapt.nn.linear import uniform
from vadapt.nn.resize import resize_bilinear
from vadapt.nn.trunk import block_numbers
from vadapt.partition import Adapter, mark


def gaussian(fwhm: float) -> Callable[..., Array]:
    """An initializer: a bell over a kernel's places, 1 at its center.

    Args:
        fwhm: its full width at half maximum, in places.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> Array:
        del key
        side = (jnp.arange(shape[0], dtype=jnp.float32) - shape[0] // 2) ** 2
        distance = side[:, None] + side[None]
        return jnp.exp(-4 * jnp.log(2.0) * distance / fwhm**2).reshape(shape).astype(dtype)

    return init


class Sampler(nnx.Module):
    """Images that are read more densely where a map of them is salient.

    Every place is drawn to salient cells by the weights of a learned filter. All of this is in
    float32, whatever the map and the weights: far from a salient cell, what the places' weighted
    sums are divided by is as small as 1e-13.

    Args:
        width: channels of the maps.
        cells: a side of the grid on which saliency is taken.
        padding: cells around it, which repeat those of its border, and how far the filter reaches.
        fwhm: the filter starts as a bell of this full width at half maximum, in cells.

    Raises:
        ConfigError: a grid of one cell, which has no extent.
    """

    def __init__(
        self,
        width: int,
        *,
        cells: int = 31,
        padding: int = 30,
        fwhm: float = 13.0,
        rngs: nnx.Rngs,
    ):
        if cells < 2 or padding < 0:
            raise ConfigError(
                f"frpt: a grid of {cells} cells with {padding} around it; cells is at least 2, and "
                "padding at least 0"
            )
        self.cells, self.padding = cells, padding
        init, side = uniform(width**-0.5), 2 * padding + 1
        exact: dict[str, Any] = {"dtype": jnp.float32, "precision": "highest", "rngs": rngs}
        self.score = nnx.Conv(width, 1, (1, 1), kernel_init=init, bias_init=init, **exact)
        self.filter = nnx.Conv(
            1,
            1,
            (side, side),
            padding="VALID",
            use_bias=False,
            kernel_init=gaussian(fwhm),
            **exact,
        )
        mark(self, Adapter)

    def saliency(self, maps: Float[Array, "b h w d"]) -> Float[Array, "b n n"]:
        """Each cell's share of an image's saliency; an image's cells sum to 1."""
        scores = self.score(jax.nn.relu(maps))
        scores = resize_bilinear(scores, (self.cells, self.cells), align_corners=True)
        shares = jax.nn.softmax(scores.reshape(scores.shape[0], -1), axis=-1)
        return shares.reshape(-1, self.cells, self.cells)

    def places(
        self, maps: Float[Array, "b h w d"], size: tuple[int, int]
    ) -> Float[Array, "b h2 w2 2"]:
        """Where each pixel of a new image of (height, width) is read in the given one.

        (x, y) from -1 to 1, the centers of the first and the last pixel.
        """
        p = self.padding
        shares = jnp.pad(self.saliency(maps)[..., None], ((0, 0), (p, p), (p, p), (0, 0)), "edge")
        at = (jnp.arange(self.cells + 2 * p, dtype=jnp.float32) - p) / (self.cells - 1)
        x, y = at[None, None, :, None], at[None, :, None, None]
        # Beside one another within an image: devices hold parts of the batch.
        sums = self.filter(jnp.stack([shares, shares * x, shares * y], axis=1))
        weight, x, y = jnp.unstack(sums, axis=1)
        means = jnp.concatenate([x / weight, y / weight], axis=-1)
        return resize_bilinear((2 * means - 1).clip(-1, 1), size)

    def __call__(
        self, images: Float[Array, "b h w c"], maps: Float[Array, "b _h _w d"]
    ) -> Float[Array, "b h w c"]:
        """Images warped by maps of theirs, of the same size and type."""
        _, height, width, _ = images.shape
        return warped(images, self.places(maps, (height, width)))


def warped(
    images: Float[Array, "b h w c"], places: Float[Array, "b h2 w2 2"]
) -> Float[Array, "b h2 w2 c"]:
    """Images read at places as `Sampler.places` gives them; bilinear, zero outside."""
    b, height, width, _ = images.shape
    sides = jnp.asarray([width, height], jnp.float32)[None, None, None]
    points = ((places + 1) / 2 * (sides - 1) + 0.5) / sides  # from corners of pixels
    found = sample(images, points.reshape(b, -1, 2))
    return found.reshape(*places.shape[:3], -1).astype(images.dtype)


class FRPT(Hook):
    """Shows the backbone an image warped by what it sees in the image as it is.

    Args:
        layer: the number of the stage, or block, whose map is read.
        width: of that map.
        options: see `Sampler`.
    """

    def __init__(self, layer: int, width: int, **options: Any):
        self.layer = layer
        self.sampler = Sampler(width, **options)

    def acts(self, number: int) -> bool:
        return False

    def look(self, images: Float[Array, "b h w c"], glance: Glance) -> Float[Array, "b h w c"]:
        return self.sampler(images, glance(images, self.layer))


def apply(
    model: Any,
    *,
    layer: int = -2,
    cells: int = 31,
    padding: int = 30,
    fwhm: float = 13.0,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Let a model see images twice, the second time warped; the given model stays as it is.

    The first pass ends at `layer`, draws nothing at random, and has no hook around its blocks. The
    new model does not compute what the old one did.

    Args:
        model: a backbone of any kind. The paper's is a ResNet.
        layer: the stage, of a backbone that has none the block, whose map says what is salient;
            negative from the end. The last but one is the paper's.
        cells, padding, fwhm: see `Sampler`.

    Raises:
        ConfigError: the model has no such stage, or no blocks at all.

    >>> from vadapt.backbones.resnet import ResNet
    >>> from vadapt.partition import count, split
    >>> model = nnx.eval_shape(lambda: apply(ResNet(50, rngs=nnx.Rngs(0))))
    >>> count(split(model).trainable)
    4746
    """
    check_place(model, "frpt")
    (number,) = block_numbers((layer,), model.depth, model.counts)
    width = model.widths[number] if hasattr(model, "stages") else model.width
    model, rngs = nnx.clone(model), rngs or nnx.Rngs(0)
    options = {"cells": cells, "padding": padding, "fwhm": fwhm}
    add_hook(model, "frpt", FRPT(number, width, **options, rngs=rngs))
    return model
