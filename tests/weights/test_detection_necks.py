"""Files of detectors: the names of their necks, both ways, and indices that must be ours."""

import re

import numpy as np
import pytest
from flax import nnx

from vadapt import models
from vadapt.errors import WeightsError
from vadapt.necks.cfpt import CFPT
from vadapt.necks.fpn import FPN
from vadapt.partition import variables
from vadapt.weights.families.detection_necks import TABLE
from vadapt.weights.load import load_weights, match_weights
from vadapt.weights.tables import revert


class Parts(nnx.Module):
    """A neck where the name table expects it, beside a backbone if there is one."""

    def __init__(self, neck, backbone=None):
        self.neck = neck
        if backbone is not None:
            self.backbone = backbone


def cfpt(widths=(3, 4, 6, 5), outputs=8):
    sizes = {"num_heads": 2, "reduction": 2, "rngs": nnx.Rngs(0)}
    return CFPT(widths, outputs, **sizes)


def official(model):
    """Random arrays for all of a model, by the names of released files."""
    rng = np.random.default_rng(0)
    values = {
        path: rng.uniform(0.5, 1, size=value.shape).astype(np.float32)
        for path, value in variables(model).items()
    }
    arrays, lost = revert(values, TABLE)
    assert lost == []
    return values, arrays


def published_index():
    """Of the channels' windows, as released files hold it: float32."""
    places = [(np.arange(w) - w // 2) * 65 / w for w in (65, 17, 5)] + [np.zeros(1)]
    places = np.concatenate(places)
    return (places[:, None] - places + 64).astype(np.float32)


def test_names_and_shapes_are_the_published_ones():
    model = nnx.eval_shape(lambda: Parts(CFPT((64, 128, 256, 512), rngs=nnx.Rngs(0))))
    places = {path: np.zeros(value.shape) for path, value in variables(model).items()}
    arrays, lost = revert(places, TABLE)
    assert lost == []
    shapes = {name: array.shape for name, array in arrays.items()}
    attention = "neck.cross_layer_channel_attn."
    expected = {
        "neck.conv2.conv.weight": (256, 128, 1, 1),
        "neck.conv5.conv.weight": (256, 512, 3, 3),
        "neck.conv5.bn.running_var": (256,),
        "neck.extra_conv1.bn.weight": (256,),
        attention + "cpe.3.1.proj.weight": (256, 1, 3, 3),
        attention + "cpe.3.1.proj.bias": (256,),
        attention + "qkv.0.weight": (192, 256, 1, 1),
        attention + "proj.2.weight": (256, 64, 1, 1),
        attention + "norm1.1.norm.weight": (256,),
        attention + "norm2.1.bias": (256,),
        attention + "mlp.0.fc1.weight": (512, 256),
        attention + "mlp.0.fc2.weight": (256, 512),
        attention + "pos_embed.relative_position_bias_table": (16641, 4),
        attention + "pos_embed.absolute_position_bias": (4, 4, 1, 1, 1),
        "neck.cross_layer_spatial_attn.pos_embed.relative_position_bias_table": (289, 4),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    # Buffers are 4 norms' statistics and those of the extra level's, and indices that are computed.
    assert len(shapes) == 5 * 5 + 2 * (4 * (2 * 2 + 2 + 2 + 2 + 2 + 4) + 2)


def test_a_file_comes_back_as_it_was_but_for_rows_that_nothing_reads():
    model = Parts(cfpt())
    values, arrays = official(model)
    table = "neck.cross_layer_channel_attn.pos_embed.relative_position_bias_table"
    assert arrays[table].shape == (129**2, 2)
    arrays[table][129:] = 7.0
    arrays["neck.conv2.bn.num_batches_tracked"] = np.array(3)
    index = table.replace("bias_table", "index")
    arrays[index] = published_index()
    report = load_weights(model, arrays)
    assert report.family == "detection_necks"
    assert sorted(report.unused) == sorted(["neck.conv2.bn.num_batches_tracked", index])
    for path, value in variables(model).items():
        np.testing.assert_array_equal(value[...], values[path], err_msg=path)
    again = revert({path: v[...] for path, v in variables(model).items()}, TABLE)[0]
    np.testing.assert_array_equal(again[table][:129], arrays[table][:129])
    np.testing.assert_array_equal(again[table][129:], 0.0)


def test_an_index_of_other_windows_is_refused():
    model = Parts(cfpt())
    _, arrays = official(model)
    index = "neck.cross_layer_channel_attn.pos_embed.relative_position_index"
    wrong = {**arrays, index: published_index() + 0.5}
    with pytest.raises(WeightsError, match=re.escape(index)):
        load_weights(model, wrong)
    load_weights(model, wrong, allow_unexpected=[re.escape(index)])


def test_a_detector_is_its_backbone_its_neck_and_a_head_that_is_passed_over():
    backbone = models.create("resnet50", image_size=32, base_width=4)
    model = Parts(cfpt(backbone.widths), backbone)
    _, arrays = official(Parts(model.neck))
    trunk = official_trunk(backbone)
    whole = {**arrays, **{f"backbone.{name}": array for name, array in trunk.items()}}
    _, report = match_weights(model, whole)
    assert (report.unexpected, report.missing) == ([], [])


def official_trunk(backbone):
    from vadapt.weights.families.resnet import FAMILY

    values = {path: np.ones(v.shape, np.float32) for path, v in variables(backbone).items()}
    names, lost = revert(values, FAMILY.tables[0])
    assert lost == []
    return names


def test_extra_levels_of_fpn_follow_the_others():
    model = Parts(FPN((3, 4, 6), 8, extra=2, rngs=nnx.Rngs(0)))
    _, arrays = official(model)
    assert arrays["neck.lateral_convs.2.conv.weight"].shape == (8, 6, 1, 1)
    assert arrays["neck.fpn_convs.3.conv.weight"].shape == (8, 6, 3, 3)
    assert load_weights(model, arrays).missing == []
