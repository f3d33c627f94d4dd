"""Dense heads' names in files of detectors, both ways and beside a trunk."""

import numpy as np
import pytest
from flax import nnx

from tests.heads.tiny_boxes import CLASSES, NAMES, NORMED, WIDTH, made, new
from vadapt.backbones.resnet import ResNet
from vadapt.partition import variables
from vadapt.weights.families.dense_heads import DENSE_HEADS
from vadapt.weights.families.resnet import RESNET
from vadapt.weights.load import match_weights
from vadapt.weights.tables import revert


class Model(nnx.Module):
    """A model that is all head, or has a backbone beside it."""

    def __init__(self, head, backbone=None):
        self.head, self.backbone = head, backbone


PUBLISHED = {
    "retinanet": {"retina_cls": CLASSES * 9, "retina_reg": 36},
    "fsaf": {"retina_cls": CLASSES, "retina_reg": 4},
    "gfl": {"gfl_cls": CLASSES, "gfl_reg": 68},
    "atss": {"atss_cls": CLASSES, "atss_reg": 4, "atss_centerness": 1},
}


@pytest.mark.parametrize("name", NAMES)
def test_weights_leave_and_enter_under_the_published_names(name):
    model = Model(made(name))
    values = {path: x[...] for path, x in variables(model).items()}
    arrays, nameless = revert(values, DENSE_HEADS)
    assert not nameless
    shapes = {key: x.shape for key, x in arrays.items()}
    assert shapes["bbox_head.cls_convs.0.conv.weight"] == (WIDTH, WIDTH, 3, 3)
    normed = "bbox_head.reg_convs.0.gn.weight" in shapes
    assert normed == (name in NORMED) != ("bbox_head.reg_convs.0.conv.bias" in shapes)
    for output, channels in PUBLISHED[name].items():
        assert shapes[f"bbox_head.{output}.weight"] == (channels, WIDTH, 3, 3)
        assert shapes[f"bbox_head.{output}.bias"] == (channels,)
    assert ("bbox_head.scales.1.scale" in shapes) == (name in NORMED)
    read = match_weights(Model(new(name, seed=5)), arrays)[0]
    assert read.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(read[path], value)


def trunk(seed):
    return ResNet(18, base_width=2, rngs=nnx.Rngs(seed))


def test_a_file_of_a_whole_detector_loads_into_backbone_and_head():
    model = Model(made("gfl"), trunk(0))
    values = {path: x[...] for path, x in variables(model).items()}
    own = {k.removeprefix("backbone/"): x for k, x in values.items() if k.startswith("backbone/")}
    arrays = {f"backbone.{name}": x for name, x in revert(own, RESNET)[0].items()}
    head = {path: x for path, x in values.items() if path.startswith("head/")}
    arrays |= revert(head, DENSE_HEADS)[0]
    arrays["bbox_head.integral.project"] = np.arange(17.0)
    read = match_weights(Model(new("gfl", seed=5), trunk(1)), arrays)[0]
    assert read.keys() == values.keys()
    for path, value in values.items():
        np.testing.assert_array_equal(read[path], value)
