"""Hugging Face folders: what they hold, and what cannot go into one."""

import json

import jax
import numpy as np
import pytest

from tests.backbones.test_sam import small as small_sam
from tests.weights.test_convnext import small as small_convnext
from tests.weights.test_resnet import small as small_resnet
from tests.weights.test_swin import small as small_swin
from vadapt import adapters, models
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import ViT
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.export import family_of, forms, save_hugging_face
from vadapt.weights.files import read_header
from vadapt.weights.load import load_weights
from vadapt.weights.transformers_config import TRAITS

SIZE = {"width": 32, "depth": 2, "num_heads": 4}


def dinov2(**options):
    return models.create("dinov2_small", **{**SIZE, "image_size": 28, **options})


def dinov3():
    return models.create("dinov3_base", **SIZE, image_size=32)


def clip():
    return models.create("clip_base", **SIZE, image_size=32)


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
    ("create", "family", "targets", "message"),
    [
        (small_swin, "swin", ".*", r"no name for merges/0/reduction/bias, .*no bias .*of ssf.*"),
        (lambda: small_resnet(18), "resnet", "stem/.*conv", "which has bias of convolutions$"),
        (lambda: small_resnet(18), "resnet", ".*shortcut.*conv", "bias of convolutions$"),
        (small_sam, "sam", "neck/.*", r"no name for neck/conv1/bias, neck/conv2/bias: its layers"),
        (
            lambda: dinov2(qkv_bias=False),
            "dinov2",
            "blocks/1/.*qkv",
            r"in all blocks or in none, .*ViT has attn/inner/qkv/bias in some alone",
        ),
        (dinov3, "dinov3", "qkv", "which has bias of queries, keys and values$"),
        (clip, "clip", "patch.*", "which has bias of patches$"),
    ],
)
def test_a_bias_that_a_fold_gives_is_refused_where_the_family_has_none(
    create, family, targets, message, tmp_path
):
    folded = adapters.fold(adapters.apply(create(), "ssf", targets=(targets,)))
    with pytest.raises(WeightsError, match=message):
        save_hugging_face(folded, tmp_path, family)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_scale": None}, "has no layer scale"),
        ({"patch_bias": False, "final_norm": False}, "no final norm; no bias of patches"),
        ({"image_size": (28, 42)}, "no square grid"),
        ({"mlp_ratio": 3.5}, "no MLPs of a whole ratio"),
        ({"swiglu": True, "mlp_hidden": 80}, "no MLPs of a whole ratio"),
        ({"mlp_bias": False}, "no bias of MLPs"),
        ({"class_token_twice": True}, "class token twice"),
        ({"positions": "sincos", "class_token": False}, "no class token"),
        ({"positions": "none", "rotary": "pairs"}, "no table of positions; rotary .* pairs"),
        ({"relative_positions": "each"}, "has relative positions$"),
        ({"relative_positions": "shared"}, "has relative positions$"),
        ({"mlp_norm": True}, "norm inside MLPs"),
        ({"activation": jax.nn.relu}, "no known activation"),
        ({"key_bias": False}, "has bias of queries and values alone$"),
    ],
)
def test_what_the_family_cannot_say_is_refused(options, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        save_hugging_face(dinov2(**options), tmp_path, "dinov2")
    assert not list(tmp_path.iterdir())


def test_a_plan_is_refused_as_transformers_has_no_word_for_it(tmp_path):
    model = dinov2()
    model.follow("1,0")
    with pytest.raises(WeightsError, match=r"has plan of its blocks$"):
        save_hugging_face(model, tmp_path, "dinov2")


@pytest.mark.parametrize(
    ("create", "family", "message"),
    [
        (dinov2, "vit", "ViT, which has layer scale$"),
        (dinov2, "resnet", "not the layers of a ResNet"),
        (lambda: small_sam(neck=None), "sam", "has no neck$"),
        (lambda: small_sam(norm_epsilon=1e-5), "sam", "no neck's epsilon of 1e-6"),
        (lambda: small_sam(relative_size=36), "sam", "has relative positions of another grid$"),
        (lambda: small_resnet(18, deep_stem=True), "resnet", "has stem of three convolutions$"),
        (
            lambda: small_resnet(18, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
            "resnet",
            "no strides of 4, 8, 16, 32; dilations",
        ),
        (lambda: small_convnext(normed=(1,)), "convnext", "no norm .* last.*; norms of other"),
        (
            lambda: small_convnext(depths=(1, 1), widths=(4, 6), normed=()),
            "convnext",
            "no four stages; no norm of the last stage",
        ),
        (
            lambda: small_swin(window=(3, 3, 3, 2), norm_epsilon=1e-6, normed=(0, 3)),
            "swin",
            "norms of other stages; no windows of one size; no norms' epsilon of 1e-5",
        ),
        (lambda: small_swin(always_partition=True), "swin", "whole windows on maps of any size"),
    ],
)
def test_other_models_are_refused(create, family, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        save_hugging_face(create(), tmp_path, family)
    assert not list(tmp_path.iterdir())


def test_families_are_of_traits_that_there_are():
    known = {ViT: dinov2(), SAMEncoder: small_sam(), ResNet: small_resnet(18)}
    known |= {ConvNeXt: small_convnext(), Swin: small_swin()}
    for name, family in forms().items():
        traits = TRAITS[family.kind](known[family.kind]).keys()
        assert (family.has | family.may) <= traits, name
        assert not family.has & family.may, name


@pytest.mark.parametrize(
    ("family", "backbone"),
    {
        "vit": "vit_base",
        "clip": "clip_base",
        "siglip": "siglip_so400m",
        "dinov2": "dinov2_small_reg",
        "dinov3": "dinov3_large",
        "sam": "sam_huge",
        "resnet": "resnet50",
        "convnext": "convnext_tiny",
        "swin": "swin_base",
    }.items(),
)
def test_families_are_found_by_the_backbones_name(family, backbone):
    assert family_of(backbone) == family


@pytest.mark.parametrize("name", ["resnet50_v1c", "eva02_base", "vit", "anything"])
def test_names_without_a_family_are_refused(name):
    with pytest.raises(WeightsError, match=f"'{name}'; known: vit, vit_mae, clip, siglip"):
        family_of(name)


def test_a_wrong_family_lists_the_nearest(tmp_path):
    with pytest.raises(WeightsError, match="nearest: 'dinov2'"):
        save_hugging_face(dinov2(), tmp_path, "dino2")
