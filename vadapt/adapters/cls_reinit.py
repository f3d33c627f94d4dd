"""The class token drawn anew and learned, as VPT's code does where it compares with prompts.

Source: Visual Prompt Tuning, arXiv:2203.12119, released code ("cls-reinit").
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.nn.hooks import Hook, add_hook, check_place
from vadapt.nn.tokens import Tokens
from vadapt.partition import Prompt


class NewClassToken(Hook):
    """A learned token that the first block takes in the place of the class token.

    Args:
        token: its first value, position included.
    """

    def __init__(self, token: Float[Array, " d"]):
        self.token = Prompt(token)

    def acts(self, number: int) -> bool:
        return number == 0

    def before(self, number: int, x: Tokens, state: None) -> tuple[Tokens, None]:
        token = self.token[...].astype(x.array.dtype)
        first = jnp.broadcast_to(token, (x.array.shape[0], 1, token.size))
        return x.with_array(jnp.concatenate([first, x.array[:, 1:]], axis=1)), state


def apply(model: Any, *, std: float = 1e-6, rngs: nnx.Rngs | None = None) -> Any:
    """Draw the class token anew and train it; the given model stays as it is.

    The frozen token keeps its place among the weights, unused. To train the token that the weights
    have, apply nothing and say `trainable="cls,head"`.

    Args:
        model: a ViT with a class token.
        std: of the normal distribution that the token is drawn from, before its position is added.

    Raises:
        ConfigError: the model has no class token, or a norm behind it.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> count(split(apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)))).trainable)
    96
    """
    check_place(model, "cls_reinit")
    name = type(model).__name__
    if not model.has_class_token:
        raise ConfigError(f"this {name} has no class token to draw anew; give a ViT that has one")
    if model.first_norm is not None:
        raise ConfigError(
            f"cls_reinit: a norm stands between class token and blocks of this {name}; train the "
            "one it has (trainable='cls,head')"
        )
    model, rngs = nnx.clone(model), rngs or nnx.Rngs(0)
    token = std * jax.random.normal(rngs.params(), (model.width,))
    if model.pos_embed is not None:
        token = token + model.pos_embed[0].astype(token.dtype)
    add_hook(model, "cls_reinit", NewClassToken(token))
    return model
