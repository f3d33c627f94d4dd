"""Convolutions of images: on TPUs products of patches, elsewhere what XLA has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.planned import as_in_training  # noqa: F401
from vadapt.nn.convolutions import FAN_IN, ConvNorm, product_of_patches
from vadapt.runtime import chips

NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("side", "stride", "size"), [(3, 2, (8, 12)), (3, 2, (7, 9)), (3, 1, (7, 8)), (2, 3, (8, 9))]
)
def test_products_of_patches_are_convolutions(rng, side, stride, size):
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(side, side, 3, 5)), jnp.float32)
    strides, padding = (stride, stride), ((side // 2, side // 2),) * 2

    def pulled(convolve):
        out, pull = jax.vjp(convolve, x, kernel)
        return out, *pull(jnp.cos(out))

    wanted = pulled(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=NHWC
        )
    )
    found = pulled(lambda x, kernel: product_of_patches(x, kernel, strides, padding))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def compiled_for_a_tpu(channels):
    """The program of a layer's loss and gradient, of two bfloat16 images of 64 px."""
    layer = nnx.eval_shape(
        lambda: ConvNorm(channels, 8, 3, stride=2, kernel_init=FAN_IN, rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(layer)
    sharding = jax.sharding.SingleDeviceSharding(chips.devices("v5e:2x2")[0])
    shaped = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharding), state
    )
    images = jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.bfloat16, sharding=sharding)

    def loss(state, images):
        return nnx.merge(graph, state).conv(images).astype(jnp.float32).sum()

    return str(jax.jit(jax.grad(loss)).lower(shaped, images).compile().as_text())


@pytest.mark.usefixtures("as_in_training")
def test_images_are_not_convolved_on_a_tpu():
    """Maps of more channels are, so that the program's text would show it."""
    pytest.importorskip("libtpu", reason="libtpu is not made for this platform")
    images, maps = (compiled_for_a_tpu(channels) for channels in (3, 24))
    assert "conv_general_dilated" not in images
    assert "conv_general_dilated" in maps


def test_elsewhere_they_are_and_numbers_stay(rng):
    layer = ConvNorm(3, 8, 3, stride=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
    wanted = jax.lax.conv_general_dilated(
        x, layer.conv.kernel[...], (2, 2), ((1, 1), (1, 1)), dimension_numbers=NHWC
    )
    np.testing.assert_array_equal(layer.conv(x), wanted)
