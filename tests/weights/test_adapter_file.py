"""The adapter file holds what was trained and knows its base."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt import adapters
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.partition import flatten, split, variables
from vadapt.weights.adapter_file import fingerprint, load_adapter, save_adapter, save_model
from vadapt.weights.files import read_arrays, read_header
from vadapt.weights.load import load_weights


def grafted(seed: int = 0, hidden: int = 4):
    plain = vit("micro", depth=2, image_size=16, rngs=nnx.Rngs(seed))
    return adapters.apply(plain, "patchwise_scale", hidden=hidden, rngs=nnx.Rngs(seed + 1))


def test_round_trip_restores_the_trained_model_and_nothing_else_is_in_the_file(tmp_path):
    model = grafted()
    model.blocks[1].mlp.adapter.up.kernel[...] = jnp.full((4, 96), 0.25)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, model, method={"name": "patchwise_scale", "hidden": 4})
    assert set(read_arrays(path)) == set(flatten(split(model).trainable))
    assert json.loads(read_header(path)["method"]) == {"name": "patchwise_scale", "hidden": 4}
    fresh = adapters.apply(
        vit("micro", depth=2, image_size=16, rngs=nnx.Rngs(0)), "patchwise_scale", hidden=4
    )
    load_adapter(fresh, path)
    np.testing.assert_array_equal(
        fresh.features(jnp.ones((1, 16, 16, 3))), model.features(jnp.ones((1, 16, 16, 3)))
    )


def test_bases_in_bfloat16_and_float32_are_the_same_base():
    frozen = split(grafted()).frozen
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), frozen)
    changed = jax.tree.map(lambda leaf: leaf * 1.1, frozen)
    assert fingerprint(frozen) == fingerprint(half) != fingerprint(changed)


def test_another_base_is_refused_with_both_hashes(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, grafted())
    base = read_header(path)["base"]
    with pytest.raises(WeightsError, match=base):
        load_adapter(grafted(seed=7), path)


def test_a_whole_model_comes_back_through_load_weights(tmp_path):
    model = grafted()
    save_model(tmp_path / "model.safetensors", model, "float16")
    twin = grafted(seed=9)
    report = load_weights(twin, tmp_path / "model.safetensors")
    assert len(report.cast) == len(report.loaded) > 0
    for name, value in variables(model).items():
        # float16 keeps 11 bits
        np.testing.assert_allclose(variables(twin)[name][...], value[...], rtol=5e-4, atol=1e-6)


def test_another_size_of_adapter_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, grafted())
    with pytest.raises(WeightsError, match="differ"):
        load_adapter(grafted(hidden=5), path)
