"""DINOv2's files: official names, Hugging Face's models, both ways."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.abstract import named
from tests.compiled import run
from vadapt import models
from vadapt.errors import WeightsError
from vadapt.nn.mlp import swiglu_hidden
from vadapt.partition import Frozen, count, mark, split, variables
from vadapt.weights.families.dinov2 import DINOV2, DINOV2_HF
from vadapt.weights.load import load_weights
from vadapt.weights.tables import convert, revert

# Learned numbers of the published models, less the mask token that is not imported.
COUNTS = {
    "dinov2_small": 22_056_576 - 384,
    "dinov2_base": 86_580_480 - 768,
    "dinov2_large": 304_368_640 - 1024,
    "dinov2_giant": 1_136_480_768 - 1536,
    "dinov2_small_reg": 22_058_112 - 384,
}
WIDTH, DEPTH, SIDE = 32, 3, 5  # of the small models; the table's grid is 5x5


def small(registers=0, swiglu=False, **options):
    """A DINOv2 of the family's options and a toy's size."""
    options = {"swiglu": swiglu, "image_size": 14 * SIDE, **options}
    hidden = swiglu_hidden(4 * WIDTH) if swiglu else 4 * WIDTH
    size = {"width": WIDTH, "depth": DEPTH, "num_heads": 4, "mlp_hidden": hidden}
    return models.create("dinov2_small_reg" if registers else "dinov2_small", **size, **options)


def random_values(model):
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(scale=0.3, size=value.shape).astype(np.float32)
        for path, value in variables(model).items()
    }


def official(**options):
    """Random arrays as an official file names them."""
    arrays, lost = revert(random_values(small(**options)), DINOV2)
    assert lost == []
    return {**arrays, "mask_token": np.ones((1, WIDTH), np.float32)}


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_counts_are_the_published_ones(name):
    assert count(split(named(name), "everything").trainable) == COUNTS[name]


def test_official_names_are_the_published_ones():
    arrays = official(registers=4, swiglu=True)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert (
        shapes.items()
        >= {
            "cls_token": (1, 1, WIDTH),
            "register_tokens": (1, 4, WIDTH),
            "pos_embed": (1, 1 + SIDE * SIDE, WIDTH),
            "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
            "blocks.2.attn.qkv.weight": (3 * WIDTH, WIDTH),
            "blocks.2.ls1.gamma": (WIDTH,),
            # 88 is two thirds of 4 * 32, up to a multiple of 8.
            "blocks.2.mlp.w12.weight": (2 * 88, WIDTH),
            "blocks.2.mlp.w3.bias": (WIDTH,),
            "blocks.2.ls2.gamma": (WIDTH,),
            "norm.bias": (WIDTH,),
        }.items()
    )
    assert "mlp.fc1.weight" in "".join(official())


@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 4])
def test_official_files_load_whole_and_are_written_back(registers, swiglu):
    arrays, model = official(registers=registers, swiglu=swiglu), small(registers, swiglu)
    report = load_weights(model, arrays)
    assert report.family == "dinov2"
    assert report.unused == ["mask_token"]
    assert report.missing + report.unexpected + report.resized == []
    values = {path: value[...] for path, value in variables(model).items()}
    written, lost = revert(values, DINOV2)
    assert lost == []
    assert written.keys() == arrays.keys() - {"mask_token"}
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_training_files_number_chunks_before_blocks():
    arrays = {name.replace("blocks.", "blocks.0."): array for name, array in official().items()}
    model, twin = small(), small()
    load_weights(model, arrays)
    load_weights(twin, official())
    for path, value in variables(twin).items():
        np.testing.assert_array_equal(variables(model)[path][...], value[...], err_msg=path)


def test_a_file_without_registers_does_not_pass_for_one_with():
    with pytest.raises(WeightsError, match="1 missing \\(registers"):
        load_weights(small(4), official())
    with pytest.raises(WeightsError, match="1 unexpected \\(registers"):
        load_weights(small(), official(registers=4))


def test_the_table_of_a_model_for_another_size_is_the_one_it_would_make_itself():
    arrays, model, other = official(), small(), small(image_size=(56, 98))
    load_weights(model, arrays)
    assert load_weights(other, arrays).resized == ["pos_embed: 5x5 to 4x7"]
    images = jnp.asarray(np.random.default_rng(1).normal(size=(1, 56, 98, 3)), jnp.float32)
    found, expected = (run("embed", x, images) for x in (other, model))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_file_for_other_patches_keeps_all_else():
    arrays = official()
    model = small(patch_size=16, image_size=(96, 64))
    report = load_weights(model, arrays)
    assert sorted(report.resized) == [
        "patch_embed/proj/kernel: patches of 14 to 16",
        "pos_embed: 5x5 to 6x4",
    ]
    same = small()
    load_weights(same, arrays)
    before, after = variables(same), variables(model)
    changed = [
        path
        for path, value in after.items()
        if value.shape != before[path].shape or not np.array_equal(value[...], before[path][...])
    ]
    assert changed == ["patch_embed/proj/kernel", "pos_embed"]


def test_frozen_models_load_like_any_other():
    model = mark(small(), Frozen)
    load_weights(model, official())
    assert {type(value) for value in variables(model).values()} == {Frozen}


@pytest.mark.parametrize("prefix", ["dinov2.", "dinov2_with_registers."])
def test_hugging_faces_classifiers_hold_a_trunk_under_a_prefix(prefix):
    values = random_values(small(4))
    arrays = {f"{prefix}{name}": array for name, array in revert(values, DINOV2_HF)[0].items()}
    arrays["classifier.weight"] = np.ones((2, 2), np.float32)
    model = small(4)
    report = load_weights(model, arrays, allow_unexpected=[r"classifier\..*"])
    assert report.family == "dinov2_hf"
    np.testing.assert_array_equal(model.registers[...], values["registers"])


def test_a_lacking_third_of_a_projection_is_named():
    arrays, _ = revert(random_values(small()), DINOV2_HF)
    del arrays["encoder.layer.1.attention.attention.key.weight"]
    _, unknown = convert(arrays, DINOV2_HF)
    assert unknown == [
        f"encoder.layer.1.attention.attention.{part}.weight" for part in ("query", "value")
    ]
    with pytest.raises(WeightsError, match="blocks/1/attn/inner/qkv/kernel"):
        load_weights(small(), arrays)
