"""PAD's adapter: identity at the start, the paper's counts, every variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from vadapt import adapters
from vadapt.adapters.bottleneck import Bottleneck
from vadapt.adapters.patchwise_scale import FUSIONS, layer_scales
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.partition import Adapter, Constant, count, flatten, merge, split, variables

# Trainable encoder parameters at h = 64 with the concat gate; the paper's 1.23 M is the base one.
PAPER = {"small": 613_632, "base": 1_226_496, "large": 3_270_144}
VARIANTS = [
    *({"fusion": fusion} for fusion in FUSIONS),
    {"scale": 0.5},
    {"scale": 0.8, "schedule": "geometric"},
    {"scale": 0.8, "schedule": "linear"},
    {"scale": "learnable"},
    {"norm": "none"},
    {"norm": "out"},
]


def run(model, images):
    """The compiled forward pass."""
    return compiled.run("__call__", model, images)


def name(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


@pytest.fixture(scope="module")
def plain():
    return vit("micro", depth=2, image_size=16, layer_scale=0.5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 16, 16, 3))


@pytest.mark.parametrize("variant", sorted(PAPER))
def test_counts_are_the_papers(variant):
    def build():
        return adapters.apply(vit(variant, rngs=nnx.Rngs(0)), "patchwise_scale")

    shapes = nnx.eval_shape(build)
    assert count(nnx.to_pure_dict(nnx.state(shapes, Adapter))) == PAPER[variant]


def test_the_norm_of_an_adapter_has_the_epsilon_it_is_given(plain):
    def epsilons(**options):
        blocks = adapters.apply(plain, "patchwise_scale", hidden=8, **options).blocks
        return {block.mlp.adapter.norm.epsilon for block in blocks}

    assert (epsilons(), epsilons(norm_epsilon=1e-3)) == ({1e-5}, {1e-3})


@pytest.mark.parametrize("options", VARIANTS, ids=name)
def test_fresh_graft_is_the_frozen_network_bit_for_bit(options, plain, images):
    grafted = adapters.apply(plain, "patchwise_scale", hidden=8, **options)
    np.testing.assert_array_equal(run(grafted, images), run(plain, images))


@pytest.mark.parametrize("options", VARIANTS, ids=name)
def test_every_variant_changes_the_output_once_trained(options, plain, images):
    grafted = adapters.apply(plain, "patchwise_scale", hidden=8, **options)
    # Not the same number on every channel: the norms would take that out again.
    grafted.blocks[0].mlp.adapter.up.bias[...] = jnp.linspace(-1.0, 1.0, 96)
    assert jnp.abs(run(grafted, images) - run(plain, images)).max() > 1e-2


def test_grafting_leaves_the_given_model_alone_and_keeps_its_paths(plain):
    before = set(variables(plain))
    grafted = adapters.apply(plain, "patchwise_scale", hidden=8)
    assert set(variables(plain)) == before
    assert before < set(variables(grafted))
    frozen = split(grafted).frozen
    assert set(flatten(frozen)) == before - {"pos_embed"} | {"pos_embed"}


def test_first_gradient_reaches_only_the_up_projection(plain, images):
    grafted = adapters.apply(plain, "patchwise_scale", hidden=8)
    parts = split(grafted)

    def loss(trainable):
        return jnp.square(merge(parts.graph, trainable, parts.frozen, parts.state)(images)).mean()

    for path, gradient in flatten(jax.jit(jax.grad(loss))(parts.trainable)).items():
        assert bool(jnp.any(gradient)) == ("/up/" in path), path


def test_gates_start_at_one_half(plain, images):
    grafted = adapters.apply(plain, "patchwise_scale", hidden=8)
    _, scale = grafted.blocks[0].mlp.gated(grafted.embed(images))
    np.testing.assert_array_equal(scale, 0.5)


def test_dropout_acts_with_a_key_only():
    adapter = Bottleneck(8, 64, rngs=nnx.Rngs(0))
    adapter.up.kernel[...] = jnp.ones((64, 8))
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    assert jnp.array_equal(adapter(x), adapter(x))
    assert not jnp.array_equal(adapter(x, jax.random.key(1)), adapter(x))


def test_scales_have_the_type_that_says_whether_they_train(plain):
    fixed = adapters.apply(plain, "patchwise_scale", scale=0.3).blocks[0].mlp.gate.scale
    learned = adapters.apply(plain, "patchwise_scale", scale="learnable").blocks[0].mlp.gate.scale
    assert isinstance(fixed, Constant)
    assert isinstance(learned, Adapter)
    assert float(fixed[0]) == pytest.approx(0.3)


def test_schedules_span_the_depth():
    assert layer_scales(0.5, "geometric", 12)[0] == pytest.approx(0.5 * 0.8**11)
    assert layer_scales(0.5, "linear", 12) == pytest.approx(np.linspace(0.1, 0.5, 12))
    assert layer_scales("learnable", "constant", 2) == [0.5, 0.5]


def test_what_cannot_be_grafted_is_refused_with_the_reason(plain):
    with pytest.raises(ConfigError, match="Linear has none"):
        adapters.apply(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "patchwise_scale")
    grafted = adapters.apply(plain, "patchwise_scale")
    with pytest.raises(ConfigError, match="already"):
        adapters.apply(grafted, "patchwise_scale")
    with pytest.raises(ConfigError, match="nearest: 'concat'"):
        adapters.apply(plain, "patchwise_scale", fusion="conkat")
    with pytest.raises(ConfigError, match="nearest: 'patchwise_scale'"):
        adapters.apply(plain, "patchwise_scales")
    with pytest.raises(ConfigError, match="learnable"):
        adapters.apply(plain, "patchwise_scale", scale="learned")
