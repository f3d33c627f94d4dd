"""Hugging Face folders: what they hold, and what cannot go into one."""

import json

import numpy as np
import pytest

from vadapt import adapters, models
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.export import family_of, save_hugging_face
from vadapt.weights.files import read_header
from vadapt.weights.load import load_weights

SIZE = {"width": 32, "depth": 2, "num_heads": 4}


def dinov2(**options):
    return models.create("dinov2_small", **{**SIZE, "image_size": 28, **options})


def test_a_folder_loads_back_and_says_its_sizes(tmp_path):
    model = dinov2(num_registers=3)
    save_hugging_face(model, tmp_path, "dinov2")
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert read_header(tmp_path / "model.safetensors") == {"format": "pt"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "dinov2_with_registers"
    assert (config["num_register_tokens"], config["image_size"]) == (3, 28)
    twin = dinov2(num_registers=3, rngs=1)
    assert load_weights(twin, tmp_path / "model.safetensors").family == "dinov2_hf"
    for path, value in variables(model).items():
        np.testing.assert_array_equal(variables(twin)[path][...], value[...], err_msg=path)


def test_grafted_adapters_are_refused_by_name(tmp_path):
    model = adapters.apply(dinov2(), "lora", rank=2)
    with pytest.raises(WeightsError, match=r"blocks/0/attn/inner/qkv/lora/down.*fold"):
        save_hugging_face(model, tmp_path, "dinov2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_scale": None}, "has no layer scale"),
        (
            {"patch_bias": False, "final_norm": False},
            "no final norm; no bias of patches",
        ),
        ({"image_size": (28, 42)}, "2x3"),
        ({"mlp_ratio": 3.5}, r"MLP of 3\.5 times"),
        ({"mlp_bias": False}, "no bias of MLPs"),
        ({"class_token_twice": True}, "twice"),
        ({"positions": "sincos", "class_token": False}, "no class token"),
    ],
)
def test_what_the_family_cannot_say_is_refused(options, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        save_hugging_face(dinov2(**options), tmp_path, "dinov2")
    assert not list(tmp_path.iterdir())


def test_families_are_found_by_the_backbones_name(tmp_path):
    assert (family_of("dinov2_small_reg"), family_of("clip_base")) == ("dinov2", "clip")
    with pytest.raises(WeightsError, match="'vit_base'; known: clip, dinov2"):
        family_of("vit_base")
    with pytest.raises(WeightsError, match="nearest: 'dinov2'"):
        save_hugging_face(dinov2(), tmp_path, "dino2")
