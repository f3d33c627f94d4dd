"""Rein: the paper's counts, what its tokens can and cannot change, grafts into models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests import compiled
from tests.equations import equations, shapes
from vadapt import models
from vadapt.adapters import rein
from vadapt.backbones.staged import Staged
from vadapt.errors import ConfigError, WeightsError
from vadapt.nn.tokens import Tokens
from vadapt.partition import Adapter, count, flatten, merge, split, variables
from vadapt.remat import rematerialise
from vadapt.weights.load import with_arrays

SMALL = {"num_tokens": 5, "rank": 3, "query_width": 4}
EXTRA = 5  # the class token and four registers


def number(*bodies, **options):
    """Learned numbers of the Reins of (layers, width)."""

    def build():
        return [
            rein.Rein(range(layers), width, **options, rngs=nnx.Rngs(0)) for layers, width in bodies
        ]

    shapes = nnx.eval_shape(build)
    assert all(isinstance(value, Adapter) for part in shapes for value in variables(part).values())
    return sum(count(nnx.to_pure_dict(nnx.state(part))) for part in shapes)


def dinov2(**options):
    size = {"width": 16, "depth": 3, "num_heads": 2, "image_size": 28, **options}
    return models.create("dinov2_small_reg", **size)


def randomised(model):
    """The model with random numbers in its adapter, larger than those it starts from."""
    rng = np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.normal(size=value.shape, scale=0.3), jnp.float32)
        for path, value in variables(model).items()
        if isinstance(value, Adapter)
    }
    return with_arrays(model, values)


def run(model, images, method="__call__", **options):
    """The compiled result of a method."""
    return compiled.run(method, model, images, **options)


@pytest.fixture(scope="module")
def plain():
    return dinov2()


@pytest.fixture(scope="module")
def grafted(plain):
    return randomised(vadapt.adapt(plain, "rein", **SMALL))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 28, 42, 3))


@pytest.mark.parametrize(
    ("bodies", "options", "expected"),
    [
        ([(24, 1024)], {}, 2_990_081),
        ([(24, 1024)], {"query_width": None}, 2_530_817),
        ([(24, 1024)], {"rank": None}, 5_016_065),
        ([(24, 1024)], {"num_tokens": 150}, 3_009_281),
        ([(24, 1024)], {"rank": 4}, 2_666_369),
        ([(24, 1024)], {"rank": 8}, 2_774_273),
        ([(24, 1024)], {"rank": 32}, 3_421_697),
        ([(24, 1024)], {"rank": 64}, 4_284_929),
        ([(12, 768)], {}, 1_741_569),
        ([(12, 384)], {}, 684_033),
        ([(32, 1280)], {}, 4_510_721),
        ([(4, 1280)], {}, 3_892_481),
        ([(40, 1536)], {}, 6_359_041),
        ([(3, 192), (3, 384), (27, 768), (3, 1536)], {}, 8_289_156),
        ([(3, 256), (4, 512), (6, 1024), (3, 2048)], {}, 13_187_588),
    ],
)
def test_counts_are_the_papers(bodies, options, expected):
    assert number(*bodies, **options) == expected


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({"rank": None, "query_width": None, "shared": False}, 52.84),
        ({"rank": None, "shared": False}, 59.33),
        ({"rank": None}, 5.02),
        ({}, 2.99),
    ],
)
def test_counts_are_those_of_the_papers_ablation(options, millions):
    assert round(number((24, 1024), start="paper", **options) / 1e6, 2) == millions


def test_one_percent_of_dinov2_trains():
    def build():
        return vadapt.adapt(models.create("dinov2_large", image_size=512, patch_size=16), "rein")

    parts = split(nnx.eval_shape(build))
    assert count(parts.trainable) == 2_990_081
    assert count(parts.frozen) + count(parts.trainable) == 307_189_761 - 1024  # no mask token


def test_grafting_leaves_the_given_model_alone_and_keeps_its_paths(plain, grafted):
    parts = split(grafted)
    assert set(flatten(parts.frozen)) == set(variables(plain))
    assert {path.split("/")[0] for path in flatten(parts.trainable)} == {"adapter"}
    assert not plain.hooks


@pytest.mark.parametrize("start", ["zero", "paper"])
def test_fresh_graft_from_zero_is_the_frozen_network_bit_for_bit(start, plain, images):
    fresh = vadapt.adapt(plain, "rein", start=start, **SMALL)
    np.testing.assert_array_equal(run(fresh, images), run(plain, images))
    assert fresh.adapter.scale is None


@pytest.mark.parametrize("start", ["released", "eva02"])
def test_other_starts_are_near_it(start, plain, images):
    fresh = vadapt.adapt(plain, "rein", start=start, **SMALL)
    distance = jnp.abs(run(fresh, images) - run(plain, images)).max()
    assert 0 < distance < 0.05


def test_starts_have_the_released_codes_ranges(plain):
    adapter = vadapt.adapt(plain, "rein").adapter
    limit = (6 / (3 * 16**2 + (16 * 16) ** 0.5)) ** 0.5
    for tokens in (adapter.tokens_a, adapter.tokens_b):
        assert 0.95 * limit < float(jnp.abs(tokens[...]).max()) <= limit
    assert 0.2 < float(jnp.abs(adapter.delta.bias[...]).max()) <= 0.25
    assert float(adapter.scale[...]) == pytest.approx(1e-3)
    assert not vadapt.adapt(plain, "rein", start="paper").adapter.merge.bias[...].any()


def test_scale_zero_is_the_frozen_network_bit_for_bit(plain, grafted, images):
    off = with_arrays(grafted, {"adapter/scale": jnp.zeros(())})
    taps = {"method": "features", "layers": [0, 2], "norm": False}
    for found, expected in zip(run(off, images, **taps), run(plain, images, **taps), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_class_token_and_registers_pass_unchanged(plain, grafted, images):
    @jax.jit
    def first_blocks(images):
        return [model.features(images, 0, norm=False) for model in (plain, grafted)]

    plainly, refined = first_blocks(images)
    np.testing.assert_array_equal(refined[:, :EXTRA], plainly[:, :EXTRA])
    assert (jnp.abs(refined - plainly)[:, EXTRA:] > 1e-3).mean() > 0.9


def test_features_are_refined_and_feed_the_next_block(grafted, images):
    first, last = run(grafted, images, "features", layers=[0, 2], norm=False)

    @jax.jit
    def by_hand(images):
        hook, x = grafted.adapter, Tokens(grafted.embed(images), EXTRA)
        state, outputs = hook.start(images), []
        for number, block in enumerate(grafted.blocks):
            x, state = hook.after(number, x.with_array(block(x.array)), state)
            outputs.append(x.array)
        return outputs[0], outputs[2], grafted.norm(outputs[2])

    one, other, normed = by_hand(images)
    np.testing.assert_allclose(first, one, atol=1e-5)
    np.testing.assert_allclose(last, other, atol=1e-5)
    np.testing.assert_allclose(run(grafted, images), normed, atol=1e-5)
    np.testing.assert_allclose(run(grafted, images, "with_attention")[0], normed, atol=1e-5)


def test_order_of_tokens_only_orders_the_queries(grafted, images):
    order = np.array([0, 3, 1, 4, 2])
    rows = grafted.adapter.tokens_a[...][:, order]
    permuted = with_arrays(grafted, {"adapter/tokens_a": rows})
    np.testing.assert_allclose(run(permuted, images), run(grafted, images), atol=1e-5)
    np.testing.assert_allclose(
        rein.queries(permuted), rein.queries(grafted)[order], atol=1e-5, rtol=1e-5
    )


def test_the_first_token_only_says_how_much_a_patch_takes():
    rng = np.random.default_rng(0)
    x, tokens, values = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 6, 8), (5, 8), (5, 8))
    )
    values = values.at[0].set(0.0)

    def said(first):
        changed = tokens.at[0].set(first)
        refined = rein.refine(x, changed, values, jnp.eye(8), jnp.zeros(8))
        return refined - 2 * x  # the correction is what is said, plus the features

    more, less = said(-1.0), said(3.0)
    ratios = (more * less).sum(-1, keepdims=True) / jnp.square(more).sum(-1, keepdims=True)
    np.testing.assert_allclose(less, ratios * more, atol=1e-5)
    assert np.ptp(ratios) > 0.1


def test_a_lone_token_leaves_the_linear_layer_alone():
    adapter = rein.Rein([0], 8, num_tokens=1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    refined, _ = adapter.after(0, Tokens(x), adapter.start(jnp.zeros((1, 8, 8, 3))))
    expected = x + 1e-3 * (x @ adapter.delta.kernel[...] + adapter.delta.bias[...][None, None])
    np.testing.assert_allclose(refined.array, expected, atol=1e-6)


def test_a_batch_twice_gives_its_outputs_twice(grafted, images):
    once, twice = run(grafted, images), run(grafted, jnp.concatenate([images, images]))
    np.testing.assert_array_equal(twice[:2], twice[2:])
    np.testing.assert_allclose(twice[:2], once, atol=1e-5)


def test_layers_can_be_chosen(plain, images):
    model = randomised(vadapt.adapt(plain, "rein", layers=[-1, 1], **SMALL))
    assert model.adapter.layers == (1, 2)
    assert model.adapter.tokens_a.shape == (2, 5, 3)
    first, second = run(model, images, "features", layers=[0, 1], norm=False)
    before, after = run(plain, images, "features", layers=[0, 1], norm=False)
    np.testing.assert_array_equal(first, before)
    assert jnp.abs(second - after).max() > 1e-2


def gradients(model, images, policy):
    parts = split(model)

    def loss(trainable):
        model = merge(parts.graph, trainable, parts.frozen, parts.state)
        return jnp.square(model.features(images)).sum() + jnp.square(rein.queries(model)).sum()

    with rematerialise(policy):
        return flatten(jax.jit(jax.grad(loss))(parts.trainable))


def test_gradients_of_tokens_are_not_added_up_block_by_block(images):
    parts = split(vadapt.adapt(dinov2(), "rein", **SMALL))

    def loss(trainable):
        model = merge(parts.graph, trainable, parts.frozen, parts.state)
        return jnp.square(model.features(images)).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(parts.trainable).jaxpr
    tokens = [one.primitive.name for one in equations(traced) if (3, 5, 16) in shapes(one)]
    assert tokens.count("concatenate") == 2  # of tokens, and of what they say
    assert "pad" not in tokens
    assert tokens.count("add_any") <= 1


def test_every_number_has_a_gradient_the_same_under_rematerialisation(images):
    grafted = randomised(vadapt.adapt(dinov2(depth=2), "rein", **SMALL))
    kept = gradients(grafted, images, "none")
    again = gradients(grafted, images, "blocks")
    for path, gradient in kept.items():
        assert bool(jnp.any(gradient)), path
        scale = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(again[path], gradient, atol=1e-5 * scale, err_msg=path)


def test_unshared_layers_each_have_their_own(plain, images):
    model = randomised(vadapt.adapt(plain, "rein", shared=False, **SMALL))
    kernel = model.adapter.delta.kernel[...]
    assert kernel.shape == (3, 16, 16)
    changed = with_arrays(model, {"adapter/delta/kernel": kernel.at[1].add(1.0)})
    taps = {"method": "features", "layers": [0, 1], "norm": False}
    first, second = run(model, images, **taps)
    same, other = run(changed, images, **taps)
    np.testing.assert_array_equal(same, first)
    assert jnp.abs(other - second).max() > 1e-2
    assert rein.queries(model).shape == (5, 4)


def test_bfloat16_stays_bfloat16(grafted, images):
    parts = split(grafted)

    @jax.jit
    def half(tree):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)

    model = merge(parts.graph, half(parts.trainable), half(parts.frozen), parts.state)
    features, expected = run(model, images, "features"), run(grafted, images, "features")
    assert features.dtype == rein.queries(model).dtype == jnp.bfloat16
    assert jnp.abs(features.astype(jnp.float32) - expected).mean() < 0.05


class Linear(nnx.Linear):
    """A block of one linear layer."""

    def __call__(self, x, key=None):
        return super().__call__(x)


class Stages(Staged):
    """A backbone of two stages of maps."""

    widths, in_channels = (4, 6), 4

    def __init__(self):
        self.stages = nnx.List(
            nnx.List([Linear(width, width, rngs=nnx.Rngs(0)) for _ in range(2)])
            for width in self.widths
        )

    def enter(self, x, stage):
        return jnp.concatenate([x, x[..., :2]], axis=-1) if stage else x


def test_stages_get_a_rein_each_and_their_queries_add_up():
    plain, images = Stages(), jnp.ones((1, 2, 3, 4))
    model = randomised(vadapt.adapt(plain, "rein", **SMALL))
    assert set(flatten(split(model).frozen)) == set(variables(plain))
    assert model.adapter[1].tokens_b.shape == (2, 3, 6)
    queries = jax.jit(
        lambda: [rein.queries(model), *(adapter.queries() for adapter in model.adapter)]
    )()
    np.testing.assert_allclose(queries[0], queries[1] + queries[2], rtol=1e-6)
    features = jax.jit(lambda x: [one.features(x, (0, 1)) for one in (model, plain)])(images)
    outputs = jax.jit(lambda x: model.extract(x).outputs)(images)
    np.testing.assert_array_equal(outputs["queries"], queries[0])
    for found, before in zip(*features, strict=True):
        assert found.shape == before.shape
        assert jnp.abs(found - before).max() > 1e-3
    with pytest.raises(ConfigError, match="stages"):
        vadapt.adapt(plain, "rein", layers=[0])


def test_the_adapter_file_brings_it_back(plain, grafted, images, tmp_path):
    path = tmp_path / "rein.safetensors"
    vadapt.save_adapter(path, grafted)
    fresh = vadapt.adapt(plain, "rein", **SMALL)
    vadapt.load_adapter(fresh, path)
    np.testing.assert_array_equal(run(fresh, images), run(grafted, images))
    with pytest.raises(WeightsError, match="base"):
        vadapt.load_adapter(vadapt.adapt(dinov2(rngs=3), "rein", **SMALL), path)


def test_what_cannot_be_grafted_is_refused_with_the_reason(plain, grafted):
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        vadapt.adapt(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "rein")
    with pytest.raises(ConfigError, match="has this method already"):
        vadapt.adapt(grafted, "rein")
    with pytest.raises(ConfigError, match="3 blocks"):
        vadapt.adapt(plain, "rein", layers=[3])
    with pytest.raises(ConfigError, match="nearest: 'released'"):
        vadapt.adapt(plain, "rein", start="release")
    with pytest.raises(ConfigError, match="start at 1"):
        vadapt.adapt(plain, "rein", rank=0)
    with pytest.raises(ConfigError, match="query_width"):
        rein.queries(vadapt.adapt(plain, "rein", query_width=None))
