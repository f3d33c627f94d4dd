"""Reading maps at free points: against a plain loop, at borders, and labels as one-hot maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.errors import ShapeError
from vadapt.kernels import bilinear

IGNORED = 255


def literal(image, x, y):
    """One pixel after another; what is outside is zero."""
    h, w, c = image.shape
    x, y = x * w - 0.5, y * h - 0.5
    total = np.zeros(c)
    for row in range(h):
        for column in range(w):
            share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            total += share * image[row, column]
    return total


@pytest.fixture
def points(rng):
    """Some outside, some on the borders, some far away."""
    near = rng.uniform(-0.3, 1.3, (2, 40, 2))
    corners = np.array([[0, 0], [1, 1], [0, 1], [0.5, 0], [9, 9], [-9, 0.5], [1e9, -1e9]])
    corners = np.broadcast_to(corners, (2, 7, 2))
    return jnp.asarray(np.concatenate([near, corners], axis=1), jnp.float32)


def test_samples_are_those_of_a_loop(rng, points):
    maps = jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32)
    found = jax.jit(bilinear.sample)(maps, points)
    expected = [
        [literal(m, *p) for p in ps] for m, ps in zip(maps, np.asarray(points), strict=True)
    ]
    np.testing.assert_allclose(found, np.array(expected), atol=2e-6)


def test_centres_of_pixels_are_read_as_they_are(rng):
    maps = jnp.asarray(rng.normal(size=(1, 4, 8, 2)), jnp.float32)
    y, x = np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(8) + 0.5) / 8, indexing="ij")
    places = jnp.asarray(np.stack([x, y], -1).reshape(1, -1, 2), jnp.float32)
    np.testing.assert_allclose(bilinear.sample(maps, places), maps.reshape(1, -1, 2), atol=1e-6)


def test_labels_are_read_as_their_one_hot_maps(rng, points):
    labels = jnp.asarray(rng.choice([0, 1, 2, 3, IGNORED, 7], size=(2, 6, 7)), jnp.int32)

    @jax.jit
    def samples(labels, points):
        each = jnp.broadcast_to(points[:, None], (2, 4, *points.shape[1:]))
        return (
            bilinear.sample(jax.nn.one_hot(labels, 4), points),
            bilinear.sample_labels(labels, points, 4),
            bilinear.sample_label(labels, each),
        )

    expected, together, found = samples(labels, points)
    np.testing.assert_allclose(together, expected, atol=1e-7)
    np.testing.assert_allclose(found, jnp.moveaxis(expected, -1, 1), atol=1e-7)


def test_both_forms_and_their_gradients_agree(rng, points):
    maps = jnp.asarray(rng.normal(size=(2, 4, 5, 1)), jnp.float32)

    def run(form):
        def loss(maps, points):
            return jnp.sin(form(maps, points)).sum()

        return form(maps, points), jax.grad(loss, (0, 1))(maps, points)

    # Where a pixel ends and the next begins, both take the slope of what follows.
    points = points.at[:, :20].set((jnp.floor(points[:, :20] * 4) + 0.5) / 4)
    table, product = (run(jax.jit(form)) for form in (bilinear.gathered, bilinear.multiplied))
    for one, other in zip(*map(jax.tree.leaves, (table, product)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_gradients_are_finite_and_those_of_small_steps(rng, points):
    maps = jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32)
    way = rng.normal(size=maps.shape).astype(np.float32)

    def along(step):
        return bilinear.sample(maps + step * way, points).sum()

    grads = jax.grad(lambda maps, points: bilinear.sample(maps, points).sum(), (0, 1))(maps, points)
    assert all(bool(jnp.isfinite(x).all()) for x in grads)
    np.testing.assert_allclose((grads[0] * way).sum(), along(1.0) - along(0.0), rtol=1e-4)


def test_more_classes_than_a_byte_holds_are_refused():
    with pytest.raises(ShapeError, match="256 classes"):
        bilinear.sample_labels(jnp.zeros((1, 2, 2), jnp.int32), jnp.zeros((1, 1, 2)), 256)
