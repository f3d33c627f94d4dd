"""FRPT: images warped by what the backbone sees in them, and seen again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiled import run
from vadapt import adapters
from vadapt.adapters.frpt import Sampler, warped
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.vit import ViT
from vadapt.errors import ConfigError
from vadapt.partition import split
from vadapt.weights.load import with_arrays

BACKBONES = {
    "resnet": lambda: ResNet(18, base_width=4, rngs=nnx.Rngs(0)),
    "vit": lambda: ViT(
        width=8,
        depth=3,
        num_heads=2,
        patch_size=8,
        image_size=32,
        drop_path_rate=0.5,
        rngs=nnx.Rngs(0),
    ),
}
SMALL = {"cells": 5, "padding": 4, "fwhm": 2.0}


def some(*shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def test_the_filter_starts_as_a_bell_of_its_width():
    kernel = Sampler(4, rngs=nnx.Rngs(0)).filter.kernel[...]
    assert kernel.shape == (61, 61, 1, 1)
    bell = np.asarray(kernel)[..., 0, 0]
    v, u = np.mgrid[:61, :61] - 30.0
    np.testing.assert_allclose(bell, np.exp(-4 * np.log(2) * (u**2 + v**2) / 169), atol=1e-6)
    assert bell[30, 30] == 1
    assert bell[30, 36] > 0.5 > bell[30, 37]  # half of it at 6.5 cells


def test_where_a_cell_is_salient_an_image_is_read_more_densely():
    """A map that is hot in one corner draws the places there; a flat one leaves them even."""
    sampler = Sampler(1, rngs=nnx.Rngs(0))
    sampler = with_arrays(
        sampler, {"score/kernel": np.full((1, 1, 1, 1), 1.0), "score/bias": np.zeros(1)}
    )
    hot = jnp.zeros((1, 4, 6, 1)).at[0, 0, 0].set(9.0)
    maps = jnp.concatenate([hot, jnp.zeros((1, 4, 6, 1))])
    drawn, even = np.asarray(run(lambda one, maps: one.places(maps, (31, 31)), sampler, maps))
    line = np.linspace(-1, 1, 31)
    np.testing.assert_allclose(even, np.stack(np.meshgrid(line, line), axis=-1), atol=1e-4)
    assert drawn[15, 15].max() < -0.2
    np.testing.assert_array_equal(drawn[0, 0], (-1, -1))


def test_places_that_are_read_one_for_one_leave_an_image_as_it_is():
    x, y = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 5))
    images, places = some(1, 5, 7, 3), jnp.asarray(np.stack([x, y], axis=-1), jnp.float32)[None]
    np.testing.assert_allclose(warped(images, places), images, atol=1e-5)
    np.testing.assert_array_equal(warped(images, places + 9), 0)


def test_in_bfloat16_places_are_as_precise_and_finite_at_the_extreme():
    """All saliency in one cell: elsewhere the filter's sums are as small as 1e-13."""
    sampler, maps = Sampler(2, rngs=nnx.Rngs(0)), jnp.zeros((1, 31, 31, 2)).at[0, 0, 0].set(3e4)
    parts = split(with_arrays(sampler, {"score/kernel": np.ones((1, 1, 2, 1))}))
    rounded, images = cast(parts.trainable, jnp.bfloat16), some(1, 8, 8, 3).astype(jnp.bfloat16)

    @jax.jit
    def at(trainable, maps, images):
        one = nnx.merge(parts.graph, trainable, parts.frozen, parts.state)
        return one.places(maps, (8, 8)), one(images, maps)

    places, image = at(rounded, maps.astype(jnp.bfloat16), images)
    wide = cast((rounded, maps.astype(jnp.bfloat16)), jnp.float32)
    np.testing.assert_array_equal(places, at(*wide, images)[0])
    assert places.dtype == jnp.float32
    assert image.dtype == jnp.bfloat16
    assert np.isfinite(places).all()
    assert np.abs(places + 1).max() < 0.2  # all of them at the one cell


@pytest.mark.parametrize("name", BACKBONES)
def test_the_backbone_sees_the_image_twice(name):
    """Plain and with nothing random up to the last stage but one, then warped."""
    plain, images = BACKBONES[name](), some(2, 32, 40, 3)
    model, key = adapters.apply(plain, "frpt", **SMALL), jax.random.key(0)

    def by_hand(model, plain, images, key):
        maps = plain.features(images, -2, as_grid=True)
        return plain(model.frpt.sampler(images, maps), key=key), plain(images)

    found = run(lambda model, images, key: model(images, key=key), model, images, key)
    expected, before = run(by_hand, model, plain, images, key)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - before).max() > 1e-3


def test_the_first_look_has_no_hooks_and_images_stay_apart():
    plain, images = BACKBONES["vit"](), some(2, 32, 40, 3)
    model = adapters.apply(adapters.apply(plain, "vpt", num_tokens=2), "frpt", layer=0, **SMALL)

    def looks(model, plain, images):
        return model.glance(images, 0), plain.features(images, 0, as_grid=True), model(images)

    found, expected, tokens = run(looks, model, plain, images)
    np.testing.assert_array_equal(found, expected)
    *_, others = run(looks, model, plain, images.at[1].set(0.5))
    np.testing.assert_allclose(others[0], tokens[0], atol=1e-6)
    assert np.abs(others[1] - tokens[1]).max() > 1e-3


def test_what_it_cannot_read_is_refused():
    with pytest.raises(ConfigError, match=r"4 stages \(0 to 3\)"):
        adapters.apply(BACKBONES["resnet"](), "frpt", layer=4)
    with pytest.raises(ConfigError, match="a grid of 1 cells"):
        adapters.apply(BACKBONES["resnet"](), "frpt", cells=1)
