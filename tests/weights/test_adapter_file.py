"""The adapter file holds what was trained and knows its base."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from tests.weights.test_resnet import small as small_resnet
from vadapt import adapters
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.partition import Head, flatten, mark, merge, split, variables
from vadapt.weights.adapter_file import (
    fingerprint,
    load_adapter,
    read_info,
    save_adapter,
    save_model,
)
from vadapt.weights.base import base_of
from vadapt.weights.files import read_arrays, read_header, write_arrays
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
    images = jnp.ones((1, 16, 16, 3))
    found, expected = (compiled.run("features", each, images) for each in (fresh, model))
    np.testing.assert_array_equal(found, expected)


def test_bases_in_bfloat16_and_float32_are_the_same_base():
    parts = split(grafted())

    def base(change):
        return base_of(merge(*parts._replace(frozen=jax.tree.map(change, parts.frozen))))

    half, changed = base(lambda x: x.astype(jnp.bfloat16)), base(lambda x: x * 1.1)
    assert base_of(grafted()) == half != changed


class Under(nnx.Module):
    """A backbone under a head."""

    def __init__(self, backbone):
        self.backbone = backbone
        self.head = mark(nnx.Linear(96, 2, rngs=nnx.Rngs(5)), Head)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A file of pretrained weights: positions of 2x2 patches of 8."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(path, plain(seed=3))
    return path


def at(size, weights, **options):
    """The backbone at an image size, with the weights."""
    model = vit("micro", depth=2, image_size=size, rngs=nnx.Rngs(0), **options)
    load_weights(model, weights)
    return model


def test_a_base_is_the_same_at_any_size_under_any_head_with_any_method(pretrained, tmp_path):
    bases = {
        base_of(at(16, pretrained)),
        base_of(at((24, 40), pretrained)),
        base_of(at(16, pretrained, patch_size=4)),
        base_of(Under(at(32, pretrained))),
        base_of(adapters.apply(at(32, pretrained), "lora")),
        base_of(adapters.fold(at(32, pretrained))),
    }
    assert len(bases) == 1
    assert base_of(plain()) not in bases
    adapter = tmp_path / "adapter.safetensors"
    learned = adapters.apply(Under(at((24, 40), pretrained)), "lora", rank=2)
    save_adapter(adapter, learned)
    for model in (at(16, pretrained), Under(at(56, pretrained))):
        restored = adapters.adapt_from(model, adapter)
        found = variables(restored)
        for name, array in read_arrays(adapter).items():
            name = name if hasattr(model, "backbone") else name.removeprefix("backbone/")
            if name in found:
                np.testing.assert_array_equal(found[name][...], array, err_msg=name)
    save_adapter(adapter, adapters.apply(at(16, pretrained), "lora", rank=2))
    with pytest.raises(WeightsError, match="trained on base weights"):
        adapters.adapt_from(
            Under(at(32, {**read_arrays(pretrained), "norm/bias": np.ones(96)})), adapter
        )


def test_running_statistics_are_part_of_a_base(tmp_path):
    model = adapters.apply(small_resnet(18), "lora", targets=["conv"], rank=1)
    save_adapter(tmp_path / "adapter.safetensors", model)
    other = small_resnet(18)
    adapters.adapt_from(other, tmp_path / "adapter.safetensors")
    var = variables(other)["stem/0/norm/var"]
    var[...] = 100 * var[...]
    with pytest.raises(WeightsError, match="trained on base weights"):
        adapters.adapt_from(other, tmp_path / "adapter.safetensors")


def test_older_files_load_with_a_word_that_their_base_cannot_be_checked(tmp_path):
    path, model = tmp_path / "adapter.safetensors", grafted()
    header = {"vadapt": "0.1", "base": fingerprint(split(model).frozen)}
    header["method"] = json.dumps({"name": "patchwise_scale", "hidden": 4})
    write_arrays(path, flatten(split(model).trainable), header)
    adapters.adapt_from(plain(), path)  # the same to the bit: nothing to say
    with pytest.warns(UserWarning, match=r"do not say enough of their base to check it"):
        adapters.adapt_from(vit("micro", depth=2, image_size=32, rngs=nnx.Rngs(0)), path)


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


def test_running_statistics_are_in_the_file_of_a_whole_model(tmp_path):
    model, twin = small_resnet(18), small_resnet(18, seed=1)
    var = variables(model)["stem/0/norm/var"]
    var[...] = var[...] * 1e6  # float16 ends at 65504
    save_model(tmp_path / "model.safetensors", model, "float16")
    load_weights(twin, tmp_path / "model.safetensors")
    for name in ("stem/0/norm/var", "stages/3/1/layers/1/norm/mean"):
        np.testing.assert_array_equal(variables(twin)[name][...], variables(model)[name][...])


def test_another_size_of_adapter_is_refused(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, grafted())
    with pytest.raises(WeightsError, match="differ"):
        load_adapter(grafted(hidden=5), path)


def plain(seed: int = 0):
    return vit("micro", depth=2, image_size=16, rngs=nnx.Rngs(seed))


def test_the_header_says_what_was_grafted_on_what_and_keeps_what_it_does_not_know(tmp_path):
    path = tmp_path / "adapter.safetensors"
    model = adapters.apply(grafted(), "lora", rank=2, targets=["q"])
    save_adapter(
        path,
        model,
        backbone="vit_micro",
        classes=["sky", "road"],
        statistics=((0.1, 0.2, 0.3), (1, 1, 1)),
        note={"by": "me"},
        weights="file.pth",
    )
    info = read_info(path)
    assert info.methods == (
        {"name": "patchwise_scale", "hidden": 4},
        {"name": "lora", "rank": 2, "targets": ["q"]},
    )
    assert (info.backbone, info.classes, info.extra) == (
        "vit_micro",
        ("sky", "road"),
        {"note": {"by": "me"}, "weights": "file.pth"},
    )
    assert info.statistics.mean == (0.1, 0.2, 0.3)
    assert "patchwise_scale(hidden=4), then lora(rank=2, targets=['q'])" in info.described
    assert info.described.endswith("on 'vit_micro' with weights 'file.pth'")
    restored = adapters.adapt_from(plain(), path)
    assert set(flatten(split(restored).trainable)) == set(flatten(split(model).trainable))


def test_the_file_alone_adapts_a_plain_backbone_which_stays_as_it_is(tmp_path):
    model, bare = grafted(), plain()
    model.blocks[1].mlp.adapter.up.kernel[...] = jnp.full((4, 96), 0.25)
    save_adapter(tmp_path / "adapter.safetensors", model)
    restored = adapters.adapt_from(bare, tmp_path / "adapter.safetensors")
    images = jnp.ones((1, 16, 16, 3))
    np.testing.assert_array_equal(restored.features(images), model.features(images))
    assert not flatten(split(bare).trainable)


def test_what_else_was_trained_is_in_the_header(tmp_path):
    path, model = tmp_path / "biases.safetensors", plain()
    model.norm.bias[...] = jnp.ones(96)
    save_adapter(path, model, trainable="biases")
    fresh = plain()
    load_adapter(fresh, path)
    np.testing.assert_array_equal(fresh.norm.bias[...], jnp.ones(96))
    assert read_info(path).methods == ()
    np.testing.assert_array_equal(adapters.adapt_from(plain(), path).norm.bias[...], jnp.ones(96))


def test_a_model_without_the_graft_is_told_what_to_graft(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, grafted(), backbone="vit_micro")
    with pytest.raises(
        WeightsError, match=r"patchwise_scale\(hidden=4\) on 'vit_micro'.*adapt_from"
    ):
        load_adapter(plain(), path)
    with pytest.raises(WeightsError, match=r"differ.*patchwise_scale\(hidden=4\)"):
        load_adapter(grafted(hidden=5), path)
    with pytest.raises(WeightsError, match="of 'vit_micro'"):
        adapters.adapt_from(plain(seed=7), path)


def test_damaged_and_foreign_files_are_one_clear_error(tmp_path):
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(WeightsError, match="no adapter file at"):
        read_info(path)
    save_adapter(path, grafted())
    whole = path.read_bytes()
    for damaged in (b"", b"no safetensors at all", whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="damaged"):
            load_adapter(grafted(), path)
    save_model(path, grafted())
    with pytest.raises(WeightsError, match=r"no adapter file: .*load_weights"):
        load_adapter(grafted(), path)
    write_arrays(path, {"x": np.ones(2)}, {"vadapt": "1", "base": "0", "method": "lora"})
    with pytest.raises(WeightsError, match="whose 'method' is 'lora'; expected a name"):
        read_info(path)
    write_arrays(path, {"x": np.ones(2)}, {"format": "pt"})
    with pytest.raises(WeightsError, match="no adapter file"):
        read_info(path)


def test_any_flipped_bit_of_an_adapter_file_is_noticed(tmp_path, rng):
    model, path = grafted(), tmp_path / "adapter.safetensors"
    save_adapter(path, model, method={"name": "patchwise_scale", "hidden": 4})
    whole, before = path.read_bytes(), flatten(split(model).trainable)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*rng.integers(0, header, 150), *rng.integers(header, len(whole), 50)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(WeightsError) as error:
            load_adapter(model, path)
        assert "\n" not in str(error.value)
        assert "damaged" in str(error.value) or "is not what was written" in str(error.value)
    for name, leaf in flatten(split(model).trainable).items():
        np.testing.assert_array_equal(leaf, before[name])
    path.write_bytes(whole)
    load_adapter(model, path)


def test_an_adapter_file_without_digests_loads(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "adapter.safetensors"
    save_adapter(path, grafted())
    arrays = {name: np.asarray(array) for name, array in read_arrays(path).items()}
    save_file(arrays, path, read_header(path))
    load_adapter(grafted(), path)
