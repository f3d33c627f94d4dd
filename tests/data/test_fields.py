"""Fields of every kind, dragged through every geometric transform: they stay of one scene."""

import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data import (
    detection_transforms,
    fields,
    roi_crop,
    segmentation_transforms,
    transforms,
)
from vadapt.data.augment import CropMix
from vadapt.data.auto_augment import RandAugment, TrivialAugment
from vadapt.data.box_kinds import Boxes
from vadapt.data.detection_transforms import KeepRatioResize, LargestBoxes, PadToMultiple
from vadapt.data.kinds import Dimensions, Grid
from vadapt.data.resampling import resize_linear, resize_opencv, resize_pillow
from vadapt.data.roi_crop import RandomRoiCrop, RoiRules
from vadapt.data.scenes import FIELDS, SceneOptions, Scenes
from vadapt.data.segmentation_transforms import (
    PadTo,
    RandomCrop,
    RandomShortEdge,
    ResizedCrop,
    ResizeTo,
    ResizeToFit,
)
from vadapt.data.stream import make_stream
from vadapt.data.transforms import (
    Channels,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    ResizeCenterCrop,
    ResizeRandomCrop,
    apply_all,
)
from vadapt.errors import ConfigError, DataError

GEOMETRIC = [
    [RandomResizedCrop((18, 23), area=(0.3, 1.0))],
    [HorizontalFlip(1.0)],
    [Resize((17, 26))],
    [ResizeCenterCrop((16, 20), 0.8)],
    [ResizeRandomCrop((16, 20), 0.8)],
    [RandomRoiCrop((18, 16), RoiRules(min_side=10, min_candidate_side=3))],
    [RandomShortEdge((14, 20, 33), longest=40)],
    [ResizeToFit(40, 20, (0.7, 1.4))],
    [ResizeTo((31, 19))],
    [RandomCrop((14, 15), max_share=0.75)],
    [PadTo((40, 44))],
    [PadToMultiple(16)],
    [KeepRatioResize(((40, 24), (30, 20)), within=(24, 40))],
    [ResizedCrop(RandomShortEdge((14, 20, 33), longest=40), RandomCrop((14, 15)))],
    [RandomShortEdge((16, 26), 60), RandomCrop((18, 18)), HorizontalFlip(), PadTo((18, 18))],
]
OTHERS = {Channels, LargestBoxes}  # transforms of these modules that move nothing
LEVEL = 6.0  # gray levels a pixel of the scenes below, at their own size
HALF = 0.5 + 1e-3  # of a pixel: where nearest neighbors put an edge

each_chain = pytest.mark.parametrize(
    "chain", GEOMETRIC, ids=lambda chain: "+".join(type(x).__name__ for x in chain)
)
few = settings(max_examples=8, deadline=None)
sides, seeds = st.integers(14, 36), st.integers(0, 2**32 - 1)


class Depth(Grid):
    """A kind of one's own: numbers that are resized linearly."""

    fill = -1.0

    def resize_frame(self, frame, size, filter):
        return resize_linear(frame, size)


@pytest.fixture(autouse=True, scope="module")
def kinds_of_ones_own():
    before = dict(fields.FIELDS)
    fields.register("depth", Depth(2))
    fields.register("tracks", Boxes(clip=True))
    yield
    fields.FIELDS.clear()
    fields.FIELDS.update(before)


def ramp(x, y):
    """An image that says where it shows what: red grows to the right, green downwards."""
    blue = np.full(np.broadcast(x, y).shape, 80.0)
    return np.stack(np.broadcast_arrays(20 + LEVEL * x, 20 + LEVEL * y, blue), -1)


