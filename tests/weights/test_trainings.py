"""Files of people's own trainings: what stands before names is told by rule."""

import sys

import numpy as np
import pytest

from tests.weights import fake_torch
from tests.weights.test_dinov2 import official, small
from vadapt.weights.load import load_weights


@pytest.fixture(scope="module")
def arrays():
    return {name: array for name, array in official().items() if "mask_token" not in name}


def prefixed(arrays, prefix, factor=1.0):
    return {prefix + name: array * np.float32(factor) for name, array in arrays.items()}


def is_loaded(arrays, source):
    model = small()
    report = load_weights(model, source)
    np.testing.assert_array_equal(model.norm.bias[...], arrays["norm.bias"])
    weight = arrays["blocks.1.mlp.fc1.weight"]
    np.testing.assert_array_equal(model.blocks[1].mlp.inner.fc1.kernel[...], weight.T)
    return report


@pytest.mark.parametrize(
    "prefix",
    [
        *("teacher.backbone.", "student.backbone.", "model.", "module.", "_orig_mod."),
        *("model.teacher.backbone.", "module._orig_mod.", "teacher.module.backbone.", "student."),
        "_orig_mod.model.backbone.",
    ],
)
def test_what_stands_before_names(arrays, prefix):
    assert is_loaded(arrays, prefixed(arrays, prefix)).unused == []


def test_names_inside_of_which_a_compiler_wrote(arrays):
    inside = {name.replace("blocks.1.", "blocks.1._orig_mod."): a for name, a in arrays.items()}
    assert inside.keys() != arrays.keys()
    is_loaded(arrays, inside)


def test_of_two_models_it_is_the_teacher_and_the_rest_is_named(arrays):
    head = {"teacher.dino_head.mlp.0.weight": np.ones(3, np.float32)}
    student = prefixed(arrays, "student.backbone.", 2.0)
    both = {**student, **prefixed(arrays, "teacher.backbone."), **head}
    assert set(is_loaded(arrays, both).unused) == {*student, *head}


def test_nested_files(arrays, tmp_path, monkeypatch):
    def tensors(factor):
        return {
            name: fake_torch.Tensor(array) for name, array in prefixed(arrays, "", factor).items()
        }

    content = {"student": {"backbone": tensors(2.0)}, "teacher": {"backbone": tensors(1.0)}}
    content["teacher"]["teacher"] = content["teacher"]  # names itself
    monkeypatch.setitem(sys.modules, "torch", fake_torch.module(lambda *_, **__: content))
    (tmp_path / "training.pth").touch()
    is_loaded(arrays, tmp_path / "training.pth")
