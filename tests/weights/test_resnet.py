"""ResNet's files: torchvision's names, V1c stems, Hugging Face's, both ways."""

import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from vadapt.backbones.resnet import DEPTHS, ResNet
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.families.resnet import RESNET, RESNET_HF, RESNET_V1C, RESNET_V1C_TIMM
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

TABLES = [RESNET, RESNET_V1C, RESNET_V1C_TIMM, RESNET_HF]
WIDTH = 4
NORM = ("weight", "bias", "running_mean", "running_var")
# Convolution and norm of every layer of a stem.
STEMS = {
    "resnet": [("conv1", "bn1")],
    "resnet_v1c": [("stem.0", "stem.1"), ("stem.3", "stem.4"), ("stem.6", "stem.7")],
    "resnet_v1c_timm": [("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")],
}


def small(depth=50, seed=0, **options):
    return drawn(lambda: ResNet(depth, base_width=WIDTH, **options, rngs=nnx.Rngs(0)), seed)


def values_of(model):
    return {path: np.asarray(value[...]) for path, value in variables(model).items()}


def file_of(table, **options):
    """Numbers as a family's files have them, counters and a classifier among them."""
    deep = "v1c" in table.family
    arrays, lost = revert(values_of(small(deep_stem=deep, **options)), table)
    assert lost == []
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.array(7)
        for name in arrays
        if name.endswith("running_mean")
    }
    head = "classifier.1" if table is RESNET_HF else "fc"
    return arrays, {**counters, f"{head}.weight": np.ones((2, 64)), f"{head}.bias": np.ones(2)}


def published(family, depth):
    """Every name of a trunk, with the shape at the small width."""
    shapes = {}

    def add(conv, norm, out, inp, kernel):
        shapes[f"{conv}.weight"] = (out, inp, kernel, kernel)
        shapes.update({f"{norm}.{part}": (out,) for part in NORM})

    deep = len(STEMS[family]) == 3
    widths = (WIDTH // 2, WIDTH // 2, WIDTH) if deep else (WIDTH,)
    for (conv, norm), out, inp in zip(STEMS[family], widths, (3, *widths), strict=False):
        add(conv, norm, out, inp, 3 if deep else 7)
    bottleneck, inputs = depth >= 50, WIDTH
    for i, number in enumerate(DEPTHS[depth]):
        width = WIDTH * 2**i
        outputs = width * 4 if bottleneck else width
        for j in range(number):
            block = f"layer{i + 1}.{j}."
            layers = (
                [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
                if bottleneck
                else [(inputs, width, 3), (width, width, 3)]
            )
            for k, (inp, out, kernel) in enumerate(layers, start=1):
                add(f"{block}conv{k}", f"{block}bn{k}", out, inp, kernel)
            if j == 0 and inputs != outputs:
                add(f"{block}downsample.0", f"{block}downsample.1", outputs, inputs, 1)
            inputs = outputs
    return shapes


@pytest.mark.parametrize("family", sorted(STEMS))
@pytest.mark.parametrize("depth", [18, 50])
def test_names_and_shapes_are_the_published_ones(family, depth):
    table = next(table for table in TABLES if table.family == family)
    arrays, _ = file_of(table, depth=depth)
    assert {name: array.shape for name, array in arrays.items()} == published(family, depth)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.family)
def test_files_load_whole_and_are_written_back(table):
    arrays, rest = file_of(table)
    model = small(deep_stem="v1c" in table.family, seed=1)
    report = load_weights(model, {**arrays, **rest})
    assert report.family == table.family
    assert set(report.unused) == set(rest)
    assert report.missing + report.unexpected + report.cast == []
    written, lost = revert(values_of(model), table)
    assert lost == []
    assert written.keys() == arrays.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.parametrize("table", [RESNET, RESNET_V1C], ids=lambda table: table.family)
def test_detectors_and_segmenters_hold_a_trunk_under_a_prefix(table):
    arrays, rest = file_of(table)
    named = {f"backbone.{name}": array for name, array in {**arrays, **rest}.items()}
    named = {name: array for name, array in named.items() if ".fc." not in name}
    named["head.fc.weight"] = np.ones((2, 64))
    model = small(deep_stem=table is RESNET_V1C, seed=1)
    report = load_weights(model, named)
    assert report.family == table.family
    assert report.unexpected == []
    expected = arrays["layer4.0.downsample.1.running_var"]
    np.testing.assert_array_equal(model.stages[3][0].shortcut.norm.var[...], expected)


def test_a_file_of_one_stem_does_not_pass_for_one_of_another():
    arrays, _ = file_of(RESNET)
    with pytest.raises(WeightsError, match="stem/1/conv/kernel"):
        load_weights(small(deep_stem=True), arrays)
    arrays, _ = file_of(RESNET_V1C)
    with pytest.raises(WeightsError, match="10 unexpected \\(stem/1"):
        load_weights(small(), arrays)


def test_a_lacking_statistic_is_named():
    arrays, _ = file_of(RESNET)
    del arrays["layer2.0.bn1.running_var"]
    with pytest.raises(WeightsError, match="1 missing \\(stages/1/0/layers/0/norm/var"):
        load_weights(small(), arrays)