def scene(height, width, seed):
    """A record with all kinds of fields: a ramp, two things on it, and a zoom to frame t + 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    zoom, shift = rng.uniform(-0.08, 0.08, 2), rng.uniform(-3, 3, 2)
    flow = np.stack([zoom[0] * x + shift[0], zoom[1] * y + shift[1]], -1).astype(np.float32)
    image = ramp(x, y)
    following = ramp((x - shift[0]) / (1 + zoom[0]), (y - shift[1]) / (1 + zoom[1]))
    image, following = (np.rint(a).clip(0, 255).astype(np.uint8) for a in (image, following))
    boxes = []
    for left, right in ((0, width // 2), (width // 2, width)):
        start, end = np.sort(rng.choice(np.arange(left, right + 1), 2, replace=False))
        top, bottom = np.sort(rng.choice(np.arange(height + 1), 2, replace=False))
        boxes.append((start, top, end, bottom))
    instances = np.zeros((height, width), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, 1):
        instances[top:bottom, left:right] = number
    boxes = np.array(boxes, np.int32)
    mask = np.array([7, 3, 4], np.uint8)[instances]
    return {
        "image": image,
        "next_image": following,
        "clip": np.stack([image, following]),
        "thermal": image[..., 0],
        "mask": mask,
        "next_mask": np.roll(mask, 1, axis=1),
        "clip_mask": np.stack([mask, np.roll(mask, 1, axis=1)]),
        "instances": instances,
        "boxes_xyxy": boxes.astype(np.float32),
        "box_classes": np.array([3, 4], np.int32),
        "tracks": np.stack([boxes, boxes]).astype(np.float32),
        "rois": np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        "flow": flow,
        "depth": x.astype(np.float32),
        "labels": np.array([0, 1], np.int8),
        "name": "a scene",
    }


def moved(chain, height, width, seed):
    return apply_all(chain, scene(height, width, seed), np.random.default_rng(seed))


def inner(record, height, width):
    """Pixels that no edge is near to, neither the image's nor that of what a filter has seen."""
    rows, columns = record.get("size", record["image"].shape[:2])
    # Bicubic reaches two pixels of the larger grid; crops above leave a third of a side or more.
    margins = [
        int(np.ceil(max(3, 7 * new / old))) for new, old in ((rows, height), (columns, width))
    ]
    inside = np.zeros(record["image"].shape[:2], bool)
    inside[margins[0] : rows - margins[0], margins[1] : columns - margins[1]] = True
    return inside


def test_no_geometric_transform_is_left_out():
    tested = {type(transform) for chain in GEOMETRIC for transform in chain}
    known = {
        part
        for module in (transforms, segmentation_transforms, detection_transforms, roi_crop)
        for _, part in inspect.getmembers(module, dataclasses.is_dataclass)
        if "rng" in inspect.signature(part.__call__).parameters
    }
    assert known == tested | OTHERS


@each_chain
@few
@given(height=sides, width=sides, seed=seeds)
def test_boxes_bound_the_pixels_of_their_things(chain, height, width, seed):
    out = moved(chain, height, width, seed)
    boxes, instances = out["boxes_xyxy"], out["instances"]
    assert len(out["box_classes"]) == len(boxes) >= instances.max()
    slack = 2 * HALF if len(chain) > 1 else HALF
    for number, (left, top, right, bottom) in enumerate(boxes.tolist(), 1):
        rows, columns = np.nonzero(instances == number)
        if not len(rows):  # thinner than a pixel
            assert min(right - left, bottom - top) < 1
            continue
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, [left, top, right, bottom], atol=slack)
        assert set(out["mask"][instances == number]) == {out["box_classes"][number - 1]}
    np.testing.assert_array_equal(out["tracks"], np.stack([boxes, boxes]))
    if "rois" in out:
        corners = np.concatenate([out["rois"][:, :2], out["rois"].reshape(-1, 2, 2).sum(1)], 1)
        distances = np.abs(corners[:, None] - boxes[None]).max(-1)
        assert (distances.min(1, initial=99) <= slack).all()
        # Whole pixels: what is thinner may have dropped out.
        thick = (boxes[:, 2:] - boxes[:, :2] > 1 + 2 * slack).all(1)
        assert thick.sum() <= len(corners) <= len(boxes)


@each_chain
@few
@given(height=sides, width=sides, seed=seeds)
def test_clips_follow_frame_by_frame(chain, height, width, seed):
    out = moved(chain, height, width, seed)
    np.testing.assert_array_equal(out["clip"], np.stack([out["image"], out["next_image"]]))
    np.testing.assert_array_equal(out["clip_mask"], np.stack([out["mask"], out["next_mask"]]))
    assert out["thermal"].shape == out["depth"].shape == out["image"].shape[:2]
    assert (out["labels"].tolist(), out["name"]) == ([0, 1], "a scene")


