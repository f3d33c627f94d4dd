"""Attention compiled for TPUs that are not here: the shapes of recipes, and what it moves."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout

from vadapt.kernels.attention import attention
from vadapt.runtime import chips
from vadapt.runtime.hlo import Module

# libtpu exists for Linux on x86 only.
pytest.importorskip("libtpu", reason="libtpu is not made for this platform")

# (batch, queries, keys, heads, width, width of values, bias, mask, dtype)
FEW = {
    "mae_encoder": (16, 50, 50, 12, 64, 64, False, False, jnp.bfloat16),
    "mae_decoder": (8, 197, 197, 16, 32, 32, False, False, jnp.bfloat16),
    "micro": (2, 65, 65, 4, 24, 24, False, False, jnp.float32),
    "all": (2, 37, 300, 2, 8, 16, True, True, jnp.float32),
}
MANY = {
    "vit": (2, 1025, 1025, 12, 64, 64, False, False, jnp.bfloat16),
    "vit_huge": (2, 257, 257, 16, 80, 80, False, False, jnp.bfloat16),
    "vit_huge_float32": (2, 257, 257, 16, 80, 80, False, False, jnp.float32),
    "relative": (2, 1025, 1025, 12, 64, 64, True, False, jnp.bfloat16),
    "dinov2": (2, 1370, 1370, 16, 64, 64, False, False, jnp.bfloat16),
    "sam_window": (25, 196, 196, 12, 92, 64, False, False, jnp.bfloat16),
    "sam_global": (1, 4096, 4096, 12, 192, 64, False, False, jnp.bfloat16),
    "mask2former": (2, 100, 4096, 8, 32, 32, False, True, jnp.bfloat16),
}


def compiled(shapes, topology):
    batch, q, k, heads, width, value_width, biased, masked, dtype = shapes
    # As a projection leaves them, heads side by side.
    sizes = [(q, width), (k, width), (k, value_width), (q, value_width)]
    arrays = [jax.ShapeDtypeStruct((batch, n, heads * w), dtype) for n, w in sizes]
    bias = jax.ShapeDtypeStruct((heads, q, k), jnp.float32) if biased else None
    mask = jax.ShapeDtypeStruct((batch, q, k), bool) if masked else None

    def train(q, k, v, way, bias, mask):
        def run(q, k, v, bias):
            split = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
            return attention(*split, bias=bias, mask=mask).reshape(way.shape)

        out, pull = jax.vjp(run, q, k, v, bias)
        return out, pull(way)

    where = jax.sharding.SingleDeviceSharding(chips.devices(topology)[0])
    free = Format(Layout.AUTO, where)
    given = (*arrays, bias, mask)
    step = jax.jit(train, in_shardings=free, out_shardings=free)
    text = step.lower(*given).compile().as_text()
    return Module(text), text.count('custom_call_target="tpu_custom_call"')


@pytest.mark.parametrize("name", FEW)
def test_shapes_of_recipes_compile(name):
    assert compiled(FEW[name], "v5e:2x2")[1] == 2


@pytest.mark.plans
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("name", [*FEW, *MANY])
def test_all_shapes_compile_for_every_chip(name, topology):
    assert compiled({**FEW, **MANY}[name], topology)[1] == 2


def test_logits_never_leave_the_chip():
    module, _ = compiled(FEW["mae_decoder"], "v5e:2x2")
    tokens = 8 * 197 * 16 * 32 * 2  # bytes of one of q, k, v, o
    # Forward q, k, v and o; backward q, k, v, do, dq, dk and dv; rows of a tile are rounded up.
    assert module.memory_traffic() <= 1.1 * 11 * tokens
