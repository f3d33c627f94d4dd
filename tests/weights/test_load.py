"""Import: official names, all or nothing, and one report."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.weights import fake_torch
from vadapt import adapters
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.partition import Adapter, Head, variables
from vadapt.tasks.mae import MaskedAutoencoder
from vadapt.weights.load import load_weights, match_weights, with_arrays

WIDTH, DEPTH, SIDE, PATCH = 96, 2, 4, 8  # a micro ViT on 32 px


def official(*, adapters: bool = False, decoder: bool = True, grid: int = SIDE) -> dict:
    """Random arrays under the names and layouts of an official MAE or PAD checkpoint."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + grid * grid, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    stacks = [("blocks", DEPTH, WIDTH)]
    if decoder:
        stacks.append(("decoder_blocks", 1, 32))
        shapes |= {
            "decoder_embed.weight": (32, WIDTH),
            "decoder_embed.bias": (32,),
            "mask_token": (1, 1, 32),
            "decoder_pos_embed": (1, 1 + grid * grid, 32),
            "decoder_norm.weight": (32,),
            "decoder_norm.bias": (32,),
            "decoder_pred.weight": (PATCH * PATCH * 3, 32),
            "decoder_pred.bias": (PATCH * PATCH * 3,),
        }
    for stack, depth, width in stacks:
        for i in range(depth):
            b = f"{stack}.{i}."
            for norm in ("norm1", "norm2"):
                shapes |= {f"{b}{norm}.weight": (width,), f"{b}{norm}.bias": (width,)}
            for name, out, inp in (
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):
                shapes |= {f"{b}{name}.weight": (out, inp), f"{b}{name}.bias": (out,)}
            if adapters and stack == "blocks":
                a = b + "adaptmlp."
                shapes |= {
                    f"{a}adapter_layer_norm_before.weight": (width,),
                    f"{a}adapter_layer_norm_before.bias": (width,),
                    f"{a}down_proj.weight": (5, width),
                    f"{a}down_proj.bias": (5,),
                    f"{a}up_proj.weight": (width, 5),
                    f"{a}up_proj.bias": (width,),
                    f"{b}scalar_pred.weight": (1, 2 * width),
                }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def autoencoder(*, grafted: bool = False) -> MaskedAutoencoder:
    rngs = nnx.Rngs(0)
    backbone = vit("micro", depth=DEPTH, image_size=SIDE * PATCH, positions="sincos", rngs=rngs)
    if grafted:
        backbone = adapters.apply(backbone, "patchwise_scale", hidden=5)
    decoder = MAEDecoder(WIDTH, (SIDE, SIDE), 192, width=32, depth=1, num_heads=2, rngs=rngs)
    return MaskedAutoencoder(backbone, decoder)


