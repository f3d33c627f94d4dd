"""ViG's and GKGNet's files: their names, stored biases by position, tables at other sizes."""

import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from vadapt import models
from vadapt.backbones.vig import ViG
from vadapt.errors import WeightsError
from vadapt.heads.label_graph import LabelGraph
from vadapt.heads.vig_classifier import ViGClassifier
from vadapt.nn.positions import resize_table
from vadapt.partition import variables
from vadapt.weights.families.vig import vig_table
from vadapt.weights.files import write_arrays
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

OPTIONS = {"widths": (8, 8, 16), "depths": (1, 2, 1), "reductions": (4, 2, 1), "image_size": 64}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
GRAPHER = ("fc1", "graph_conv.gconv.nn", "fc2")


def small(seed=0, **options):
    return drawn(lambda: ViG(**{**OPTIONS, **options}, rngs=nnx.Rngs(0)), seed)


class GKGNet(nnx.Module):
    def __init__(self, **options):
        rngs = nnx.Rngs(0)
        self.backbone = ViG(**{**OPTIONS, **options}, groups=2, rngs=rngs)
        self.head = LabelGraph(self.backbone.widths, 3, depth=2, rngs=rngs)


def classifier(seed=0):
    def make():
        return ViGClassifier(ViG(**OPTIONS, rngs=nnx.Rngs(0)), 5, hidden=12, rngs=nnx.Rngs(0))

    return drawn(make, seed)


def values_of(model):
    return {path: np.asarray(value[...]) for path, value in variables(model).items()}


def file_of(model):
    """Numbers as a file has them, counters and biases by relative position among them."""
    whole = hasattr(model, "backbone")
    trunk = model.backbone if whole else model
    depths = [len(stage) for stage in trunk.stages]
    prefix = "backbone/" if whole else ""
    arrays, lost = revert(values_of(model), vig_table(depths), backbone=prefix)
    assert lost == []
    if isinstance(model, GKGNet):
        # The table writes ViG's names.
        arrays = {
            name if name.startswith("head.") else f"backbone.{name}": array
            for name, array in arrays.items()
        }
    first = "backbone." if isinstance(model, GKGNet) else ""
    for name in [name for name in arrays if name.endswith("running_mean")]:
        arrays[name.replace("running_mean", "num_batches_tracked")] = np.array(7)
    number = 0
    for stage in trunk.stages:
        for block in stage:
            bias = np.asarray(block.bias(block.grid).dense())
            arrays[f"{first}backbone.{number}.0.relative_pos"] = bias[None]
            number += 1
        number += 1  # the convolution behind it
    return arrays


