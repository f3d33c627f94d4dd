"""The prompting decoder: visible tokens stay as they are and prompt the removed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt.heads.milan_decoder import PromptingBlock, PromptingDecoder
from vadapt.partition import Constant, Head, variables
from vadapt.tasks.mae import random_masking

WIDTH, GRID, KEPT = 16, (2, 4), 4


@pytest.fixture(scope="module")
def decoder():
    return PromptingDecoder(12, GRID, 20, width=WIDTH, depth=2, num_heads=4, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def masking():
    return random_masking(jax.random.uniform(jax.random.key(0), (2, 8)), 0.5)


@pytest.fixture(scope="module")
def latent():
    return jax.random.normal(jax.random.key(1), (2, 1 + KEPT, 12))


def test_every_token_is_predicted_class_token_included(decoder, masking, latent):
    assert decoder(latent, masking.restore_ids).shape == (2, 9, 20)


def test_visible_tokens_pass_the_blocks_untouched(decoder, masking, latent):
    prediction = decoder(latent, masking.restore_ids)
    filled = decoder.fill(latent, masking.restore_ids)
    untouched = decoder.pred(decoder.norm(filled))
    np.testing.assert_allclose(prediction[:, 0], untouched[:, 0], atol=1e-6)
    visible = masking.mask == 0
    np.testing.assert_allclose(prediction[:, 1:][visible], untouched[:, 1:][visible], atol=1e-6)
    assert np.abs(prediction[:, 1:][~visible] - untouched[:, 1:][~visible]).min(1).max() > 1e-3


def test_the_order_in_which_patches_were_kept_does_not_matter(decoder, masking, latent):
    prediction = decoder(latent, masking.restore_ids)
    swap = jnp.array([0, 2, 1, 3, 4])  # the first two kept patches; the class token stays first
    numbers = jnp.array([1, 0, 2, 3, 4, 5, 6, 7])
    swapped = decoder(latent[:, swap], numbers[masking.restore_ids])
    np.testing.assert_allclose(swapped, prediction, atol=1e-5)


def test_fixed_tokens_are_keys_as_they_are_and_removed_ones_normalised():
    block = PromptingBlock(WIDTH, 4, rngs=nnx.Rngs(0))
    removed = jax.random.normal(jax.random.key(2), (2, 3, WIDTH))
    fixed = jax.random.normal(jax.random.key(3), (2, 5, WIDTH))
    # Four times as long before the norm is nearly the same after it, but not for the prompts.
    terms = [block(s * removed, None, fixed) - s * removed for s in (1.0, 4.0)]
    np.testing.assert_allclose(*(block.attn.norm(s * removed) for s in (1.0, 4.0)), atol=1e-4)
    other = block(removed, None, 4.0 * fixed) - removed
    assert jnp.abs(terms[0] - other).max() > 0.1


def test_all_but_the_projection_from_the_encoder_is_a_head(decoder):
    kinds = {path: type(value) for path, value in variables(decoder).items()}
    plain = {path for path, kind in kinds.items() if kind not in (Head, Constant)}
    assert plain == {"embed/kernel", "embed/bias"}
    assert not any("qkv" in path for path in kinds)
