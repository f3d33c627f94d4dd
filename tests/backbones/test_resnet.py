"""ResNet: published counts, maps of any size, dilations, and norms by stored statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.abstract import named
from tests.backbones.drawn import drawn, in_bfloat16
from tests.compiled import run
from vadapt import remat
from vadapt.backbones.resnet import ResNet
from vadapt.errors import ConfigError
from vadapt.nn.convolutions import BatchNorm
from vadapt.partition import Statistic, count, flatten, merge, split, variables

# Learned numbers of the trunk: torchvision's totals less the classifier's; the V1c of 101 is the
# published one too.
COUNTS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "resnet50_v1c": 23_527_264,
    "resnet101_v1c": 42_519_392,
}
DENSE = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}


@pytest.fixture(scope="module")
def model():
    return drawn(lambda: ResNet(18, base_width=4, rngs=nnx.Rngs(0)))


def pixels(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 3)), jnp.float32)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(name):
    model = named(name)
    assert count(split(model, "everything").trainable) == COUNTS[name]
    widths = (64, 128, 256, 512)
    assert model.widths == (widths if name in ("resnet18", "resnet34") else (256, 512, 1024, 2048))


def all_maps(model, images):
    return model.features(images, (0, 1, 2, 3), as_grid=True)


@functools.cache
def abstract(deep_stem):
    return nnx.eval_shape(lambda: ResNet(50, base_width=4, deep_stem=deep_stem, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("deep_stem", [False, True], ids=["v1", "v1c"])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50)])
def test_odd_sizes_are_rounded_up(size, deep_stem):
    model, images = abstract(deep_stem), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    assert model.strides == (4, 8, 16, 32)
    maps = nnx.eval_shape(all_maps, model, images)
    assert len(maps) == 4
    for i, found in enumerate(maps):
        height, width = (-(-side // (4 * 2**i)) for side in size)
        assert found.shape == (2, height, width, 16 * 2**i)


def test_dilated_stages_keep_their_resolution():
    def maps():
        model = ResNet(18, base_width=4, **DENSE, rngs=nnx.Rngs(0))
        assert model.strides == (4, 8, 8, 8)
        return model.features(pixels(1, 64, 40), (1, 2, 3), as_grid=True)

    assert [x.shape[1:3] for x in jax.eval_shape(maps)] == [(8, 5)] * 3


@pytest.mark.parametrize(("contract", "first"), [(True, (1, 1, 1, 2)), (False, (1, 1, 2, 4))])
def test_first_blocks_of_dilated_stages_can_have_half_the_dilation(contract, first):
    options = {**DENSE, "contract_dilation": contract}
    model = nnx.eval_shape(lambda: ResNet(50, base_width=4, **options, rngs=nnx.Rngs(0)))
    for stage, one, rest in zip(model.stages, first, DENSE["dilations"], strict=True):
        dilations = [block.layers[1].conv.kernel_dilation for block in stage]
        assert dilations == [one] + [rest] * (len(stage) - 1)


def ways_to_call(model, images):
    return {
        "several": model.features(images, layers=(3, 0), as_grid=True),
        "call": model(images),
        "early": model.features(images, layers=-4, as_grid=True),
        "tokens": model.features(images, layers=0),
        "without norm": model.features(images, layers=0, norm=False),
    }


@pytest.fixture(scope="module")
def outputs(model):
    """What two images become, in every way to ask for it."""
    return jax.tree.map(np.asarray, run(ways_to_call, model, pixels(2, 40, 64)))


def test_features_come_in_the_order_asked_as_maps_or_tokens(outputs):
    late, early = outputs["several"]
    np.testing.assert_array_equal(late, outputs["call"])
    np.testing.assert_array_equal(early, outputs["early"])
    np.testing.assert_array_equal(outputs["tokens"], early.reshape(2, 10 * 16, 4))
    np.testing.assert_array_equal(outputs["tokens"], outputs["without norm"])


def second_map(model, images):
    """That of two stages, whose blocks are like those of all four."""
    return model.features(images, 1, as_grid=True)


def gradient(model, images, policy):
    parts = split(model)
    with remat.rematerialise(policy):
        return jax.grad(lambda images: (second_map(merge(*parts), images) ** 2).sum())(images)


@pytest.mark.parametrize("policy", ["dots", "blocks"])
def test_gradients_are_the_same_with_rematerialisation(model, policy):
    images = pixels(1, 32, 32)
    found, expected = (run(gradient, model, images, policy=name) for name in (policy, "none"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_weights_compute_in_bfloat16_by_statistics_in_float32(model, outputs):
    cast, expected = in_bfloat16(model), outputs["call"]
    found = run("__call__", cast, pixels(2, 40, 64))
    assert found.dtype == jnp.bfloat16
    assert cast.stem[0].norm.mean.dtype == jnp.float32
    # bf16 keeps 8 bits, and some twenty layers follow each other.
    np.testing.assert_allclose(
        np.asarray(found, np.float32), expected, atol=0.05 * np.abs(expected).max()
    )


def test_norms_go_by_stored_statistics_which_never_train(model):
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    norm.mean[...], norm.var[...] = jnp.array([1.0, 100.0]), jnp.array([4.0, 0.25])
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0]), jnp.array([0.0, -1.0])
    found = run("__call__", norm, jnp.array([[3.0, 100.5], [1.0, 99.5]]))
    np.testing.assert_allclose(found, [[1.0, 1.0], [0.0, -3.0]], atol=1e-4)
    assert isinstance(norm.mean, Statistic)
    assert isinstance(norm.var, Statistic)
    state = split(model, "everything").state
    assert count(state) == 2 * (4 + sum((4 + 1 * (i > 0)) * 4 * 2**i for i in range(4)))


def moved(model, images):
    for _, node in nnx.iter_graph(model):
        if isinstance(node, BatchNorm):
            node.use_running_average = False
    with remat.rematerialise("blocks"):
        model(images)
    return split(model).state


def test_statistics_move_in_blocks_that_are_rematerialised(model):
    after = run(moved, model, pixels(2, 64, 64))
    before, after = flatten(split(model).state), flatten(after)
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert np.abs(np.asarray(after[path]) - value).max() > 1e-3, path


def normed_and_statistics(norm, x):
    return norm(x), norm.mean[...], norm.var[...]


def test_norms_can_go_by_the_batch_and_then_move_their_statistics():
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    norm.use_running_average = False
    x = np.random.default_rng(0).normal(5.0, 2.0, (4, 3, 3, 3)).astype(np.float32)
    found, mean, var = run(normed_and_statistics, norm, x)
    found = np.asarray(found)
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.std((0, 1, 2)), 1.0, atol=1e-4)
    np.testing.assert_allclose(mean, 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def with_and_without_twice(model, images):
    found = model(images)
    model.stages[3][1] = model.stages[3][1].block
    return found, model(images)


def test_a_block_can_be_replaced(model):
    class Twice(nnx.Module):
        def __init__(self, block):
            self.block = block

        def __call__(self, x, key=None):
            return 2.0 * self.block(x, key)

    graph = nnx.clone(model)
    graph.stages[3][1] = Twice(graph.stages[3][1])
    found, plain = run(with_and_without_twice, graph, pixels(1, 32, 32))
    np.testing.assert_allclose(found, 2.0 * np.asarray(plain))
    assert "stages/3/1/block/layers/0/conv/kernel" in variables(graph)


def test_wrong_settings_say_what_is_allowed(model):
    with pytest.raises(ConfigError, match="no ResNet has depth 51; nearest: '50'"):
        ResNet(51, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="for each of 4 stages"):
        ResNet(50, strides=(1, 2, 2), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="4 stages \\(0 to 3\\)"):
        model.features(pixels(1, 32, 32), layers=4)
