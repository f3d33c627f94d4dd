"""Models whose numbers NumPy draws and casts: many small programs take JAX seconds to compile."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt.partition import merge, split


def drawn(create, seed=0):
    """What `create()` gives with every number drawn anew: kernels keep the scale of their input."""
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(create))

    def draw(path, shape):
        if path[-1] == "var":
            return rng.uniform(0.5, 2.0, shape)
        scale = np.prod(shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.3
        return rng.normal(float(path[-1] == "scale"), scale, shape)

    values = {
        path: value.replace(jnp.asarray(draw(path, value.shape), value.dtype))
        for path, value in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(values))


def in_bfloat16(model):
    """A copy with all that can train in bfloat16, and constants and statistics as they are."""
    parts = split(model, "everything")
    half = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(jnp.bfloat16)), parts.trainable)
    return merge(parts.graph, half, parts.frozen, parts.state)
