"""MILAN: masked prediction of a frozen teacher's features, of a whole model or of adapters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vadapt import models
from vadapt.backbones.teachers import Tower, kind_of
from vadapt.backbones.vit import ViT
from vadapt.errors import ConfigError, nearest
from vadapt.losses.features import cosine_distance
from vadapt.losses.reconstruction import patchify, unpatchify
from vadapt.nn.drop import OptionalKey
from vadapt.tasks import inputs
from vadapt.tasks.mae import MAETask, MaskedAutoencoder, Masking, random_masking
from vadapt.tasks.settings import MILAN_FIELDS

TARGETS = ("features", "pixels")
STATISTICS = ("data", "teacher")


def semantic_masking(
    importance: Float[Array, "b n"], gumbel: Float[Array, "b n"], mask_ratio: float
) -> Masking:
    """Keeps patches drawn without replacement, in proportion to their importance.

    The order is that of falling log importance plus Gumbel noise, which is the order of falling
    importance / e for e = exp(-gumbel), exponential noise. Important patches are mostly kept.

    Args:
        importance: not negative, any scale; patches of none at all come last, in random order.

    Source: MILAN, arXiv:2208.06049; Gumbel-top-k, arXiv:1903.06059. float32 and a floor, since a
    sampler in half precision fails where too many patches underflow to zero.
    """
    floor = jnp.finfo(jnp.float32).tiny
    log_importance = jnp.log(jnp.maximum(importance.astype(jnp.float32), floor))
    return random_masking(-(log_importance + gumbel.astype(jnp.float32)), mask_ratio)


class MILAN(MaskedAutoencoder):
    """A masked autoencoder with a prompting decoder and, where features matter, a teacher."""

    def __init__(self, backbone: ViT, decoder: nnx.Module, teacher: Tower | None = None):
        super().__init__(backbone, decoder)
        self.teacher = teacher

    def look(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b n1 e"], Float[Array, "b n"]]:
        """The teacher's features of all tokens, and how its class token attends to patches."""
        assert self.teacher is not None
        features, attention = self.teacher(images)
        return jax.lax.stop_gradient(features), jax.lax.stop_gradient(attention[:, 0, 1:])

    def loss(
        self,
        images: Float[Array, "b h w c"],
        prediction: Float[Array, "b n1 p"],
        mask: Float[Array, "b n"],
        *,
        norm_pixels: bool,
        features: Float[Array, "b n1 p"] | None = None,
    ) -> Float[Array, ""]:
        """Mean 2 - 2 cos over all tokens, visible or not; without features, MAE's pixel loss."""
        if features is not None:
            return cosine_distance(prediction, features).mean()
        return super().loss(images, prediction[:, 1:], mask, norm_pixels=norm_pixels)


class MILANTask(MAETask):
    """Pre-trains as MILAN does; data, probe, export and what trains are as with MAE.

    Reads, besides what `MAETask` reads, of `config.task`: `target` ("features" or "pixels"),
    `semantic_masking`, `teacher` and `teacher_weights` (see `models.create_teacher`), and
    `teacher_statistics`: "data" feeds the teacher what the student sees, "teacher" normalises
    the same crop as the teacher was trained.
    """

    decoder_type = "prompting"
    settings = MILAN_FIELDS

    def __init__(self, config: Any):
        super().__init__(config)
        task = config.task
        for name, allowed in (("target", TARGETS), ("teacher_statistics", STATISTICS)):
            if task[name] not in allowed:
                raise ConfigError(
                    f"unknown config.task.{name} {task[name]!r}; {nearest(task[name], allowed)}"
                )
        if task.target == "features":
            self.picture_titles = ("input", "visible", "teacher's attention", "likeness")

    def build(self, *, pretrained: bool = True) -> MILAN:
        """The model with its pretrained weights, the method applied, and the teacher."""
        task, model = self.config.task, super().build(pretrained=pretrained)
        if task.target == "pixels" and not task.semantic_masking:
            return MILAN(model.backbone, model.decoder)
        teacher = models.create_teacher(
            task.teacher,
            task.teacher_weights if pretrained else "",
            image_size=tuple(self.config.data.image_size),
            rngs=nnx.Rngs(self.config.seed),
        )
        if teacher.backbone.patch_size != model.backbone.patch_size:
            raise ConfigError(
                f"teacher {task.teacher!r} has patches of {teacher.backbone.patch_size} px, the "
                f"backbone of {model.backbone.patch_size}: their tokens do not pair up"
            )
        return MILAN(model.backbone, model.decoder, teacher)

    def _outputs(self, backbone: ViT) -> int:
        task = self.config.task
        return (
            kind_of(task.teacher).width if task.target == "features" else super()._outputs(backbone)
        )

    def _reconstruct(
        self,
        model: MILAN,
        images: Float[Array, "b h w c"],
        mask_key: Key[Array, ""],
        drop_key: OptionalKey = None,
    ) -> tuple[Array, Array, Masking]:
        task, features = self.config.task, None
        if model.teacher is None:
            masking = self._random_masking(model, images, mask_key)
        else:
            features, importance = model.look(self._for_teacher(model.teacher, images))
            if task.semantic_masking:
                gumbel = jax.random.gumbel(mask_key, importance.shape)
                masking = semantic_masking(importance, gumbel, task.mask_ratio)
            else:
                masking = self._random_masking(model, images, mask_key)
        _, prediction = model(images, masking, drop_key)
        loss = model.loss(
            images,
            prediction,
            masking.mask,
            norm_pixels=task.norm_pixels,
            features=features if task.target == "features" else None,
        )
        return loss, prediction[:, 1:], masking

    def _for_teacher(self, teacher: Tower, images: Array) -> Array:
        data = self.config.data
        if self.config.task.teacher_statistics == "data":
            return images
        return teacher.normalise(inputs.denormalise(images, data.mean, data.std))

    def _draw(self, model: MILAN, image: Array, key: Key[Array, ""]) -> tuple[Array, ...]:
        if self.config.task.target == "pixels":
            return super()._draw(model, image, key)
        assert model.teacher is not None
        images = self._normalised(image)
        size = model.backbone.patch_size
        grid = (images.shape[1] // size, images.shape[2] // size)
        _, prediction, masking = self._reconstruct(model, images, key)
        features, importance = model.look(self._for_teacher(model.teacher, images))
        likeness = 1.0 - cosine_distance(prediction, features[:, 1:]) / 2.0  # the cosine

        def tiles(values: Float[Array, "b n"]) -> Float[Array, "b h w c"]:
            numbers = jnp.broadcast_to(values[..., None], (*values.shape, 3 * size**2))
            return unpatchify(numbers, size, grid)

        visible = unpatchify(patchify(images, size) * (1 - masking.mask[..., None]), size, grid)
        strongest = jnp.maximum(importance.max(axis=1, keepdims=True), 1e-12)
        return (
            self._shown(images),
            self._shown(visible),
            tiles(importance / strongest),
            tiles(jnp.clip(likeness, 0.0, 1.0)),
        )