def published():
    """Every name of a trunk, with the shape at these widths."""
    shapes = {"pos_embed": (1, 8, 16, 16)}

    def add(name, conv, first=0):
        shapes.update({f"{name}.{first}.weight": conv, f"{name}.{first}.bias": conv[:1]})
        shapes.update({f"{name}.{first + 1}.{part}": conv[:1] for part in NORM[:-1]})
        shapes[f"{name}.{first + 1}.num_batches_tracked"] = ()

    for i, (outputs, inputs) in enumerate([(4, 3), (8, 4), (8, 8)]):
        add("stem.convs", (outputs, inputs, 3, 3), 3 * i)
    add("backbone.1.conv", (8, 8, 3, 3))
    add("backbone.4.conv", (16, 8, 3, 3))
    for number, c, n, m in [(0, 8, 256, 16), (2, 8, 64, 16), (3, 8, 64, 16), (5, 16, 16, 16)]:
        name = f"backbone.{number}."
        shapes[name + "0.relative_pos"] = (1, n, m)
        add(name + "0.fc1", (c, c, 1, 1))
        add(name + "0.graph_conv.gconv.nn", (2 * c, c // 2, 1, 1))
        add(name + "0.fc2", (c, 2 * c, 1, 1))
        add(name + "1.fc1", (4 * c, c, 1, 1))
        add(name + "1.fc2", (c, 4 * c, 1, 1))
    return shapes


def test_names_and_shapes_are_the_published_ones():
    assert {name: array.shape for name, array in file_of(small()).items()} == published()
    names = set(file_of(drawn(GKGNet)))
    assert {f"backbone.{name}" for name in published()} < names
    assert {"backbone.label_lt.weight", "head.fc1.weight", "head.fc2.bias"} < names
    assert {f"backbone.gcn_label.2.1.{part}.0.weight" for part in (*GRAPHER, "ffn.fc1")} < names
    assert {"backbone.ffn_label.0.0.weight", "backbone.ffn_label.1.0.bias"} < names
    names = set(file_of(classifier()))
    assert {"prediction.0.weight", "prediction.1.running_var", "prediction.4.bias"} < names


@pytest.mark.parametrize("make", [small, lambda seed=0: drawn(GKGNet, seed), classifier])
def test_files_load_whole(make):
    arrays = file_of(make())
    model = make(seed=1)
    report = load_weights(model, arrays)
    assert report.family == ("gkgnet" if isinstance(model, GKGNet) else "vig")
    kinds = {name.rpartition(".")[2] for name in report.unused}
    assert kinds == {"num_batches_tracked", "relative_pos"}
    assert report.missing + report.unexpected + report.cast + report.resized == []
    for path, value in values_of(make()).items():
        np.testing.assert_array_equal(variables(model)[path][...], value, err_msg=path)


def test_a_name_takes_a_file(tmp_path):
    write_arrays(tmp_path / "pvig.safetensors", file_of(small()))
    model = models.create("pvig_ti", tmp_path / "pvig.safetensors", **OPTIONS)
    for path, value in values_of(small()).items():
        np.testing.assert_array_equal(variables(model)[path][...], value, err_msg=path)


def test_trunks_take_what_is_theirs_of_whole_networks():
    for whole, first in ((classifier(), "prediction."), (drawn(GKGNet), "backbone.label_lt")):
        arrays = file_of(whole)
        model = small(seed=1)
        report = load_weights(model, arrays)
        assert report.unexpected == []
        assert any(name.startswith(first) for name in report.unused)
        expected = whole.backbone.stages[1][1].conv.mix.linear.kernel[...]
        np.testing.assert_array_equal(model.stages[1][1].conv.mix.linear.kernel[...], expected)


def test_a_network_for_labels_takes_a_trunk_of_a_classifier():
    model = drawn(GKGNet, seed=1)
    before = values_of(model)
    arrays = file_of(classifier())
    with pytest.raises(WeightsError, match=r"missing \(head/"):
        load_weights(model, arrays)
    report = load_weights(model, arrays, allow_missing=["head/.*"])
    assert report.unexpected == []
    assert {name.split(".")[0] for name in report.unused} == {"backbone", "prediction", "stem"}
    for path, value in values_of(model).items():
        assert (value == before[path]).all() == path.startswith("head/"), path


def test_position_tables_are_resized():
    arrays, model = file_of(small()), small(image_size=(96, 64), seed=1)
    report = load_weights(model, arrays)
    assert report.resized == ["positions/pos_embed: 16x16 to 24x16"]
    table = small().positions.pos_embed[...]
    expected = resize_table(table, (16, 16), (24, 16), num_extra=0)
    np.testing.assert_allclose(model.positions.pos_embed[...], expected, atol=1e-6)


@pytest.mark.parametrize("change", ["value", "nan", "shape"])
def test_a_damaged_bias_is_named(change):
    arrays, name = file_of(small()), "backbone.3.0.relative_pos"
    if change == "shape":
        arrays[name] = arrays[name][:, :-1]
    else:
        arrays[name] = arrays[name].copy()
        arrays[name][0, 40, 3] = np.nan if change == "nan" else arrays[name][0, 40, 3] + 1e-5
    model = small(seed=1)
    before = values_of(model)
    with pytest.raises(WeightsError, match=r"backbone\.3\.0\.relative_pos: not the bias"):
        load_weights(model, arrays)
    for path, value in values_of(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    load_weights(model, arrays, allow_unexpected=[r"backbone\.3\.0\.relative_pos"])


def test_a_lacking_statistic_is_named():
    arrays = file_of(small())
    del arrays["backbone.3.0.graph_conv.gconv.nn.1.running_var"]
    with pytest.raises(WeightsError, match=r"1 missing \(stages/1/1/conv/mix/norm/var"):
        load_weights(small(), arrays)


@pytest.mark.parametrize(
    ("name", "options"), [("pvig_ti", {}), ("pvig_ti", {"image_size": 256}), ("vig_ti", {})]
)
def test_shapes_tell_the_backbone(name, options):
    model = nnx.eval_shape(lambda: models.create(name, **options))
    values = {path: np.broadcast_to(np.float32(0), v.shape) for path, v in variables(model).items()}
    arrays = revert(values, vig_table([len(stage) for stage in model.stages]))[0]
    assert models.recognise(arrays) == (name, options)
    if name == "pvig_ti":
        arrays["label_lt.weight"] = np.zeros((3, 48))
        assert models.recognise(arrays) == (name, {"groups": 2, **options})
