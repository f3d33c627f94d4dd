"""Transforms of detection: published sizes, cut boxes, fixed shapes, the way back to the file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data import fields
from vadapt.data.detection_transforms import KeepRatioResize, LargestBoxes, PadToMultiple
from vadapt.data.kinds import Dimensions
from vadapt.data.segmentation_transforms import PadTo
from vadapt.data.stream import make_stream
from vadapt.data.transforms import HorizontalFlip, apply_all
from vadapt.errors import ConfigError, DataError


def record(height, width, boxes=(), ignored=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    flags = np.zeros(len(boxes), bool) if ignored is None else np.array(ignored)
    return {
        "image": np.full((height, width, 3), 90, np.uint8),
        "boxes_xyxy": boxes,
        "box_classes": np.arange(len(boxes), dtype=np.int32),
        "box_ignored": flags,
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1080, 1920), (750, 1333)),
        ((765, 1360), (750, 1333)),  # 749.8
        ((540, 960), (750, 1333)),
        ((1050, 1400), (800, 1067)),  # 1066.67
        ((1920, 1080), (1333, 750)),
        ((100, 100), (800, 800)),
    ],
)
def test_images_fit_into_1333_by_800(rng, old, new):
    assert KeepRatioResize().new_size(old, rng) == new


def test_boxes_follow_and_are_cut_at_the_edges(rng):
    out = KeepRatioResize(((40, 20),))(
        record(40, 80, [[-8, 4, 20, 12], [70, 30, 96, 44], [81, 0, 90, 9]]), rng
    )
    assert out["image"].shape == (20, 40, 3)
    assert out["boxes_xyxy"].tolist() == [[0, 2, 10, 6], [35, 15, 40, 20]]
    assert out["box_classes"].tolist() == [0, 1]  # nothing is left of the last
    assert out["scale_factor"].tolist() == [0.5, 0.5]


@settings(max_examples=40, deadline=None)
@given(height=st.integers(20, 90), width=st.integers(20, 90), seed=st.integers(0, 99))
def test_size_and_scale_lead_back_to_the_file(height, width, seed):
    rng = np.random.default_rng(seed)
    box = [3.0, 4.0, 17.0, 15.0]
    chain = [KeepRatioResize(((64, 40), (48, 32)), within=(48, 64)), PadTo((48, 64))]
    out = apply_all(chain, record(height, width, [box]), rng)
    assert out["image"].shape == (48, 64, 3)
    rows, columns = out["size"]
    assert (out["image"][:rows, :columns] == 90).all()
    assert not (out["image"][rows:] == 90).any()
    back = out["boxes_xyxy"][0] / np.tile(out["scale_factor"][::-1], 2)
    np.testing.assert_allclose(back, box, rtol=1e-5)
    np.testing.assert_allclose(out["scale_factor"] * [height, width], out["size"], rtol=1e-5)


def test_one_of_several_sizes_is_drawn():
    resize = KeepRatioResize(((40, 20), (60, 30)))
    drawn = {resize.new_size((20, 40), np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {(20, 40), (30, 60)}


@pytest.mark.parametrize(("old", "new"), [((64, 64), (64, 64)), ((65, 1), (128, 64))])
def test_margins_go_to_the_next_multiple(rng, old, new):
    out = PadToMultiple()(record(*old), rng)
    assert out["image"].shape == (*new, 3)
    assert out["size"].tolist() == list(old)


def test_the_largest_boxes_stay_in_their_order_and_ignored_ones_go_first(rng):
    boxes = [[0, 0, 2, 2], [0, 0, 9, 9], [0, 0, 5, 5], [0, 0, 4, 4]]
    out = LargestBoxes(2)(record(20, 20, boxes), rng)
    assert out["box_classes"].tolist() == [1, 2]
    assert out["boxes_left_out"] == 2
    out = LargestBoxes(2)(record(20, 20, boxes, [False, True, False, False]), rng)
    assert out["box_classes"].tolist() == [2, 3]
    whole = LargestBoxes(4)(record(20, 20, boxes), rng)
    assert (len(whole["boxes_xyxy"]), whole["boxes_left_out"]) == (4, 0)


def test_batches_have_one_shape_and_say_which_boxes_are_real():
    source = [record(20, 40, [[0, 0, 4, 4]] * number) for number in (0, 5, 2)]
    chain = [KeepRatioResize(((40, 20),)), HorizontalFlip(), LargestBoxes(3), PadTo((24, 40))]
    names = ("image", "boxes_xyxy", "box_classes", "box_ignored", "size", "scale_factor")
    names = (*names, "boxes_left_out")
    stream = make_stream(source, chain, batch_size=3, seed=0, fields=names, max_boxes=3)
    batch = next(stream)
    expected = fields.shapes(names, Dimensions((24, 40), max_boxes=3))
    assert {name: (array.shape[1:], array.dtype) for name, array in batch.items()} == {
        name: (shape, np.dtype(dtype)) for name, (shape, dtype) in expected.items()
    }
    assert sorted(batch["boxes_xyxy_valid"].sum(1).tolist()) == [0, 2, 3]
    assert sorted(batch["boxes_left_out"].tolist()) == [0, 0, 2]
    with pytest.raises(DataError, match="5 rows"):
        next(make_stream(source, chain[:1], batch_size=3, seed=0, fields=names[:2], max_boxes=3))


def test_settings_out_of_range_are_refused():
    for wrong in (
        lambda: KeepRatioResize(()),
        lambda: KeepRatioResize(((20, 40),)),
        lambda: KeepRatioResize(within=(3,)),
        lambda: PadToMultiple(0),
        lambda: LargestBoxes(0),
    ):
        with pytest.raises(ConfigError):
            wrong()
