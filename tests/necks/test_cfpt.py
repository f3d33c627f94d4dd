"""CFPT's neck: what it counts and costs, its levels, and what its position bias depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt.errors import ConfigError
from vadapt.kernels import cross_layer_attention as kernel
from vadapt.necks import make_neck
from vadapt.necks.cfpt import CFPT
from vadapt.necks.cross_layer import CrossLevelBias, offsets
from vadapt.partition import Head, count, flatten, merge, split
from vadapt.runtime.flops import matmul_flops

R18 = (64, 128, 256, 512)
DEAD = (129**2 - 129) * 4  # rows of the channels' table, in released files, that nothing reads


def abstract(*arguments, **options):
    return nnx.eval_shape(lambda: CFPT(*arguments, **options, rngs=nnx.Rngs(0)))


def small(widths=(3, 4, 6, 5), **options):
    return CFPT(widths, 8, num_heads=2, reduction=2, **options, rngs=nnx.Rngs(0))


def small_abstract(*arguments, **options):
    return nnx.eval_shape(lambda: small(*arguments, **options))


def maps_of(sizes, widths, batch=2):
    rng = np.random.default_rng(0)
    sizes = zip(sizes, widths, strict=True)
    return [jnp.asarray(rng.normal(size=(batch, *s, w)), jnp.float32) for s, w in sizes]


def shapes_of(neck, maps):
    """Sides of the levels."""
    graph, state = nnx.split(neck)
    found = jax.eval_shape(lambda state, maps: nnx.merge(graph, state)(maps), state, maps)
    return [x.shape[1:3] for x in found]


def test_parameters_are_those_that_were_published():
    def parts(neck):
        trees = split(neck, Head)
        assert count(trees.frozen) == 0
        found = {}
        for path, leaf in flatten(trees.trainable).items():
            part = "/".join(path.split("/")[: 3 if path.startswith("pairs") else 2])
            found[part] = found.get(part, 0) + leaf.size
        return found

    found = parts(abstract(R18))
    assert found == {
        "inputs/0": 33_280,
        "inputs/1": 66_048,
        "inputs/2": 131_584,
        "inputs/3": 1_180_160,
        "pairs/0/channel": 1_406_740 - DEAD,
        "pairs/0/spatial": 1_341_332,
        "extra/0": 590_336,
    }
    assert sum(found.values()) == 4_749_480 - DEAD
    assert sum(parts(abstract((256, 512, 1024, 2048))).values()) == 8_976_552 - DEAD


def test_it_costs_what_was_measured():
    """Multiplications at 832x1344 pixels, one image."""
    sizes = [(208, 336), (104, 168), (52, 84), (26, 42)]
    graph, state = nnx.split(abstract(R18))
    maps = [jax.ShapeDtypeStruct((1, *s, w), jnp.float32) for s, w in zip(sizes, R18, strict=True)]
    traced = jax.make_jaxpr(lambda state, maps: nnx.merge(graph, state)(maps))(state, maps)
    assert matmul_flops(traced.jaxpr) / 2 == pytest.approx(16.79e9 + 0.741e9, rel=0.01)
    inner = [(104, 168), (52, 84), (26, 42), (13, 21)]
    maps = [jax.ShapeDtypeStruct((1, *size, 192), jnp.float32) for size in inner]
    for function, tokens, cost in (
        (kernel.spatial_attention, 116, 0.470e9),
        (kernel.channel_attention, 88, 0.271e9),
    ):
        bias = jax.ShapeDtypeStruct((4, tokens, tokens), jnp.float32)
        traced = jax.make_jaxpr(function)(maps, bias)
        assert matmul_flops(traced.jaxpr) / 2 == pytest.approx(cost, rel=0.01)


@pytest.fixture(scope="module")
def trained():
    """Gradients of a neck of three levels in training, and its statistics after a step."""
    neck = small((4, 6), levels=(0, 1, 1))
    neck.train()
    parts = split(neck, Head)
    maps = maps_of([(6, 5), (3, 3)], (4, 6))

    @jax.jit
    def step(trainable):
        def loss(trainable):
            made = merge(parts.graph, trainable, parts.frozen, parts.state)
            total = sum(jnp.square(x).sum() for x in made(maps))
            return total, nnx.to_pure_dict(nnx.state(made, nnx.BatchStat))

        return jax.grad(loss, has_aux=True)(trainable)

    return [flatten(tree) for tree in step(parts.trainable)]


def test_every_number_has_a_gradient_but_the_bias_that_softmax_cancels(trained):
    for path, gradient in trained[0].items():
        if path.endswith("bias/levels"):
            np.testing.assert_array_equal(gradient, 0.0)
        else:
            assert bool(jnp.any(gradient)), path
        assert bool(jnp.isfinite(gradient).all()), path


def test_statistics_follow_the_batch_unless_they_are_fixed(trained):
    assert len(trained[1]) == 2 * 4
    for path, moved in trained[1].items():
        assert bool(jnp.all(moved != (1.0 if path.endswith("var") else 0.0))), path
    fixed, usual = small(fixed_statistics=True), small()
    fixed.train()
    (x,) = maps_of([(4, 4)], (4,))
    np.testing.assert_array_equal(fixed.inputs[0](x), usual.inputs[0](x))
    np.testing.assert_array_equal(fixed.inputs[0].norm.mean[...], 0.0)


@pytest.mark.parametrize(
    ("options", "sizes", "expected"),
    [
        # RetinaNet's of a ResNet, whose C2 is left aside, and of three maps alone.
        ({}, [(26, 20), (13, 10), (7, 5), (4, 3)], [(13, 10), (7, 5), (4, 3), (2, 2), (1, 1)]),
        ({"extra": 0}, [(13, 10), (7, 5), (4, 3)], [(13, 10), (7, 5), (4, 3), (2, 2)]),
        # Faster R-CNN's.
        (
            {"levels": (0, 1, 2, 3)},
            [(26, 20), (13, 10), (7, 5), (4, 3)],
            [(26, 20), (13, 10), (7, 5), (4, 3), (2, 2)],
        ),
        # A YOLO's three, each as it is; two, and more than one pair of blocks.
        ({"levels": (0, 1, 2), "extra": 0}, [(8, 4), (4, 2), (2, 1)], [(8, 4), (4, 2), (2, 1)]),
        ({"levels": (0, 0), "pairs": 2, "extra": 2}, [(5, 7)], [(5, 7), (3, 4), (2, 2), (1, 1)]),
        # A plain transformer's, with an odd side.
        (
            {"pyramid": True, "extra": 0, "alpha": 3, "beta": 3},
            [(5, 7)] * 2,
            [(10, 14), (5, 7), (3, 4), (2, 2)],
        ),
    ],
)
def test_levels_are_of_the_maps_that_are_named(options, sizes, expected):
    widths = (6,) * len(sizes) if options.get("pyramid") else (3, 4, 6, 5)[-len(sizes) :]
    assert shapes_of(small_abstract(widths, **options), maps_of(sizes, widths)) == expected


def test_types_stay():
    parts = split(small(), Head)

    def outputs(trainable, maps):
        trainable, maps = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (trainable, maps))
        return merge(parts.graph, trainable, parts.frozen, parts.state)(maps)

    maps = maps_of([(8, 8), (4, 4), (2, 2), (1, 1)], (3, 4, 6, 5))
    found = jax.eval_shape(outputs, parts.trainable, maps)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}


def bias_of(windows, **options):
    return CrossLevelBias(windows, 2, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("spatial", [True, False])
def test_the_bias_is_the_same_in_half_precision(spatial):
    bias = bias_of((5, 3, 1), spatial=spatial)
    halves = bias.table[...].astype(jnp.bfloat16)
    bias.table[...] = halves.astype(jnp.float32)
    single = bias()
    bias.table.set_value(halves)
    assert bias().dtype == jnp.float32
    np.testing.assert_array_equal(bias(), single)


def test_a_table_between_whose_rows_nothing_lies_is_read_as_it_is():
    """Of offsets that are whole; a table of the offset itself gives fractions as they are."""
    bias = bias_of((65, 17, 5, 1), spatial=False)
    assert bias.table.shape == (129, 2)
    bias.table[...] = jnp.stack([jnp.arange(129.0), jnp.arange(129.0) ** 2], axis=1)
    (away,) = offsets(bias.windows, spatial=False)
    found = np.asarray(bias())
    np.testing.assert_allclose(found[0], away, rtol=1e-6)
    whole = away == np.round(away)
    assert 0 < whole.mean() < 1
    np.testing.assert_allclose(found[1][whole], away[whole] ** 2, rtol=1e-6)


def test_bilinear_biases_differ_where_rows_are_fractions_alone():
    windows = (9, 5, 3, 1)
    flat, bilinear = (
        np.asarray(bias_of(windows, spatial=True, bilinear=bilinear)())
        for bilinear in (False, True)
    )
    rows, columns = offsets(windows, spatial=True)
    between = rows != np.round(rows)
    differ = (np.abs(flat - bilinear) > 1e-5).any(axis=0)
    assert not differ[~between].any()
    assert differ.mean() == pytest.approx(0.31, abs=0.01)
    # Bilinear, a table of rows and columns gives both as they are, fractions too.
    bias = bias_of(windows, spatial=True, bilinear=True)
    bias.table[...] = jnp.stack(jnp.divmod(jnp.arange(17.0**2), 17), axis=1)
    np.testing.assert_allclose(bias(), [rows, columns], atol=1e-4)


def test_mistakes_are_refused():
    for options in ({"beta": 2}, {"levels": (0,)}, {"num_heads": 3}):
        with pytest.raises(ConfigError, match="no cross-layer attention of"):
            CFPT((4, 4), 8, **{"levels": (0, 1), **options}, rngs=nnx.Rngs(0))
    for levels in ((0, 2), (1, 1, 1)):
        with pytest.raises(ConfigError, match="of 2 maps: name each of them at most twice"):
            small((4, 4), levels=levels)


def test_strides_decide_which_neck_can_be_had():
    neck, widths = make_neck("cfpt", R18, strides=(4, 8, 16, 32), outputs=16, rngs=nnx.Rngs(0))
    assert isinstance(neck, CFPT)
    assert widths == (16,) * 5
    one = {"strides": (16, 16), "outputs": 16, "rngs": nnx.Rngs(0)}
    with pytest.raises(ConfigError, match=r'cfpt" with --config.neck.pyramid=True'):
        make_neck("cfpt", (32, 32), **one)
    neck, _ = make_neck("cfpt", (32, 32), **one, pyramid=True)
    assert neck.pyramid is not None
    with pytest.raises(ConfigError, match="out of maps of one; these have 8, 16 already"):
        make_neck("cfpt", (32, 32), **one | {"strides": (8, 16)}, pyramid=True)
