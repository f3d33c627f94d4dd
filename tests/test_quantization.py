"""Frozen matrices in int8: what is stored so, what a step sees of it, and what files say."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.recipes import config_of
from tests.training.toy import ToyTask, toy_config
from vadapt import adapters, plan, quantization, sharding
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError, WeightsError
from vadapt.partition import flatten, num_bytes, split
from vadapt.quantization import in_use, is_int8, rounded, store
from vadapt.training.loop import fit
from vadapt.weights.adapter_file import load_adapter, read_info, save_adapter
from vadapt.weights.base import base_of
from vadapt.weights.rounding import round_frozen


def plain(seed=0):
    return vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(seed))


def images():
    return jax.random.normal(jax.random.key(1), (2, 16, 16, 3))


def without_qwix(monkeypatch):
    monkeypatch.setattr(quantization.importlib.util, "find_spec", lambda name: None)


def test_matrices_are_stored_in_a_quarter_with_a_scale_for_every_output():
    frozen = split(plain(), "head|.*bias").frozen
    stored = flatten(store(frozen, "int8"))
    kernels = {path for path, leaf in flatten(frozen).items() if path.endswith("kernel")}
    assert {path for path, leaf in stored.items() if is_int8(leaf)} == kernels
    for path, leaf in flatten(frozen).items():
        if path not in kernels:
            assert stored[path] is leaf
            continue
        assert stored[path].qvalue.dtype == jnp.int8
        assert stored[path].scale.dtype == jnp.float32
        assert stored[path].scale.shape == (1,) * (leaf.ndim - 1) + leaf.shape[-1:]
    whole = {"kernel": jnp.ones((256, 64))}
    assert num_bytes(store(whole, "int8")) == 256 * 64 + 64 * 4


def test_rounding_moves_no_weight_by_more_than_half_a_step_of_its_output():
    for shape in ((32, 8), (4, 6, 5), (2, 2, 3, 7)):
        kernel = jax.random.normal(jax.random.key(0), shape)
        found = rounded({"mix": {"kernel": kernel}})["mix"]["kernel"]
        axes = (1,) if len(shape) == 3 else tuple(range(len(shape) - 1))
        step = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True) / 127
        assert jnp.max(jnp.abs(found - kernel) / step) <= 0.501
        assert jnp.max(jnp.abs(found - kernel)) > 0
        again = rounded({"kernel": found})["kernel"]
        assert jnp.allclose(again, found, rtol=1e-6, atol=0)


def test_stored_matrices_come_back_in_the_type_that_is_asked_for():
    stored = store({"kernel": jnp.eye(4), "bias": jnp.ones(4), "steps": jnp.arange(3)}, "int8")
    used = in_use(stored, jnp.bfloat16)
    types = {name: str(leaf.dtype) for name, leaf in used.items()}
    assert types == {"kernel": "bfloat16", "bias": "bfloat16", "steps": "int32"}
    assert np.array_equal(used["kernel"], np.eye(4))


def test_an_unknown_type_is_refused():
    with pytest.raises(ConfigError, match=r"frozen_dtype='int3'; it is one of float32, .*int8"):
        store({}, "int3")


def toy_run(workdir, **changes):
    config = toy_config(total_steps=4)
    config.parallel.frozen_dtype, config.run.log_every = "int8", 1
    config.run.checkpoint_every = 2
    config.update_from_flattened_dict(changes)
    stop = 2 if not workdir.exists() else None
    devices = jax.devices()[: config.parallel.fsdp]
    return fit(ToyTask(config), config, workdir, stop_at=stop, devices=devices)


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_run_in_int8_trains_on_the_rounded_base_and_goes_on_to_the_bit(tmp_path):
    """What it is evaluated with has the values of int8, and the hash of the base it came from."""
    (tmp_path / "whole").mkdir()
    whole = toy_run(tmp_path / "whole")
    base = ToyTask(toy_config()).build()
    wanted = rounded(split(base).frozen)["backbone"]["kernel"]
    assert not np.array_equal(wanted, base.backbone.kernel[...])
    for model in (whole.initial, whole.model):
        assert np.array_equal(model.backbone.kernel[...], wanted)
        assert base_of(model) == base_of(base)
    toy_run(tmp_path / "cut")
    gone_on = toy_run(tmp_path / "cut")
    assert gone_on.steps == 4
    assert np.array_equal(gone_on.model.head.kernel[...], whole.model.head.kernel[...])
    (tmp_path / "float").mkdir()
    toy_run(tmp_path / "float", **{"parallel.frozen_dtype": "float32"})
    found, other = losses(tmp_path / "whole"), losses(tmp_path / "float")
    assert found != other
    assert np.allclose(found, other, rtol=1e-2)


def test_weights_in_int8_are_split_over_devices(tmp_path):
    for name in ("one", "split"):
        (tmp_path / name).mkdir()
    toy_run(tmp_path / "one")
    toy_run(tmp_path / "split", **{"parallel.fsdp": 8})
    assert np.allclose(losses(tmp_path / "one"), losses(tmp_path / "split"), rtol=1e-6)
    mesh = sharding.make_mesh(8, jax.devices()[:8])
    stored = store({"kernel": jnp.ones((128, 128))}, "int8")
    assert "fsdp" in sharding.tree_sharding(stored, mesh)["kernel"].qvalue.spec


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter trained on a base in int8, and what the model with it sees."""
    path = tmp_path_factory.mktemp("int8") / "adapter.safetensors"
    model = adapters.apply(plain(), "lora", rank=2)
    parts = split(model)
    round_frozen(model, parts.frozen)
    noise = jax.random.normal(jax.random.key(2), (1000,))
    changed = jax.tree.map(lambda x: x + noise[: x.size].reshape(x.shape), parts.trainable)
    nnx.update(model, changed)
    save_adapter(path, model, frozen_dtype="int8")
    return path, np.asarray(model(images()))


def test_an_adapter_says_that_its_base_was_in_int8_and_finds_it_so_elsewhere(adapter):
    path, wanted = adapter
    info = read_info(path)
    assert info.extra["frozen_dtype"] == "int8"
    assert info.base == base_of(adapters.apply(plain(), "lora", rank=2))
    loaded = adapters.adapt_from(plain(), path)
    assert np.array_equal(loaded(images()), wanted)
    load_adapter(loaded, path)
    assert np.allclose(loaded(images()), wanted, rtol=1e-5, atol=1e-5)
    assert base_of(loaded) == info.base
    with pytest.raises(WeightsError, match="was trained on base weights"):
        adapters.adapt_from(plain(seed=1), path)


def test_without_qwix_it_says_what_to_install(adapter, monkeypatch):
    without_qwix(monkeypatch)
    install = r"need qwix: pip install 'vadapt\[int8\]', or .*frozen_dtype=bfloat16"
    with pytest.raises(ConfigError, match=install):
        store({"kernel": jnp.ones((2, 2))}, "int8")
    with pytest.raises(ConfigError, match=f"trained on a base in int8: .*{install}"):
        adapters.adapt_from(plain(), adapter[0])
    assert "frozen in int8" not in dict(plan.variants(config_of("pad_msip")))


def test_plans_compare_int8():
    found = dict(plan.variants(config_of("pad_msip")))
    assert found["frozen in int8"].parallel.frozen_dtype == "int8"
    assert found["frozen in int8"].parallel.step.compute_dtype == "bfloat16"