@pytest.mark.parametrize("grafted", [False, True], ids=["mae", "pad"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_official_checkpoints_load_completely(tmp_path, grafted, suffix):
    arrays = official(adapters=grafted)
    path = tmp_path / f"checkpoint{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    model = autoencoder(grafted=grafted)
    report = load_weights(model, path)
    assert len(report.loaded) == len(arrays) == len(variables(model))
    assert report.missing + report.unexpected + report.resized + report.cast == []
    inner = model.backbone.blocks[1].mlp.inner
    np.testing.assert_array_equal(inner.fc1.kernel[...], arrays["blocks.1.mlp.fc1.weight"].T)
    patch = model.backbone.patch_embed.proj.kernel[...]
    weight = arrays["patch_embed.proj.weight"]
    np.testing.assert_array_equal(patch[2, 3, 1], weight[:, 1, 2, 3])


def test_torch_files_are_read_with_weights_only_and_unwrapped(tmp_path, monkeypatch):
    asked = {}

    def load(path, **options):
        asked.update(options)
        return {"epoch": 3, "model": {name: fake_torch.Tensor(a) for name, a in official().items()}}

    monkeypatch.setitem(sys.modules, "torch", fake_torch.module(load))
    (tmp_path / "mae.pth").touch()
    assert len(load_weights(autoencoder(), tmp_path / "mae.pth").loaded) == len(official())
    assert asked["weights_only"] is True


def test_a_torch_file_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "mae.pth").touch()
    with pytest.raises(WeightsError, match=r"vadapt\[torch\]"):
        load_weights(autoencoder(), tmp_path / "mae.pth")


def test_roles_survive_loading():
    model = autoencoder(grafted=True)
    load_weights(model, official(adapters=True))
    assert isinstance(model.decoder.pred.kernel, Head)
    assert isinstance(model.backbone.blocks[0].mlp.adapter.up.kernel, Adapter)


def test_a_checkpoint_of_the_encoder_alone_is_loaded_when_allowed():
    model = autoencoder()
    arrays = official(decoder=False)
    with pytest.raises(WeightsError, match="missing"):
        load_weights(model, arrays)
    report = load_weights(model, arrays, allow_missing=["decoder/.*"])
    assert report.missing
    assert all(name.startswith("decoder/") for name in report.missing)


def test_a_backbone_takes_its_part_of_a_whole_checkpoint_when_allowed():
    rngs = nnx.Rngs(0)
    backbone = vit("micro", depth=DEPTH, image_size=SIDE * PATCH, positions="sincos", rngs=rngs)
    report = load_weights(backbone, official(), allow_unexpected=["decoder/.*"])
    assert not report.missing
    assert all(name.startswith("decoder/") for name in report.unexpected)


def test_position_tables_of_another_grid_are_resized_and_reported():
    model = autoencoder()
    arrays = official(grid=7)
    report = load_weights(model, arrays)
    assert [line.split(":")[0] for line in report.resized] == [
        "backbone/pos_embed",
        "decoder/pos_embed",
    ]
    np.testing.assert_array_equal(model.backbone.pos_embed[0], arrays["pos_embed"][0, 0])


def test_every_misfit_is_named_at_once_and_nothing_changes():
    model = autoencoder()
    before = {name: np.asarray(value[...]) for name, value in variables(model).items()}
    arrays = official()
    arrays["norm.weight"] = np.ones(7, np.float32)
    arrays["blocks.9.norm1.weight"] = np.ones(WIDTH, np.float32)
    arrays["optimizer"] = np.ones(3, np.float32)
    del arrays["mask_token"]
    with pytest.raises(WeightsError) as error:
        load_weights(model, arrays)
    for part in ("norm/scale: file (7,)", "blocks/9/attn/norm/scale", "optimizer", "mask_token"):
        assert part in str(error.value)
    for name, value in variables(model).items():
        np.testing.assert_array_equal(value[...], before[name])


def test_casts_are_reported():
    arrays = official()
    arrays["norm.bias"] = arrays["norm.bias"].astype(np.float16)
    assert load_weights(autoencoder(), arrays).cast == ["backbone/norm/bias: float16 to float32"]


def test_vadapts_own_names_load_too():
    source, target = autoencoder(), autoencoder()
    load_weights(source, official())
    own = {name: np.asarray(value[...]) for name, value in variables(source).items()}
    assert load_weights(target, own).family == "vadapt"
    assert jnp.array_equal(target.decoder.pred.kernel[...], source.decoder.pred.kernel[...])


def test_vadapts_names_load_between_a_whole_model_and_its_backbone():
    whole = autoencoder()
    load_weights(whole, official())
    own = {name: np.asarray(value[...]) for name, value in variables(whole).items()}
    rngs = nnx.Rngs(5)
    backbone = vit("micro", depth=DEPTH, image_size=SIDE * PATCH, positions="sincos", rngs=rngs)
    load_weights(backbone, own, allow_unexpected=["decoder/.*"])
    np.testing.assert_array_equal(backbone.norm.bias[...], whole.backbone.norm.bias[...])
    alone = {name: np.asarray(value[...]) for name, value in variables(backbone).items()}
    assert not load_weights(autoencoder(), alone, allow_missing=["decoder/.*"]).unexpected


def test_sources_that_do_not_exist_say_what_does(tmp_path):
    with pytest.raises(WeightsError, match="vit_micro_scenes"):
        load_weights(autoencoder(), "vit_micro_scene")
    with pytest.raises(WeightsError, match="no weight file"):
        load_weights(autoencoder(), tmp_path / "absent.pth")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match="suffixes"):
        load_weights(autoencoder(), tmp_path / "weights.h5")


def test_the_import_differentiates_with_respect_to_the_files_arrays():
    model = autoencoder()
    arrays = {name: jnp.asarray(array) for name, array in official().items()}

    def loss(arrays):
        loaded = with_arrays(model, match_weights(model, arrays)[0])
        return jnp.sum(loaded.decoder.embed.kernel[...] * 2.0)

    gradient = jax.grad(loss)(arrays)["decoder_embed.weight"]
    np.testing.assert_array_equal(gradient, np.full((32, WIDTH), 2.0))
