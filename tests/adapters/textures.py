"""Pictures of four textures, one a class: gratings that differ in direction and a little in hue."""

import jax
import jax.numpy as jnp
import numpy as np

ANGLES = np.pi / 4 * np.arange(4)
PERIOD = 4  # pixels


def textures(rng, number, side=32):
    """Images [n, side, side, 3] and their labels."""
    coarse = jnp.asarray(rng.normal(size=(number, 4, 3, 3)), jnp.float32)
    fields = jax.image.resize(coarse, (number, 4, side, side), "cubic")
    labels = np.asarray(fields).argmax(axis=1)
    rows, columns = np.indices((side, side))
    along = np.cos(ANGLES)[:, None, None] * rows + np.sin(ANGLES)[:, None, None] * columns
    phases = rng.uniform(0, 2 * np.pi, (number, 4, 1, 1))
    waves = np.sin(along[None] * 2 * np.pi / PERIOD + phases)
    images = np.take_along_axis(waves, labels[:, None], axis=1)[:, 0, ..., None]
    images = images + 0.3 * rng.normal(size=(number, side, side, 3))
    images[..., 0] += 0.4 * labels
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)
