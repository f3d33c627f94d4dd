"""Pyramids of detectors: FPN with its extra levels, and ViTDet's of one map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt.errors import ConfigError
from vadapt.necks import make_neck
from vadapt.necks.fpn import FPN, repeat_nearest
from vadapt.necks.simple_feature_pyramid import SimpleFeaturePyramid
from vadapt.partition import Head, count, flatten, merge, split

WIDTHS = (3, 4, 6, 5)
SIZES = [(16, 24), (8, 12), (4, 6), (2, 3)]


def made(name, widths, **options):
    return make_neck(name, widths, outputs=8, rngs=nnx.Rngs(0), **options)


@pytest.fixture
def maps(rng):
    sizes = zip(SIZES, WIDTHS, strict=True)
    return [jnp.asarray(rng.normal(size=(2, *s, w)), jnp.float32) for s, w in sizes]


RETINA = {"start": 1, "extra": 2}
FPNS = [
    ({}, SIZES, 4),
    (RETINA, [*SIZES[1:], (1, 2), (1, 1)], 5),
    ({**RETINA, "extra_of": "output", "relu": True}, [*SIZES[1:], (1, 2), (1, 1)], 5),
    ({"extra": 1, "extra_of": "pool"}, [*SIZES, (1, 2)], 4),
]


@pytest.mark.parametrize(("options", "sizes", "convs"), FPNS)
def test_levels_of_fpn_and_gradients_of_all_of_it(maps, options, sizes, convs):
    neck, widths = made("fpn", WIDTHS, **options)
    parts = split(neck, Head)
    assert (len(neck.outputs), count(parts.frozen), len(widths)) == (convs, 0, len(sizes))

    @jax.jit
    def loss(trainable):
        found = merge(parts.graph, trainable, parts.frozen, parts.state)(maps)
        assert [x.shape[1:] for x in found] == [(*size, 8) for size in sizes]
        return sum(jnp.square(x).sum() for x in found)

    for path, gradient in flatten(jax.grad(loss)(parts.trainable)).items():
        assert bool(jnp.any(gradient)), path


def test_what_extra_levels_are_made_of(maps):
    def level(x, **options):
        neck = FPN(WIDTHS, 8, extra=2, **options, rngs=nnx.Rngs(0))
        found = neck(maps)
        first = neck.outputs[4](x if x is not None else found[3])
        np.testing.assert_allclose(found[4], first, atol=1e-5)
        between = jax.nn.relu(first) if options.get("relu") else first
        np.testing.assert_allclose(found[5], neck.outputs[5](between), atol=1e-5)

    level(maps[-1])
    level(maps[-1], relu=True)
    level(None, extra_of="output")


def test_the_top_down_path_repeats_what_is_coarser(maps):
    neck = FPN(WIDTHS[2:], 8, rngs=nnx.Rngs(0))
    fine, coarse = (conv(x) for conv, x in zip(neck.laterals, maps[2:], strict=True))
    expected = neck.outputs[0](fine + coarse.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(neck(maps[2:])[0], expected, atol=1e-5)
    x = jnp.arange(3.0).reshape(1, 3, 1, 1)
    assert repeat_nearest(x, (5, 2)).shape == (1, 5, 2, 1)
    assert repeat_nearest(x, (5, 2))[0, :, 1, 0].tolist() == [0, 0, 1, 1, 2]


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match="allowed: input, output, pool"):
        FPN(WIDTHS, 8, extra_of="p5", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="from map 4 of 4"):
        FPN(WIDTHS, 8, start=4, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="'fpn', which takes maps of several strides; these"):
        made("fpn", (4, 4), strides=(16, 16))
    with pytest.raises(ConfigError, match="these have 8, 16 already"):
        made("simple_feature_pyramid", (4, 4), strides=(8, 16))


@pytest.mark.parametrize(("round_up", "half"), [(False, (2, 3)), (True, (3, 4))])
def test_levels_of_the_simple_pyramid_are_of_the_last_map(rng, round_up, half):
    neck, widths = made("simple_feature_pyramid", (6, 8), strides=(16, 16), round_up=round_up)
    assert widths == (8,) * 5
    last = jnp.asarray(rng.normal(size=(1, 5, 7, 8)), jnp.float32)
    parts = split(neck, Head)
    assert count(parts.frozen) == 0

    @jax.jit
    def loss(trainable):
        found = merge(parts.graph, trainable, parts.frozen, parts.state)([0 * last, last])
        sizes = [x.shape[1:3] for x in found]
        assert sizes[:4] == [(20, 28), (10, 14), (5, 7), half]
        # Squares of what is normed have no gradient before the norm.
        return sum((x**3).sum() for x in found), found

    gradients, found = jax.grad(loss, has_aux=True)(parts.trainable)
    np.testing.assert_array_equal(found[4], found[3][:, ::2, ::2])
    for path, gradient in flatten(gradients).items():
        assert bool(jnp.any(gradient)), path


def test_the_published_pyramid_of_a_base_model_has_its_size():
    neck = nnx.eval_shape(lambda: SimpleFeaturePyramid(768, 256, rngs=nnx.Rngs(0)))
    convs = 4 * (256 * 256 * 9 + 4 * 256) + 256 * (192 + 384 + 768 + 768)
    grown = 4 * 768 * 384 + 384 + 2 * 384 + 4 * 384 * 192 + 192 + 4 * 768 * 384 + 384
    assert count(split(neck, Head).trainable) == convs + grown
