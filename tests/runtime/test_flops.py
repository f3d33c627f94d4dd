"""Counting matrix products: what jax says a program does, loops at full length."""

import functools

import jax
import jax.numpy as jnp

from vadapt.kernels import attention_tpu
from vadapt.runtime.flops import matmul_flops

A = jnp.ones((3, 4))
B = jnp.ones((4, 5))
IMAGE, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 7))


def flops(function, *arguments, **options):
    return matmul_flops(jax.make_jaxpr(function)(*arguments).jaxpr, **options)


def test_a_product_multiplies_and_adds():
    assert flops(jnp.matmul, A, B) == 2 * 3 * 4 * 5
    assert flops(lambda a, b: jnp.tanh(jax.jit(jnp.matmul)(a, b)) + 1.0, A, B) == 120
    batched = jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))
    assert flops(jnp.matmul, *batched) == 6 * 120


def test_a_convolution_counts_its_window():
    def patches(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (4, 4), "VALID", dimension_numbers=layout
        )

    assert flops(patches, IMAGE, KERNEL) == 2 * (2 * 2 * 2 * 7) * (4 * 4 * 3)


def test_a_gradient_takes_two_more_products():
    loss = jax.value_and_grad(lambda a, b: jnp.square(a @ b).sum(), argnums=(0, 1))
    assert flops(loss, A, B) == 3 * 120


def test_a_scan_counts_as_often_as_it_runs():
    def loop(x, matrices):
        return jax.lax.scan(lambda x, m: (x @ m, None), x, matrices)[0]

    arguments = jnp.ones((3, 4)), jnp.ones((9, 4, 4))
    assert flops(loop, *arguments) == 9 * 2 * 3 * 4 * 4
    assert flops(loop, *arguments, unroll=False) == 2 * 3 * 4 * 4


def test_of_two_branches_the_longer_one_counts():
    def either(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: (a @ b) @ b.T, lambda: a)

    assert flops(either, A, B) == 240


def test_a_kernel_counts_as_it_says_over_all_its_instances():
    arrays = [jnp.ones((8, 50, 2, 64))] * 3
    run = functools.partial(attention_tpu.attend, bias=None, mask=None, scale=1.0, interpret=False)
    for unroll in (True, False):
        assert flops(run, *arrays, unroll=unroll) == 2 * 2 * (8 * 2 * 50 * 50 * 64)
