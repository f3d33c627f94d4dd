"""Patches and the masked error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.errors import ShapeError
from vadapt.losses.reconstruction import masked_mse, normalise_patches, patchify, unpatchify


def test_unpatchify_undoes_patchify():
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    np.testing.assert_array_equal(unpatchify(patches, 4, (2, 3)), images)
    np.testing.assert_array_equal(patches[0, 1].reshape(4, 4, 3), images[0, :4, 4:8])


def test_normalised_patches_use_the_unbiased_variance():
    patches = jax.random.normal(jax.random.key(0), (2, 3, 12)) * 7 + 100
    expected = (patches - patches.mean(-1, keepdims=True)) / np.std(
        patches, axis=-1, ddof=1, keepdims=True
    )
    np.testing.assert_allclose(normalise_patches(patches), expected, rtol=1e-4, atol=1e-4)


def test_visible_patches_do_not_count():
    target = jnp.zeros((1, 4, 2))
    prediction = target.at[0, 0].set(100.0).at[0, 1].set(2.0)
    mask = jnp.array([[0.0, 1.0, 0.0, 1.0]])
    assert float(masked_mse(prediction, target, mask)) == pytest.approx(2.0)


def test_nothing_removed_is_no_error_rather_than_nan():
    assert float(masked_mse(jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)), jnp.zeros((1, 2)))) == 0.0


def test_sides_must_be_multiples_of_the_patch():
    with pytest.raises(ShapeError, match="patch size 4"):
        patchify(jnp.zeros((1, 8, 10, 3)), 4)
