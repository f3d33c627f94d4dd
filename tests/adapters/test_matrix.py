"""Every adapter on every kind of backbone: what it promises, or a refusal that names why not."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.adapters.test_surgery import MODELS, SIZE
from vadapt.adapters import METHODS
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.vit import ViT
from vadapt.errors import ConfigError
from vadapt.partition import Adapter, Factor, Prompt, flatten, merge, split, variables
from vadapt.remat import rematerialise, scanned
from vadapt.weights.load import with_arrays

TRUNKS = {
    "plain": {},
    "rotary": {"rotary": "pairs", "rotary_extent": None, "key_bias": False},
    "registers": {"num_registers": 2, "layer_scale": 0.5},
    "gated": {"swiglu": True, "mlp_norm": True},
    "relative": {"relative_positions": "both", "positions": "none"},
}
# Of each method options that are small, and train at random numbers what starts at zero.
OPTIONS = {
    "adaptformer": {"hidden": 6},
    "cls_reinit": {},
    "conv_adapter": {"reduction": 2, "scale": 0.0},
    "frpt": {"cells": 5, "padding": 4, "fwhm": 2.0},
    "houlsby": {"hidden": 6},
    "lora": {"rank": 2},
    "patchwise_scale": {"hidden": 6},
    "pfeiffer": {"reduction": 2},
    "pro_tuning": {"kernel": 3},
    "rein": {"num_tokens": 3, "rank": 2, "query_width": 4, "start": "paper"},
    "side": {"channels": (4,) * 5},
    "spm": {"num_classes": 2, "hidden": 3, "steps": 1},
    "ssf": {"std": 0.0},
    "svf": {},
    "vpt": {"num_tokens": 2, "deep": True},
}
PLACES = {"convnext": ["fc1", "dwconv"], "resnet": ["conv"], "vig": [".*/fc1/linear"]}
DROPOUT = {"adaptformer", "lora", "patchwise_scale", "vpt"}  # that have some
CHANGES = {"cls_reinit", "frpt", "side", "vpt"}  # that start as another model than the frozen one
# That a softmax over all places takes out again: no gradient but that of rounding.
IDLE = {"frpt/sampler/score/bias"}
FOLDS = {"lora", "ssf", "svf"}
# At the start as before to this share, not to the bit.
ROUNDED = {"houlsby": 1e-4, "ssf": 1e-6, "svf": 1e-5}  # the first starts near it, at 1e-3 squared
# What is refused, and by what words.
REFUSED = {
    ("vpt", "relative"): "relative positions of this ViT",
    **{
        ("vpt", name): "blocks of this .* work on maps"
        for name in ("windows", "convnext", "resnet", "vig")
    },
    **{
        ("cls_reinit", name): "has no class token"
        for name in ("windows", "convnext", "resnet", "swin", "vig")
    },
    **{
        ("conv_adapter", name): "has none. Give it a ResNet or a ConvNeXt"
        for name in (*TRUNKS, "windows", "swin", "vig")
    },
    **{
        (method, name): f"{name} has none. Give it a ViT"
        for method in ("adaptformer", "patchwise_scale")
        for name in ("convnext", "resnet", "vig")
    },
    **{
        (method, name): r"\['mlp_out'\] of the targets are nowhere in this"
        for method in ("houlsby", "pfeiffer")
        for name in ("resnet", "vig")
    },
}


@functools.cache
def trunk(name):
    if name in TRUNKS:
        return ViT(**SIZE, **TRUNKS[name], rngs=nnx.Rngs(0))
    if name == "windows":
        size = {**SIZE, "window": 2, "global_blocks": [1], "neck": None}
        return SAMEncoder(**size, rngs=nnx.Rngs(0))
    return MODELS[name][0]()


def adapted(method, name):
    options = dict(OPTIONS[method])
    if method == "lora" and name in PLACES:
        options["targets"] = PLACES[name]
    if method == "houlsby" and name not in (*TRUNKS, "windows", "swin"):
        options["targets"] = ["mlp_out"]  # there is no attention
    if method == "spm" and hasattr(trunk(name), "blocks"):
        options["num_stages"] = 2
    if method in DROPOUT:
        options["dropout"] = 0.5
    return vadapt.adapt(trunk(name), method, **options)


def outputs(model, images, key=None):
    features = model.extract(images, key=key)
    return features.maps, features.outputs


# On every suite's run one backbone of each kind; what is refused is so at once.
QUICK = ("plain", "convnext", "swin")
PAIRS = [
    pytest.param(
        method, name, marks=[] if name in QUICK or (method, name) in REFUSED else pytest.mark.plans
    )
    for method in METHODS
    if method in OPTIONS
    for name in (*TRUNKS, "windows", "convnext", "resnet", "swin", "vig")
]


def test_every_adapter_is_in_the_table():
    own = {name for name, part in METHODS.items() if part.__module__.startswith("vadapt.")}
    assert own == set(OPTIONS)


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_an_adapter_keeps_its_promises_or_says_why_not(method, name, tmp_path):
    if (method, name) in REFUSED:
        with pytest.raises(ConfigError, match=f"(?i){REFUSED[method, name]}"):
            adapted(method, name)
        return
    model, plain = adapted(method, name), trunk(name)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 16, 24, 3)), jnp.float32)
    parts, frozen = split(model), split(plain)
    made = {path for path, value in variables(model).items() if isinstance(value, Factor)}
    assert set(flatten(parts.frozen)) - made == set(flatten(frozen.frozen))
    added = {path: v for path, v in variables(model).items() if isinstance(v, Adapter | Prompt)}
    assert set(flatten(parts.trainable)) == set(added)
    rng = np.random.default_rng(2)
    numbers = {
        path: np.asarray(rng.normal(size=v.shape, scale=0.3), np.float32)
        for path, v in added.items()
    }
    random = split(with_arrays(model, numbers)).trainable
    key = jax.random.key(0)

    @jax.jit
    def everything(fresh, random, images):
        def at(trainable, key=None):
            model = merge(parts.graph, trainable, parts.frozen, parts.state)
            return outputs(model, images, key)

        def loss(trainable):
            maps, others = at(trainable, key)
            return sum(jnp.square(x).sum() for x in jax.tree.leaves((maps, others))), maps

        (_, drawn), gradient = jax.value_and_grad(loss, has_aux=True)(random)
        return at(fresh)[0], plain.extract(images).maps, at(random)[0], drawn, gradient

    first, before, changed, drawn, gradient = everything(parts.trainable, random, images)
    scale = float(np.abs(before).max())
    if method in CHANGES:
        assert np.abs(first - before).max() > 0
    else:
        np.testing.assert_allclose(first, before, rtol=0, atol=scale * ROUNDED.get(method, 0))
    assert np.abs(changed - before).max() > 1e-4 * scale
    assert (np.abs(drawn - changed).max() > 1e-5 * scale) == (method in DROPOUT)
    for path, one in flatten(gradient).items():
        assert np.isfinite(one).all(), path
        if path in IDLE:
            weight = flatten(gradient)[path.replace("bias", "kernel")]
            assert np.abs(one).max() < 1e-4 * np.abs(weight).max(), path
        else:
            assert np.asarray(one).any(), path
    check_traces(method, name, parts, images)
    check_files(method, plain, random, parts, changed, images, tmp_path)


def check_traces(method, name, parts, images):
    """In bfloat16, rematerialised and scanned: traced, which costs nothing to compile."""

    def maps(trainable, frozen):
        return merge(parts.graph, trainable, frozen, parts.state).extract(images).maps

    half = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), (parts.trainable, parts.frozen)
    )
    assert jax.eval_shape(maps, *half).dtype == jnp.bfloat16

    def gradient():
        # Anew each time: what was traced is kept, whatever the step asks for.
        def of(trainable, frozen):
            return jax.grad(lambda one: maps(one, frozen).sum())(trainable)

        return jax.eval_shape(of, parts.trainable, parts.frozen)

    shapes = jax.tree.map(jnp.shape, parts.trainable)
    with rematerialise("blocks"):
        found = gradient()
    assert jax.tree.map(jnp.shape, found) == shapes
    # Blocks that a method acts around, that differ, or that keep statistics are not.
    around = method in ("cls_reinit", "pro_tuning", "rein", "spm", "vpt")
    alone = name in ("windows", "resnet", "swin") or (name in TRUNKS and around)
    refused = pytest.raises(ConfigError, match="needs two blocks in a row that are alike")
    with scanned(), refused if alone else contextlib.nullcontext():
        found = gradient()
        assert jax.tree.map(jnp.shape, found) == shapes


def check_files(method, plain, random, parts, changed, images, tmp_path):
    """Saved, loaded into a fresh model, and folded where it folds."""
    learned = merge(parts.graph, random, parts.frozen, parts.state)
    vadapt.save_adapter(tmp_path / "adapter.safetensors", learned)
    fresh = vadapt.adapt_from(plain, tmp_path / "adapter.safetensors")
    for path, one in flatten(split(fresh).trainable).items():
        np.testing.assert_array_equal(one, flatten(random)[path], err_msg=path)
    assert dict(fresh.applied[0])["name"] == method
    if method in FOLDS:
        folded = vadapt.fold(learned)
        assert not flatten(split(folded).trainable)
        found = jax.jit(lambda x: folded.extract(x).maps)(images)
        np.testing.assert_allclose(found, changed, atol=1e-4 * max(1.0, np.abs(changed).max()))
