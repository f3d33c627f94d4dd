"""ConvNeXt's files: official names, OpenMMLab's, timm's, Hugging Face's, both ways."""

import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from vadapt.backbones.convnext import ConvNeXt
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.families.convnext import CONVNEXT, CONVNEXT_HF, CONVNEXT_MM, CONVNEXT_TIMM
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

DEPTHS, WIDTHS = (1, 2, 2, 1), (4, 6, 8, 10)
HEADS = {
    "convnext": "head.weight",
    "convnext_mm": "head.fc.weight",
    "convnext_timm": "head.fc.weight",
    "convnext_hf": "classifier.weight",
}
LAST = {
    "convnext": "norm",
    "convnext_mm": "norm3",
    "convnext_timm": "head.norm",
    "convnext_hf": "layernorm",
}
TABLES = [CONVNEXT, CONVNEXT_MM, CONVNEXT_TIMM, CONVNEXT_HF]
FAMILIES = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.family)


def small(seed=0, **options):
    options = {"depths": DEPTHS, "widths": WIDTHS, **options}
    return drawn(lambda: ConvNeXt(**options, rngs=nnx.Rngs(0)), seed)


def values_of(model):
    return {path: np.asarray(value[...]) for path, value in variables(model).items()}


def file_of(table, **options):
    arrays, lost = revert(values_of(small(**options)), table)
    assert lost == []
    return arrays


def published(family):
    """Every name of a trunk, with its shape."""
    shapes = {}

    def add(name, *shape):
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    block, depthwise, first, second = {
        "convnext": ("stages.{}.{}.", "dwconv", "pwconv1", "pwconv2"),
        "convnext_mm": ("stages.{}.{}.", "depthwise_conv", "pointwise_conv1", "pointwise_conv2"),
        "convnext_timm": ("stages.{}.blocks.{}.", "conv_dw", "mlp.fc1", "mlp.fc2"),
    }[family]
    between = "stages.{}.downsample" if family == "convnext_timm" else "downsample_layers.{}"
    stem = "stem" if family == "convnext_timm" else "downsample_layers.0"
    for i, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True)):
        if i == 0:
            add(f"{stem}.0", width, 3, 4, 4)
            add(f"{stem}.1", width)
        else:
            add(between.format(i) + ".0", WIDTHS[i - 1])
            add(between.format(i) + ".1", width, WIDTHS[i - 1], 2, 2)
        for j in range(depth):
            name = block.format(i, j)
            add(name + depthwise, width, 1, 7, 7)
            add(name + "norm", width)
            add(name + first, 4 * width, width)
            add(name + second, width, 4 * width)
            shapes[name + "gamma"] = (width,)
    add(LAST[family], WIDTHS[-1])
    return shapes


@pytest.mark.parametrize("table", TABLES[:3], ids=lambda table: table.family)
def test_names_and_shapes_are_the_published_ones(table):
    shapes = {name: array.shape for name, array in file_of(table).items()}
    assert shapes == published(table.family)


@FAMILIES
def test_files_load_whole_and_are_written_back(table):
    arrays, head = file_of(table), HEADS[table.family]
    model = small(seed=1)
    report = load_weights(model, {**arrays, head: np.ones((2, 10))})
    assert report.family == table.family
    assert report.unused == [head]
    assert report.missing + report.unexpected + report.cast == []
    written, lost = revert(values_of(model), table)
    assert lost == []
    assert written.keys() == arrays.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (CONVNEXT, "norm1.weight"),
        (CONVNEXT_MM, "norm1.weight"),
        (CONVNEXT_HF, "hidden_states_norms.stage2.weight"),
    ],
    ids=lambda value: getattr(value, "family", ""),
)
def test_norms_of_the_other_stages_have_names_too(table, name):
    every = (0, 1, 2, 3)
    arrays = file_of(table, normed=every)
    model = small(normed=every, seed=1)
    assert load_weights(model, arrays).missing == []
    np.testing.assert_array_equal(model.norms["1"].scale[...], arrays[name])


@FAMILIES
def test_a_classifiers_file_lacks_the_norms_of_dense_prediction(table):
    model, arrays = small(normed=(0, 1, 2, 3)), file_of(table)
    with pytest.raises(WeightsError, match="6 missing \\(norms/0/"):
        load_weights(model, arrays)
    report = load_weights(model, arrays, allow_missing=["norms/[012]/.*"])
    assert len(report.missing) == 6


def test_segmenters_hold_a_trunk_under_a_prefix():
    arrays = {f"backbone.{name}": array for name, array in file_of(CONVNEXT_MM).items()}
    report = load_weights(small(), arrays)
    assert report.family == "convnext_mm"
    assert report.missing == []
