"""LoRA: identity at the start, the published count, folded and unfolded models alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from tests.golden_modules.peft_zoo import lora_conv, lora_layer
from tests.parity import GOLDENS, Golden
from vadapt import adapters
from vadapt.adapters.lora import Lora
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.partition import Adapter, count, flatten, merge, split, variables

TARGETS = [
    ("q", "v"),
    ("k",),
    ("qkv", "proj"),
    ("q", "k", "v", "proj", "fc1", "fc2"),
]


def run(model, images, key=None):
    """The compiled forward pass."""
    return compiled.run(forward, model, images, key)


def forward(model, images, key):
    return model(images, key=key)


@pytest.fixture(scope="module")
def plain():
    return vit("micro", depth=1, image_size=16, layer_scale=0.5, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 16, 16, 3))


def trained(model):
    """The model with random numbers where an adapter starts at zero."""
    key = jax.random.key(2)
    for _, node in nnx.iter_graph(model):
        if isinstance(node, Lora):
            key, own = jax.random.split(key)
            node.lora.up[...] = 0.1 * jax.random.normal(own, node.lora.up.shape)
    return model


def test_the_count_is_the_published_one():
    shapes = nnx.eval_shape(lambda: adapters.apply(vit("base", rngs=nnx.Rngs(0)), "lora"))
    assert count(nnx.to_pure_dict(nnx.state(shapes, Adapter))) == 294_912


@pytest.mark.parametrize("targets", TARGETS, ids=" ".join)
def test_fresh_graft_is_the_frozen_network(targets, plain, images):
    grafted = adapters.apply(plain, "lora", rank=4, alpha=8.0, targets=targets)
    np.testing.assert_array_equal(run(grafted, images), run(plain, images))


@pytest.mark.parametrize("targets", TARGETS, ids=" ".join)
def test_folded_is_unfolded_and_plain(targets, plain, images):
    grafted = trained(adapters.apply(plain, "lora", rank=4, alpha=8.0, targets=targets))
    folded = adapters.fold(grafted)
    wanted = run(grafted, images)
    assert np.abs(wanted - run(plain, images)).max() > 1e-2
    np.testing.assert_allclose(run(folded, images), wanted, rtol=1e-5, atol=1e-5)
    assert {path: value.shape for path, value in variables(folded).items()} == {
        path: value.shape for path, value in variables(plain).items()
    }
    assert not flatten(split(folded).trainable)
    assert flatten(split(grafted).trainable)  # which stayed as it was
    other = jax.tree.structure(nnx.state(plain))
    assert jax.tree.structure(nnx.state(folded)) == other


def test_a_swiglu_model_takes_it_too(images):
    gated = vit("micro", depth=1, image_size=16, swiglu=True, rngs=nnx.Rngs(0))
    grafted = trained(adapters.apply(gated, "lora", rank=2, targets=("w12", "w3")))
    wanted = run(grafted, images)
    np.testing.assert_allclose(run(adapters.fold(grafted), images), wanted, rtol=1e-5, atol=1e-5)


def test_frozen_paths_stay_and_the_given_model_too():
    plain = vit("micro", depth=2, image_size=16, rngs=nnx.Rngs(0))
    before = set(variables(plain))
    grafted = adapters.apply(plain, "lora")
    assert set(variables(plain)) == before
    assert set(flatten(split(grafted).frozen)) == before
    assert set(flatten(split(grafted).trainable)) == {
        f"blocks/{i}/attn/inner/qkv/lora/{name}" for i in range(2) for name in ("down", "up")
    }


def test_first_gradient_reaches_only_the_matrices_at_zero(plain, images):
    parts = split(adapters.apply(plain, "lora"))

    def loss(trainable):
        return jnp.square(merge(parts.graph, trainable, parts.frozen, parts.state)(images)).mean()

    for path, gradient in flatten(jax.jit(jax.grad(loss))(parts.trainable)).items():
        assert bool(jnp.any(gradient)) == path.endswith("/up"), path


def test_the_part_that_is_off_stays(plain):
    grafted = trained(adapters.apply(plain, "lora", targets=("q", "v")))
    layer, kernel = grafted.blocks[0].attn.inner.qkv, plain.blocks[0].attn.inner.qkv.kernel[...]
    queries, keys, values = jnp.split(layer.folded().kernel[...] - kernel, 3, axis=-1)
    assert not jnp.any(keys)
    assert bool(jnp.any(queries))
    assert bool(jnp.any(values))


def test_dropout_acts_with_a_key_only_and_differs_by_layer(plain, images):
    grafted = trained(adapters.apply(plain, "lora", targets=("q", "proj", "fc1"), dropout=0.5))
    still = trained(adapters.apply(plain, "lora", targets=("q", "proj", "fc1")))
    wanted = run(still, images)
    np.testing.assert_array_equal(run(grafted, images), wanted)
    first, again, other = (run(grafted, images, jax.random.key(i)) for i in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert jnp.abs(first - wanted).max() > 1e-3 < jnp.abs(first - other).max()
    numbers = [
        node.number for _, node in nnx.iter_graph(grafted.blocks[0]) if isinstance(node, Lora)
    ]
    assert len(set(numbers)) == 3
    np.testing.assert_allclose(run(adapters.fold(grafted), images), wanted, rtol=1e-5, atol=1e-5)
    assert set(variables(adapters.fold(grafted))) == set(variables(plain))


def test_dropout_survives_rematerialisation(plain, images):
    from vadapt.remat import rematerialise

    grafted = trained(adapters.apply(plain, "lora", dropout=0.5))
    parts = split(grafted)

    def gradient(policy):
        def loss(trainable):
            with rematerialise(policy):
                model = merge(parts.graph, trainable, parts.frozen, parts.state)
                return jnp.square(model(images, key=jax.random.key(0))).mean()

        return flatten(jax.jit(jax.grad(loss))(parts.trainable))

    kept, computed = gradient("none"), gradient("blocks")
    for path, value in kept.items():
        np.testing.assert_allclose(computed[path], value, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("case", ["lora_linear", "lora_merged_qkv"])
def test_folded_weights_are_the_originals(case):
    golden = Golden.read(GOLDENS / "peft_zoo" / f"{case}.npz")
    layer = lora_layer(golden.meta["config"], golden["param"])
    np.testing.assert_allclose(
        layer.folded().kernel[...].T, golden["merged"]["weight"], rtol=1e-5, atol=1e-6
    )


def test_a_folded_convolution_of_the_released_code_is_its_merged_weight():
    golden = Golden.read(GOLDENS / "peft_zoo" / "lora_conv2d.npz")
    params = jax.tree.map(jnp.asarray, golden["param"])
    kernel = lora_conv(golden.meta["config"], params).folded().kernel[...]
    merged = golden["merged"]["weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, merged, rtol=1e-5, atol=1e-6)


class Layers(nnx.Module):
    """A convolution, one of groups, and a linear layer."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.grouped = nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=rngs)
        self.linear = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.grouped(self.conv(x)))