@each_chain
@few
@given(height=sides, width=sides, seed=seeds)
def test_flow_leads_to_the_same_thing_in_the_next_frame(chain, height, width, seed):
    out = moved(chain, height, width, seed)
    inside = inner(out, height, width)
    y, x = np.nonzero(inside)
    to_x, to_y = (np.stack([x, y], -1) + out["flow"][y, x]).T
    landed = (to_x >= 0) & (to_y >= 0)
    landed &= (to_x < inside.shape[1] - 1) & (to_y < inside.shape[0] - 1)
    landed[landed] = inside[to_y[landed].round().astype(int), to_x[landed].round().astype(int)]
    found = bilinear(out["next_image"], to_x[landed], to_y[landed])
    expected = out["image"][y[landed], x[landed]]
    # Rounding of both to whole levels, once or twice; half a pixel would be LEVEL / 2 and more.
    unclipped = (expected < 250).all(-1) & (found > 5).all(-1) & (found < 250).all(-1)
    np.testing.assert_allclose(found[unclipped], expected[unclipped], atol=2.5)


def bilinear(image, x, y):
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


@each_chain
@few
@given(height=sides, width=sides, seed=seeds)
def test_a_kind_of_ones_own_follows_the_image(chain, height, width, seed):
    out = moved(chain, height, width, seed)
    inside = inner(out, height, width) & (out["image"][..., 0] < 250)
    shown = (out["image"][inside][:, 0] - 20.0) / LEVEL
    np.testing.assert_allclose(out["depth"][inside], shown, atol=0.4)
    if "size" in out:
        rows, columns = out["size"]
        assert (out["depth"][rows:] == -1).all()
        assert (out["mask"][:, columns:] == 255).all()
        assert not out["flow"][rows:].any()
        assert not out["instances"][:, columns:].any()


@settings(max_examples=20, deadline=None)
@given(height=sides, width=sides, seed=seeds, attempts=st.integers(0, 9))
def test_a_resized_crop_is_the_resize_and_then_the_crop_to_the_bit(height, width, seed, attempts):
    rng = np.random.default_rng(seed)
    resizes = (
        RandomShortEdge((5, 14, 20, 33, 50), longest=90),
        ResizeToFit(40, 20, (0.2, 2.4)),
    )
    crop = RandomCrop(tuple(rng.integers(4, 40, 2).tolist()), rng.choice([0.6, 0.75, 1]), attempts)
    record = scene(height, width, seed)
    for each in (record, {name: record[name] for name in ("image", "rois", "depth")}):
        for resize in resizes:
            one, other = np.random.default_rng(seed), np.random.default_rng(seed)
            expected = apply_all([resize, crop], each, one)
            found = ResizedCrop(resize, crop)(each, other)
            assert found.keys() == expected.keys()
            for name in each:
                assert np.asarray(found[name]).dtype == np.asarray(expected[name]).dtype
                np.testing.assert_array_equal(found[name], expected[name], name)
            assert one.bit_generator.state == other.bit_generator.state


@few
@given(height=sides, width=sides, seed=seeds)
def test_two_flips_are_none(height, width, seed):
    record = scene(height, width, seed)
    once, twice = fields.flip(record), fields.flip(fields.flip(record))
    assert record.keys() == twice.keys()
    for name, value in record.items():
        np.testing.assert_array_equal(twice[name], value, err_msg=name)
    np.testing.assert_array_equal(once["flow"][:, ::-1, 0], -record["flow"][..., 0])


def test_boxes_are_cut_at_the_crop_and_drop_out_with_what_is_theirs():
    record = {
        "image": np.zeros((10, 10, 3), np.uint8),
        "boxes_xyxy": np.array([[0, 0, 3, 3], [2, 2, 8, 9], [4, 4, 20, 5]], np.float32),
        "box_classes": np.array([5, 6, 7]),
        "instances": np.pad(np.array([[1, 2], [3, 255]], np.uint8), 4),
        "tracks": np.array([[[0, 0, 9, 9], [0, 0, 1, 1]], [[0, 0, 1, 1], [0, 0, 2, 2]]]) * 1.0,
    }
    out = fields.crop(record, (4, 4, 99, 4))
    np.testing.assert_array_equal(out["boxes_xyxy"], [[0, 0, 4, 5], [0, 0, 4, 1]])
    assert out["box_classes"].tolist() == [6, 7]
    assert out["instances"][:2, :2].tolist() == [[0, 1], [2, 255]]
    np.testing.assert_array_equal(out["tracks"], [[[0, 0, 4, 5]], [[0, 0, 0, 0]]])
    assert out["image"].shape == (6, 4, 3)


