"""Masked autoencoding (MAE), of a whole model or of the adapters in a frozen one (PAD)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from vadapt import system
from vadapt.backbones.vit import ViT
from vadapt.data import pipeline
from vadapt.data.stream import Stream
from vadapt.drawing import contact_sheet
from vadapt.errors import ConfigError
from vadapt.heads import DECODERS
from vadapt.losses.reconstruction import masked_mse, normalise_patches, patchify, unpatchify
from vadapt.nn.drop import OptionalKey
from vadapt.tasks import inputs
from vadapt.tasks.probe import SceneProbe
from vadapt.tasks.settings import MAE_FIELDS
from vadapt.training.report import Report


class Masking(NamedTuple):
    """Which patches of a batch are visible."""

    keep_ids: Int[Array, "b k"]  # raster numbers of visible patches, in shuffled order
    restore_ids: Int[Array, "b n"]  # for each raster place, its number in shuffled order
    mask: Float[Array, "b n"]  # in raster order: 0 visible, 1 removed


def random_masking(noise: Float[Array, "b n"], mask_ratio: float) -> Masking:
    """Keeps the patches with the smallest noise, floor(n * (1 - mask_ratio)) of them.

    Args:
        noise: uniform draws, one a patch; the same noise gives the same masking.

    Source: MAE, arXiv:2111.06377, released code.
    """
    num_patches = noise.shape[1]
    num_kept = int(num_patches * (1 - mask_ratio))
    order = jnp.argsort(noise, axis=1)
    restore_ids = jnp.argsort(order, axis=1)
    mask = (restore_ids >= num_kept).astype(jnp.float32)
    return Masking(order[:, :num_kept], restore_ids, mask)


class MaskedAutoencoder(nnx.Module):
    """A backbone that sees a part of the patches, and a decoder that predicts the rest."""

    def __init__(self, backbone: ViT, decoder: nnx.Module):
        if backbone.num_extra != 1:
            raise ConfigError(
                f"the decoder takes one class token before the patches, the backbone gives "
                f"{backbone.num_extra} tokens; choose one with a class token and without registers"
            )
        self.backbone = backbone
        self.decoder = decoder

    def __call__(
        self, images: Float[Array, "b h w c"], masking: Masking, key: OptionalKey = None
    ) -> tuple[Float[Array, "b k1 d"], Float[Array, "b n p"]]:
        """The encoder's tokens (class token first) and the predicted numbers of every patch."""
        latent = self.backbone(images, keep_ids=masking.keep_ids, key=key)
        size = self.backbone.patch_size
        grid = (images.shape[1] // size, images.shape[2] // size)
        return latent, self.decoder(latent, masking.restore_ids, grid)

    def loss(
        self,
        images: Float[Array, "b h w c"],
        prediction: Float[Array, "b n p"],
        mask: Float[Array, "b n"],
        *,
        norm_pixels: bool,
    ) -> Float[Array, ""]:
        """Squared error on the removed patches, against pixels or each patch's normalised ones."""
        target = patchify(images, self.backbone.patch_size)
        target = normalise_patches(target) if norm_pixels else target
        return masked_mse(prediction, target, mask)


class MAETask:
    """Pre-trains by masked autoencoding; what trains is the partition's choice, not the task's.

    Reads `config.data`, `config.model`, `config.method`, `config.task` and `config.eval`.
    """

    decoder_type = "mae"  # a name in `heads.DECODERS`
    settings = MAE_FIELDS
    picture_titles = ("input", "visible patches", "reconstruction")

    def __init__(self, config: Any):
        self.config = config
        self.probe = SceneProbe(config) if config.eval.probe_scenes else None

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Options of the backbone besides its name and size."""
        given = self.config.model.get("options", {})
        return {"positions": "sincos", "layer_scale": None, **given}

    def build(self, *, pretrained: bool = True) -> MaskedAutoencoder:
        """The model with its pretrained weights and the method applied.

        Args:
            pretrained: False leaves every weight at random and reads no file.
        """
        return system.build(
            self.config,
            self._with_decoder,
            options=self.backbone_options,
            holds="model",
            pretrained=pretrained,
        )

    def _with_decoder(self, backbone: ViT, rngs: nnx.Rngs) -> MaskedAutoencoder:
        task = self.config.task
        decoder = DECODERS[self.decoder_type](
            backbone.width,
            backbone.grid,
            self._outputs(backbone),
            width=task.decoder_width,
            depth=task.decoder_depth,
            num_heads=task.decoder_heads,
            rngs=rngs,
        )
        return MaskedAutoencoder(backbone, decoder)

    def _outputs(self, backbone: ViT) -> int:
        """Return the number of numbers that are predicted per patch."""
        return backbone.patch_size**2 * 3

    def stream(self) -> Stream:
        """Training images, cropped and flipped: {"image": uint8 [b, h, w, c]}."""
        return pipeline.training_stream(self.config, inputs.crop_feed(self.config.data))

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a whole batch of `stream`, without reading any data."""
        return pipeline.batch_shapes(self.config)

    def loss(
        self, model: MaskedAutoencoder, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The loss of one batch; masks and dropout are drawn from the key."""
        mask_key, drop_key = jax.random.split(key)
        images = self._normalised(batch["image"])
        loss, _, _ = self._reconstruct(model, images, mask_key, drop_key)
        return loss, {}

    def _normalised(self, images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        return inputs.normalise(images, self.config.data.mean, self.config.data.std)

    def _reconstruct(
        self,
        model: MaskedAutoencoder,
        images: Float[Array, "b h w c"],
        mask_key: Key[Array, ""],
        drop_key: OptionalKey = None,
    ) -> tuple[Array, Array, Masking]:
        masking = self._random_masking(model, images, mask_key)
        _, prediction = model(images, masking, drop_key)
        norm_pixels = self.config.task.norm_pixels
        loss = model.loss(images, prediction, masking.mask, norm_pixels=norm_pixels)
        return loss, prediction, masking

    def _random_masking(self, model: MaskedAutoencoder, images: Array, key: Array) -> Masking:
        size = model.backbone.patch_size
        num_patches = (images.shape[1] // size) * (images.shape[2] // size)
        noise = jax.random.uniform(key, (images.shape[0], num_patches))
        return random_masking(noise, self.config.task.mask_ratio)

    def evaluate(self, model: MaskedAutoencoder, on: str = "test") -> dict[str, float]:
        """Scores of the backbone: a linear probe on labelled scenes, if the config asks for it.

        They are the same scenes, whatever they are evaluated for.
        """
        return {} if self.probe is None else self.probe(model.backbone)

    def report(self, model: MaskedAutoencoder) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate`, and a `Report` of the probe."""
        if self.probe is None:
            return {}, {}
        scores, found = self.probe.report(model.backbone)
        return scores, {"probe": found}

    def export(self, model: MaskedAutoencoder) -> nnx.Module:
        """The part that people keep: the backbone. The decoder has done its work."""
        return model.backbone

    def pictures(
        self, model: MaskedAutoencoder, batch: dict[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The first images of a batch, each a row of what `picture_titles` says."""
        number = min(self.config.eval.num_pictures, len(batch["image"]))
        image = jnp.asarray(batch["image"][:number])
        graph, state = nnx.split(model)
        pixels = self._jitted_draw(graph, nnx.to_pure_dict(state), image)
        rows = [[np.asarray(column[i]) for column in pixels] for i in range(number)]
        return {"reconstruction": contact_sheet(rows, list(self.picture_titles), cell=128)}

    @functools.cached_property
    def _jitted_draw(self) -> Callable[..., Any]:
        def draw(graph: Any, tree: Any, image: Array) -> tuple[Array, ...]:
            # Fixed masks, so that pictures of different steps compare.
            return self._draw(nnx.merge(graph, tree), image, jax.random.key(0))

        return jax.jit(draw, static_argnums=0)

    def _draw(
        self, model: MaskedAutoencoder, image: Array, key: Key[Array, ""]
    ) -> tuple[Array, ...]:
        images = self._normalised(image)
        _, prediction, masking = self._reconstruct(model, images, key)
        size = model.backbone.patch_size
        patches = patchify(images, size)
        prediction = prediction.astype(jnp.float32)
        if self.config.task.norm_pixels:
            # The prediction is relative to each patch's own mean and spread: borrow them.
            mean = patches.mean(-1, keepdims=True)
            prediction = prediction * patches.std(-1, keepdims=True, ddof=1) + mean
        removed = masking.mask[..., None]
        grid = (images.shape[1] // size, images.shape[2] // size)
        masked = unpatchify(patches * (1 - removed), size, grid)  # zero is grey
        filled = unpatchify(patches * (1 - removed) + prediction * removed, size, grid)
        return tuple(self._shown(x) for x in (images, masked, filled))

    def _shown(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Normalised images as people see them, in 0-1."""
        data = self.config.data
        return jnp.clip(inputs.denormalise(images, data.mean, data.std), 0.0, 1.0)
