"""The random crop around candidates: the published invariants, and what it leaves behind."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from vadapt.data.pipeline import make_source
from vadapt.data.roi_crop import RandomRoiCrop, RoiRules, draw_roi, roi_crop_box
from vadapt.data.stream import make_stream
from vadapt.data.transforms import RandomResizedCrop
from vadapt.errors import ConfigError
from vadapt.tasks import inputs

sides = st.integers(20, 400)
seeds = st.integers(0, 2**32 - 1)


def candidates(rng, height, width, count=5):
    """Boxes of any size; most of them inside of the image."""
    start = rng.integers(-5, [width, height], (count, 2))
    size = rng.integers(1, np.maximum([width, height] - start, 2) + 3)
    return np.concatenate([start, size], 1).astype(np.int32)


@settings(max_examples=300, deadline=None)
@given(height=sides, width=sides, seed=seeds)
def test_a_crop_around_a_candidate_obeys_the_published_bounds(height, width, seed):
    rng = np.random.default_rng(seed)
    rois = candidates(rng, height, width)
    draws = draw_roi(rng, len(rois))
    box, attempts = roi_crop_box(height, width, rois, draws)
    assume(box is not None)
    top, left, box_height, box_width = box
    assert min(top, left) >= 0
    assert min(box_height, box_width) >= 60
    # The last row and column are never part of it.
    assert top + box_height <= height - 1
    assert left + box_width <= width - 1
    x, y, w, h = rois[draws.ids[attempts - 1]]
    assert min(x, y) >= 0
    assert min(w, h) >= 40
    assert x + w <= width
    assert y + h <= height
    shift = np.abs(draws.shifts[attempts - 1])
    assert shift.max() <= 0.4
    if left > 0 and left + box_width < width - 1:
        assert abs(left + box_width / 2 - (x + w / 2)) <= 0.4 * w + 2
    if draws.large > 0.85:
        assert box_height * box_width >= 0.15 * height * width


@settings(max_examples=100, deadline=None)
@given(short=st.integers(1, 60), long=st.integers(1, 400), seed=seeds, upright=st.booleans())
def test_images_with_a_side_below_61_always_fall_back(short, long, seed, upright):
    height, width = (long, short) if upright else (short, long)
    rng = np.random.default_rng(seed)
    rois = np.array([[0, 0, width, height]], np.int32)
    assert roi_crop_box(height, width, rois, draw_roi(rng, 1)).box is None


def test_a_side_of_61_is_enough():
    rois = np.array([[0, 0, 61, 61]], np.int32)
    rng = np.random.default_rng(0)
    boxes = [roi_crop_box(61, 61, rois, draw_roi(rng, 1)).box for _ in range(50)]
    assert set(boxes) - {None} == {(0, 0, 60, 60)}


@settings(max_examples=100, deadline=None)
@given(height=sides, width=sides, seed=seeds)
def test_every_drawn_box_is_inside_the_image(height, width, seed):
    rng = np.random.default_rng(seed)
    crop = RandomRoiCrop((8, 8))
    rois = candidates(rng, height, width)
    top, left, box_height, box_width = crop.box(height, width, rois, rng)
    assert 0 <= top < top + box_height <= height
    assert 0 <= left < left + box_width <= width


def test_about_15_percent_of_the_images_take_no_small_crop():
    rng = np.random.default_rng(0)
    large = np.mean([draw_roi(rng, 3).large > RoiRules().probability for _ in range(4000)])
    assert 0.13 < large < 0.17
    # A candidate of 1 % of the image: its largest crop, 1.5 times as wide and high, has 2.25 %.
    rois = np.array([[300, 300, 80, 80]], np.int32)
    found = [roi_crop_box(800, 800, rois, draw_roi(rng, 1)) for _ in range(2000)]
    lacking = [crop.attempts for crop in found if crop.box is None]
    assert 0.12 < len(lacking) / len(found) < 0.18
    assert set(lacking) == {20}


def test_draws_reach_all_candidates_and_both_ends_of_the_ranges():
    rng = np.random.default_rng(0)
    draws = [draw_roi(rng, 7) for _ in range(200)]
    assert set(np.concatenate([d.ids for d in draws]).tolist()) == set(range(7))
    shifts = np.concatenate([d.shifts for d in draws])
    zooms = np.concatenate([d.zooms for d in draws])
    np.testing.assert_allclose([shifts.min(0), shifts.max(0)], [[-0.4] * 2, [0.4] * 2], atol=1e-2)
    np.testing.assert_allclose([zooms.min(0), zooms.max(0)], [[0.7] * 2, [1.5] * 2], atol=1e-2)


def test_without_randomisation_the_crop_is_the_candidate(rng):
    rois = np.array([[-1, 0, 90, 90], [0, 0, 39, 90], [10, 20, 50, 44]], np.int32)
    rules = RoiRules(randomise=False, probability=0)
    box, _ = roi_crop_box(100, 100, rois, draw_roi(rng, 3), rules)
    assert box == (20, 10, 44, 50)


@pytest.mark.parametrize("rois", [None, np.zeros((0, 4), np.int32)])
def test_without_candidates_it_is_the_plain_crop(rois, rng):
    record = {"image": rng.integers(0, 256, (90, 120, 1)).astype(np.uint8)}
    given_rois = record if rois is None else record | {"rois": rois}
    crop = RandomRoiCrop((16, 16))(given_rois, np.random.default_rng(5))
    plain = RandomResizedCrop((16, 16))(record, np.random.default_rng(5))
    assert list(crop) == ["image"]
    np.testing.assert_array_equal(crop["image"], plain["image"])


def test_the_record_given_stays_as_it_is(rng):
    record = {"image": np.zeros((90, 90, 1), np.uint8), "rois": np.array([[0, 0, 70, 70]])}
    record["rois"] = record["rois"].astype(np.int32)
    RandomRoiCrop((16, 16))(record, rng)
    assert set(record) == {"image", "rois"}


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"probability is 1\.5"):
        RoiRules(probability=1.5)
    with pytest.raises(ConfigError, match="min_side is 0"):
        RoiRules(min_side=0)
    with pytest.raises(ConfigError, match="area is"):
        RandomRoiCrop((8, 8), area=(0.5, 2.0))
    with pytest.raises(ConfigError, match="attempts is -1"):
        RandomRoiCrop((8, 8), attempts=-1)


def settings_of_data(**changes):
    data = {
        "source": "scenes", "path": "", "num_scenes": 8, "view": "thermal", "scene_seed": 0,
        "image_size": (64, 64), "crop_area": (0.5, 1.0), "roi_probability": 0.85,
        "roi_min_side": 16,
    }  # fmt: skip
    return ConfigDict(data | changes)


def test_scenes_are_cropped_around_their_objects():
    data = settings_of_data()
    crop = inputs.random_crop(data)
    assert (crop.rules.min_side, crop.rules.min_candidate_side) == (16, 11)
    source = make_source(data, inputs.crop_feed(data).reads)
    assert sum(len(source[index]["rois"]) for index in range(8)) > 4
    batch = next(make_stream(source, [crop], batch_size=8, seed=0, num_threads=0))
    assert {name: array.shape for name, array in batch.items()} == {"image": (8, 64, 64, 1)}


def test_off_is_the_plain_crop_of_plain_records():
    data = settings_of_data(roi_probability=0.0)
    assert inputs.random_crop(data) == RandomResizedCrop((64, 64), area=(0.5, 1.0))
    assert list(make_source(data, inputs.crop_feed(data).reads)[0]) == ["image"]
    del data.roi_probability
    assert list(make_source(data, inputs.crop_feed(data).reads)[0]) == ["image"]


def test_sources_without_candidates_are_refused(tmp_path):
    data = settings_of_data(source="folder", path=str(tmp_path))
    with pytest.raises(ConfigError, match="'folder' has no candidates"):
        make_source(data, inputs.crop_feed(data).reads)
    (tmp_path / "a" / "thermal").mkdir(parents=True)
    (tmp_path / "a" / "thermal" / "1.png").write_bytes(b"")
    data = settings_of_data(source="msip", path=str(tmp_path))
    with pytest.raises(ConfigError, match="compute them, once"):
        make_source(data, inputs.crop_feed(data).reads)
    data.roi_probability = 0.0
    assert len(make_source(data, inputs.crop_feed(data).reads)) == 1