@pytest.mark.parametrize("filter", [resize_pillow, resize_opencv])
def test_images_alone_can_be_resized(filter):
    record = scene(20, 24, 0)
    out = fields.resize(record, (10, 12), filter, images_only=True)
    np.testing.assert_array_equal(out["image"], filter(record["image"], (10, 12)))
    for name in ("mask", "boxes_xyxy", "flow", "rois"):
        assert out[name] is record[name]


@pytest.mark.parametrize("transform", [CropMix((8, 8)), TrivialAugment(), RandAugment()])
def test_what_moves_pixels_of_the_image_alone_refuses_the_rest_by_name(transform, rng):
    record = scene(16, 16, 0)
    alone = {name: record[name] for name in ("image", "labels", "name")}
    assert transform(alone, rng)["labels"] is record["labels"]
    with pytest.raises(ConfigError, match=r"cannot carry .*'mask'.*'boxes_xyxy'.*'flow'"):
        transform(record, rng)


def test_fields_of_different_sizes_are_refused():
    record = scene(16, 16, 0) | {"mask": np.zeros((16, 15), np.uint8)}
    with pytest.raises(DataError, match="'mask' has 16x15 pixels, others 16x16"):
        fields.flip(record)
    with pytest.raises(DataError, match="4 axes"):
        fields.flip({"mask": np.zeros((2, 2, 2, 2))})
    with pytest.raises(DataError, match="no size to go by"):
        fields.crop({"labels": np.zeros(3)}, (0, 0, 1, 1))


def test_a_name_has_one_kind():
    fields.register("depth", Depth(2))
    with pytest.raises(ConfigError, match="'mask' is taken"):
        fields.register("mask", Depth(2))


@pytest.mark.parametrize("view", ["visible", "thermal"])
def test_batches_of_scenes_have_the_shapes_that_are_told_without_reading(view):
    names = [name for name in FIELDS if name != "labels"]
    source = Scenes(6, view=view, fields=tuple(names), options=SceneOptions(32, 48))
    stream = make_stream(source, [], batch_size=6, seed=0, num_threads=0, max_boxes=16)
    batch = next(stream)
    channels = 1 if view == "thermal" else 3
    told = fields.shapes(names, Dimensions((32, 48), channels, max_boxes=16))
    found = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    assert found == {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in told.items()}
    for row, index in enumerate(batch["boxes_xyxy_valid"].sum(1).tolist()):
        assert batch["box_classes"][row, index:].tolist() == [0] * (16 - index)
        assert (batch["boxes_xyxy"][row, :index, 2:] > batch["boxes_xyxy"][row, :index, :2]).all()


def test_boxes_need_a_number_of_rows_that_is_large_enough():
    records = [
        {"boxes_xyxy": np.ones((count, 4), np.float32), "box_classes": np.arange(count)}
        for count in (1, 3)
    ]
    batch = fields.stack(records, max_boxes=3)
    assert batch["boxes_xyxy_valid"].tolist() == [[True, False, False], [True] * 3]
    assert batch["box_classes"].tolist() == [[0, 0, 0], [0, 1, 2]]
    with pytest.raises(DataError, match=r"1 and 3 rows .*config\.data\.max_boxes"):
        fields.stack(records)
    with pytest.raises(DataError, match=r"3 rows of 'boxes_xyxy' and config\.data\.max_boxes is 2"):
        fields.stack(records, max_boxes=2)
    assert set(fields.stack(records[:1] * 2)) == {"boxes_xyxy", "box_classes"}
    with pytest.raises(ConfigError, match="max_boxes"):
        fields.shapes(["boxes_xyxy"], Dimensions((4, 4)))
    with pytest.raises(ConfigError, match="'name' is not known"):
        fields.shapes(["name"], Dimensions((4, 4)))
