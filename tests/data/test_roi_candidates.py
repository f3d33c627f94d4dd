"""Selective search against a plain version of it; the command, killed and resumed; the tables."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.roi_grouping import plain_group
from vadapt.data import region_features, roi_candidates, selective_search
from vadapt.data.msip import Msip
from vadapt.data.roi_table import NO_ROIS, RoiTable, SubsetRois, read_text
from vadapt.data.scenes import SceneOptions, Scenes, make_scene
from vadapt.data.selective_search import (
    Regions,
    SearchSettings,
    find_candidates,
    group,
    keep_candidates,
    segment,
)
from vadapt.errors import ConfigError, DataError

SMALL = SearchSettings(scale=40, min_size=8, min_area=60, min_side=10)


def thermal(index, height=80, width=96):
    return make_scene(0, index, SceneOptions(height, width, domain="real")).thermal


@pytest.mark.parametrize("index", range(3))
def test_grouping_is_that_of_the_plain_version(index):
    grey = thermal(index)
    labels = segment(grey, SMALL)
    assert labels.max() > 20
    boxes, sizes = plain_group(labels, grey)
    regions = group(labels, grey)
    np.testing.assert_array_equal(regions.boxes_xywh, boxes)
    np.testing.assert_array_equal(regions.sizes, sizes)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([1, 2, 256]))
def test_grouping_breaks_ties_as_the_plain_version(seed, levels):
    # Equal squares in few greys: most similarities occur many times.
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(np.arange(16).reshape(4, 4), 5, 0), 5, 1)
    # Squares alone touch no corner of another; a few pixels at random make neighbours of them.
    spots = rng.integers(0, 20, (2, 8))
    labels[tuple(spots)] = rng.integers(0, 16, 8)
    grey = rng.integers(0, levels, (20, 20)).astype(np.uint8)
    boxes, sizes = plain_group(labels, grey)
    regions = group(labels, grey)
    np.testing.assert_array_equal(regions.boxes_xywh, boxes)
    np.testing.assert_array_equal(regions.sizes, sizes)


def test_the_first_table_may_be_made_in_parts(monkeypatch):
    grey = thermal(1)
    labels = segment(grey, SMALL)
    whole = group(labels, grey)
    monkeypatch.setattr(selective_search, "_PAIRS_AT_ONCE", 3 * int(labels.max()))
    for one, other in zip(whole, group(labels, grey), strict=True):
        np.testing.assert_array_equal(one, other)


def test_names_of_labels_do_not_matter(rng):
    grey = thermal(2)
    labels = segment(grey, SMALL)
    names = np.unique(rng.integers(-5, 10**8, 999))
    named = names[rng.permutation(labels.max() + 1)][labels]
    for one, other in zip(group(labels, grey), group(named, grey), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_region_is_all_there_is_of_a_flat_picture():
    regions = group(np.zeros((7, 9), np.int32), np.full((7, 9), 3, np.uint8))
    assert regions.boxes_xywh.tolist() == [[0, 0, 8, 6]]
    assert regions.sizes.tolist() == [63]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(3, 60), st.integers(3, 60)),
    levels=st.sampled_from([1, 2, 5, 256]),
    blow=st.integers(1, 3),
)
def test_texture_counts_the_patterns_of_scikit_image(seed, shape, levels, blow):
    from skimage.feature import local_binary_pattern

    grey = np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)
    grey = grey.repeat(blow, 0).repeat(blow, 1)
    pattern = local_binary_pattern(grey, 8, 1).ravel()
    for code, places in enumerate(region_features._peaks(grey)):
        np.testing.assert_array_equal(places, np.flatnonzero(pattern == code))


def test_brightness_is_binned_as_numpy_counts_it():
    for grey in range(256):
        counts, _ = np.histogram([float(grey)], bins=25, range=(0.0, 255.0))
        assert counts[region_features._BIN_OF_GREY[grey]] == 1


def test_candidates_are_large_compact_and_unique():
    corners = np.array(
        [
            (0, 0, 40, 40),  # kept: 40 pixels from first to last
            (0, 0, 39, 60),  # one pixel too narrow
            (5, 5, 125, 45),  # 3 : 1, kept
            (5, 5, 126, 45),  # longer than 3 : 1
            (0, 0, 40, 40),  # the first once more
            (9, 9, 90, 90),  # too few pixels
            (2, 2, 2, 50),  # no width
        ],
        np.int32,
    )
    sizes = np.array([600, 900, 900, 900, 700, 599, 600])
    kept = keep_candidates(Regions(corners, sizes), SearchSettings())
    assert kept.tolist() == [[0, 0, 40, 40], [5, 5, 120, 40]]


def test_settings_say_what_is_wrong_and_scale_with_the_picture():
    with pytest.raises(ConfigError, match=r"max_aspect is 0\.5"):
        SearchSettings(max_aspect=0.5)
    with pytest.raises(ConfigError, match="must be above 0"):
        SearchSettings(min_side=0)
    half = SearchSettings().scaled(0.5)
    assert (half.scale, half.min_area, half.min_side, half.min_size) == (150, 150, 20, 8)


def test_scenes_offer_their_boxes_as_candidates():
    scenes = Scenes(8, view="thermal", fields=("image", "rois", "boxes_xyxy"))
    records = [scenes[index] for index in range(8)]
    assert sum(len(record["rois"]) for record in records) > 8
    for record in records:
        x, y, w, h = record["rois"].T
        np.testing.assert_array_equal(np.stack([x, y, x + w, y + h], 1), record["boxes_xyxy"])


def tree(root, **subsets):
    """An MSIP tree of drawn scenes."""
    number = 0
    for subset, names in subsets.items():
        folder = root / subset / "thermal"
        folder.mkdir(parents=True)
        for name in names:
            Image.fromarray(thermal(number)).save(folder / name)
            number += 1
    return root


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path / "MSIP", a=["0000002.png", "0000010.png"], b=["x.png", "a.b.png"])


def test_the_command_packs_one_file_a_subset(root, capsys):
    sizes = ["--scale", "40", "--min-size", "8", "--min-area", "60", "--min-side", "10"]
    assert roi_candidates.main([str(root), "--workers", "1", *sizes]) == 0
    assert "2/2" in capsys.readouterr().out
    source = Msip(root, channels=1)
    for index in range(4):
        record = source[index]
        assert len(record["rois"]) > 3
        expected = find_candidates(record["image"][..., 0], SMALL)
        np.testing.assert_array_equal(record["rois"], expected)
    assert sorted(path.name for path in (root / "a").iterdir()) == ["roi.npz", "thermal"]


def test_a_killed_run_goes_on_where_it_was(root, monkeypatch):
    seen = []

    def killed_at(count):
        def one(work):
            if len(seen) == count:
                raise KeyboardInterrupt
            seen.append(work[0])
            return np.array([[len(seen), 0, 5, 5]], np.int32)

        return one

    monkeypatch.setattr(roi_candidates, "_one", killed_at(3))
    with pytest.raises(KeyboardInterrupt):
        roi_candidates.compute(root, settings=SMALL, workers=1)
    assert (root / "a" / "roi.npz").is_file()
    assert not (root / "b" / "roi.npz").is_file()
    with (root / "b" / ".roi.jsonl").open("a") as file:
        file.write('["x.png", [[1, 2')  # the line that was being written
    monkeypatch.setattr(roi_candidates, "_one", killed_at(-1))
    assert roi_candidates.compute(root, settings=SMALL, workers=1) == {}
    assert len(seen) == len(set(seen)) == 4
    assert [Msip(root)[index]["rois"][0, 0] for index in range(4)] == [1, 2, 3, 4]
    stamp = (root / "a" / "roi.npz").stat().st_mtime_ns
    roi_candidates.compute(root, settings=SMALL, workers=1)
    assert (len(seen), (root / "a" / "roi.npz").stat().st_mtime_ns) == (4, stamp)


def test_new_images_are_added_and_other_settings_refused(root, monkeypatch, caplog):
    monkeypatch.setattr(roi_candidates, "_one", lambda work: NO_ROIS)
    roi_candidates.compute(root, settings=SMALL, workers=1)
    Image.fromarray(thermal(9)).save(root / "a" / "thermal" / "0000011.png")
    Msip(root)
    assert "1 of 3 images" in caplog.text
    roi_candidates.compute(root, settings=SMALL, workers=1)
    assert list(RoiTable.load(root / "a" / "roi.npz")) == [
        "0000002.png", "0000010.png", "0000011.png",
    ]  # fmt: skip
    with pytest.raises(DataError, match="delete it to compute them anew"):
        roi_candidates.compute(root, workers=1)


def test_worker_processes_give_the_same_and_name_broken_files(root, tmp_path):
    (root / "b" / "thermal" / "broken.png").write_bytes(b"no image")
    for number in range(4):  # enough for two workers
        Image.fromarray(thermal(number)).save(root / "b" / "thermal" / f"more{number}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken = roi_candidates.compute(root, settings=SMALL, workers=2)
    assert [path.rsplit("/", 1)[-1] for path in broken] == ["broken.png"]
    table = RoiTable.load(root / "b" / "roi.npz")
    assert "broken.png" not in table
    expected = find_candidates(thermal(2), SMALL)
    np.testing.assert_array_equal(table["x.png"], expected)
    assert table.settings["scale"] == 40


def test_text_files_of_the_original_are_read(root):
    texts = root / "b" / "roi"
    texts.mkdir()
    (texts / "a.txt").write_text("1,2,40,50\n3,4,60,70\n")
    source = Msip(root, subsets=["b"])
    assert source.has_rois
    assert source.name(0).endswith("a.b.png")
    assert source[0]["rois"].tolist() == [[1, 2, 40, 50], [3, 4, 60, 70]]
    assert source[1]["rois"].shape == (0, 4)
    for wrong in ("1,2,3", "1,2,3,x"):
        (texts / "a.txt").write_text(wrong)
        with pytest.raises(DataError, match="no list of x,y,w,h"):
            read_text(texts / "a.txt")


def test_a_damaged_table_says_so(tmp_path):
    (tmp_path / "roi.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read the candidates"):
        SubsetRois(tmp_path)


def test_the_picture_is_drawn_of_scenes_and_of_a_tree(root, tmp_path):
    for where, more in ((tmp_path / "scenes.png", []), (tmp_path / "tree.png", [str(root)])):
        assert roi_candidates.main([*more, "--picture", str(where), "--count", "1"]) == 0
        with Image.open(where) as picture:
            assert picture.width > 1400