@pytest.mark.parametrize(
    "options",
    [{"dora": True}, {"convolutions": "released"}, {"dora": True, "convolutions": "released"}],
)
def test_every_kind_of_change_starts_at_nothing_learns_and_folds(options):
    x = jax.random.normal(jax.random.key(1), (2, 5, 7, 3))
    plain = Layers()
    model = adapters.apply(plain, "lora", rank=2, alpha=4.0, targets=(".*",), **options)
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-6, atol=1e-6)
    model = trained(model)
    parts = split(model)

    def loss(trainable):
        return jnp.square(merge(parts.graph, trainable, parts.frozen, parts.state)(x)).sum()

    for path, gradient in flatten(jax.jit(jax.grad(loss))(parts.trainable)).items():
        assert np.asarray(gradient).any(), path
    if "dora" in options:
        model.linear.magnitude[...] = model.linear.magnitude[...] * jnp.linspace(0.5, 2, 5)[None]
    changed = model(x)
    assert np.abs(changed - plain(x)).max() > 1e-2
    folded = adapters.fold(model, strict=True)
    assert set(variables(folded)) == set(variables(plain))
    np.testing.assert_allclose(folded(x), changed, rtol=1e-5, atol=1e-5)


def test_dora_learns_lengths_of_columns_and_lora_their_directions(plain):
    model = trained(adapters.apply(plain, "lora", rank=2, dora=True))
    layer, frozen = model.blocks[0].attn.inner.qkv, plain.blocks[0].attn.inner.qkv.kernel[...]
    assert layer.magnitude.shape == (2, 96)  # of q and v
    layer.magnitude[...] = layer.magnitude[...] * 1.5
    found = np.asarray(layer.folded().kernel[...])
    changed = np.asarray(frozen + layer.lora.matrix())
    factors = 1.5 * np.linalg.norm(frozen, axis=0) / np.linalg.norm(changed, axis=0)
    factors[96:192] = 1.0
    np.testing.assert_allclose(found, changed * factors, rtol=1e-5, atol=1e-6)
    assert np.abs(factors - 1.5)[:96].max() > 1e-3


def test_lora_goes_with_other_methods_of_which_those_that_cannot_be_folded_stay(plain, images):
    both = adapters.apply(plain, "patchwise_scale", hidden=4)
    both = trained(adapters.apply(both, "lora", rank=2, targets=("v", "fc1")))
    wanted = run(both, images)
    with pytest.warns(UserWarning, match=r"blocks/0/mlp/adapter.* depends on the input"):
        folded = adapters.fold(both)
    np.testing.assert_allclose(run(folded, images), wanted, rtol=1e-5, atol=1e-5)
    assert [dict(method)["name"] for method in folded.applied] == ["patchwise_scale"]
    with pytest.raises(ConfigError, match="depends on the input"):
        adapters.fold(both, strict=True)


def test_what_cannot_be_grafted_is_refused_with_the_reason(plain):
    with pytest.raises(ConfigError, match="nearest: 'fc1'"):
        adapters.apply(plain, "lora", targets=("q", "fc_1"))
    with pytest.raises(ConfigError, match="already"):
        adapters.apply(adapters.apply(plain, "lora"), "lora")
    with pytest.raises(ConfigError, match="Linear"):
        adapters.apply(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "lora")
    with pytest.raises(ConfigError, match="at least 1"):
        adapters.apply(plain, "lora", rank=0)
    with pytest.raises(ConfigError, match="targets"):
        adapters.apply(plain, "lora", targets=())
    with pytest.raises(ConfigError, match="dropout=0"):
        adapters.apply(plain.blocks[0].mlp.inner, "lora", targets=("fc1",), dropout=0.1)
