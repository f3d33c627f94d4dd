"""`python -m vadapt.weights check`: whose weights they are, and what they compute."""

import numpy as np
import pytest

from tests.weights.test_dinov2 import official, random_values, small
from vadapt import models
from vadapt.backbones.families import BACKBONES
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.__main__ import main
from vadapt.weights.families.convnext import CONVNEXT
from vadapt.weights.families.dinov2 import DINOV2_HF
from vadapt.weights.families.sam import SAM
from vadapt.weights.families.swin import SWIN_HF, SWIN_TIMM
from vadapt.weights.families.vit import VIT_HF
from vadapt.weights.files import write_arrays
from vadapt.weights.summary import summary_of_features
from vadapt.weights.tables import revert


def shapes_of(name, table, **options):
    """A file's arrays as shapes alone: nothing of a large model is computed."""
    from flax import nnx

    model = nnx.eval_shape(lambda: models.create(name, **options))
    values = {path: np.broadcast_to(np.float32(0), v.shape) for path, v in variables(model).items()}
    return revert(values, table)[0]


@pytest.mark.parametrize(
    ("name", "table", "options"),
    [
        ("vit_tiny", VIT_HF, {}),
        ("vit_small", VIT_HF, {"image_size": 384}),
        ("dinov2_base_reg", DINOV2_HF, {}),
        ("sam_base", SAM, {}),
        ("convnext_small", CONVNEXT, {}),
        ("swin_tiny", SWIN_TIMM, {}),
        ("swin_base", SWIN_HF, {"window": 12}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shapes_tell_the_backbone(name, table, options):
    assert models.recognise(shapes_of(name, table, **options)) == (name, options)


def test_the_shipped_asset_has_fixed_positions(capsys):
    assert main(["check", "vit_micro_scenes"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == """model: vadapt.create("vit_micro", positions='sincos')"""
    assert said[-1].startswith("features [785, 96] of the fixed image at 224x224: mean ")


def test_a_size_without_a_name_asks_for_one(tmp_path, capsys):
    write_arrays(tmp_path / "small.safetensors", official())
    path = str(tmp_path / "small.safetensors")
    assert main(["check", path]) == 1
    assert "these are dinov2 weights, of no size that has a name" in capsys.readouterr().err
    size = '{"width": 32, "depth": 3, "num_heads": 4, "mlp_hidden": 128}'
    arguments = ["--backbone=dinov2_small", f"--options={size}", "--image-size", "70"]
    assert main(["check", path, *arguments]) == 0
    assert "dinov2 weights: 48 loaded; 1 unused (mask_token)" in capsys.readouterr().out


def test_names_of_no_family_are_said():
    with pytest.raises(WeightsError, match=r"no family that is known here, such as .*one"):
        models.recognise({"one.weight": np.ones((2, 2))})


def test_the_checksum_tells_models_apart_and_repeats():
    model = small()
    statistics = models.statistics("dinov2_small")
    first = summary_of_features(model, statistics)
    assert first == summary_of_features(model, statistics)
    values = random_values(model)
    model.norm.bias[...] = values["norm/bias"]
    assert first != summary_of_features(model, statistics)


def test_every_kind_of_file_finds_backbones():
    kinds = {name.split("_")[0].rstrip("0123456789") for name in BACKBONES}
    assert kinds == {
        *("vit", "vitdet", "dinov", "clip", "siglip", "eva", "sam"),
        *("resnet", "convnext", "swin", "pvig", "vig"),
    }
