"""FGVC and VTAB-1k as they are published: files of labels in small, and what is wrong with them."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.test_pipeline import config_of
from vadapt.data import fgvc, vtab
from vadapt.data.fgvc import read_fgvc
from vadapt.data.multilabel import LAYOUTS, LabelledImages
from vadapt.data.pipeline import make_source
from vadapt.data.vtab import read_vtab
from vadapt.errors import ConfigError, DataError


def put(path, shade=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (shade, 60, 30)).save(path)


def write_fgvc(root, *, inner="", shuffled=False, val=None, test=None, train=None):
    """Forty training images of classes 1, 2, 10 as VPT writes them, by number."""
    train = train or {f"{c}/{i:02}.jpg": (1, 2, 10)[i % 3] for c in "ab" for i in range(20)}
    if shuffled:
        train = dict(reversed(train.items()))
    test = {"t/0.jpg": 10, "t/1.jpg": 2} if test is None else test
    for name, content in {"train": train, "val": val, "test": test}.items():
        if content is not None:
            (root / f"{name}.json").write_text(json.dumps(content))
            for file in content:
                put(root / inner / file)
    return root


def write_vtab(folder, **lines):
    """A task of a few images; by default of eurosat, whose ten classes they do not all have."""
    lists = {
        "train800": ["images/train/0.jpg 3", "images/train/1 b.jpg 9"],
        "val200": ["images/val/0.jpg 0"],
        "test": ["images/test/0.jpg 3", "images/test/1.jpg 1"],
        **lines,
    }
    lists.setdefault("train800val200", [*lists["train800"], *lists["val200"]])
    for name, content in lists.items():
        for line in content:
            file, _, label = line.rpartition(" ")
            if file.startswith("images/") and label:
                put(folder / file)
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    return folder


def numbers(labels):
    assert (labels.targets.sum(1) == 1).all()
    return labels.targets.argmax(1).tolist()


@pytest.mark.parametrize("inner", ["", "images", "Images"])
def test_fgvc_maps_paths_to_classes(tmp_path, inner):
    root = write_fgvc(tmp_path, inner=inner, val={"v/0.jpg": 2})
    source = LabelledImages(root, "test", layout="fgvc")
    assert source.classes == ("1", "2", "10")  # by value, though the test set lacks one
    assert source.targets.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert source[0]["image"].shape == (4, 6, 3)
    assert source.name(0) == str(root / inner / "t/0.jpg")
    assert len(read_fgvc(root, "train").files) == 40
    val = read_fgvc(root, "val")
    assert val.files == ["/".join(filter(None, [inner, "v/0.jpg"]))]
    assert numbers(val) == [1]
    assert len(read_fgvc(root, "trainval").files) == 41


def test_a_tenth_of_fgvcs_training_images_validates_where_nothing_says_which(tmp_path):
    root = write_fgvc(tmp_path)
    parts = {split: read_fgvc(root, split) for split in ("train", "val", "trainval")}
    assert [len(part.files) for part in parts.values()] == [36, 4, 40]
    assert {*parts["train"].files} | {*parts["val"].files} == {*parts["trainval"].files}
    assert {part.classes for part in parts.values()} == {("1", "2", "10")}
    other = read_fgvc(root, "val", split_seed=1)
    assert {*other.files} != {*parts["val"].files}
    write_fgvc(root, shuffled=True)
    assert {*read_fgvc(root, "val").files} == {*parts["val"].files}


def test_the_seed_of_a_held_out_part_is_a_setting(tmp_path):
    root = write_fgvc(tmp_path)
    config = config_of(source="labels", path=str(root), split="val", layout="fgvc", split_seed=1)
    source = make_source(config.data, ("image", "labels"))
    files = [source[index]["name"] for index in range(len(source))]
    assert files == read_fgvc(root, "val", split_seed=1).files
    with pytest.raises(ConfigError, match="'table' draws no split: leave split_seed at 0, not 1"):
        LabelledImages(root, "val", layout="table", split_seed=1)


def test_data_sets_of_fgvc_have_their_number_of_classes(tmp_path):
    assert fgvc.CLASSES == {
        "cub200": 200, "nabirds": 555, "oxford_flowers": 102,
        "stanford_dogs": 120, "stanford_cars": 196,
    }  # fmt: skip
    dogs = {f"{c}.jpg": c for c in range(120)}
    root = write_fgvc(tmp_path, train=dogs, test={"x.jpg": 119})
    assert len(LabelledImages(root, "train", layout="stanford_dogs").classes) == 120
    with pytest.raises(DataError, match="has 120 classes, and this data set has 196"):
        LabelledImages(root, "train", layout="stanford_cars")


@pytest.mark.parametrize(
    ("files", "split", "why"),
    [
        ({}, "training", "no split 'training'; nearest: 'train'"),
        ({"test": {"t.jpg": 3}}, "test", r"test\.json': 't\.jpg' is of class 3, which no image"),
        ({"train": {"a.jpg": 1, "b.jpg": "x"}}, "train", "classes by number and by name"),
        ({"train": {"a.jpg": 1.5}}, "train", r"train\.json': the class of 'a\.jpg' is 1\.5"),
        ({"train": {"a.jpg": True}}, "train", r"the class of 'a\.jpg' is True"),
        ({"val": {"a/00.jpg": 1}}, "train", r"val\.json' and train\.json both name 'a/00\.jpg'"),
        ({"train": {"a.jpg": 1, "./a.jpg": 1}}, "trainval", r"names images twice: 'a\.jpg'"),
        ({"test": {}}, "test", r"test\.json' must be a map"),
    ],
)
def test_what_is_wrong_with_fgvc_is_said(tmp_path, files, split, why):
    write_fgvc(tmp_path, **files)
    with pytest.raises(DataError, match=why) as refused:
        read_fgvc(tmp_path, split)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"a.jpg": 1, "a.jpg": 2}', "says 'a.jpg' twice in one object"),
        ('["a.jpg"]', "must be a map"),
        ('{"../a.jpg": 1}', r"names '\.\./a\.jpg'; write a path"),
        (json.dumps({"a" * 5000: 1}), "1 images are not in"),
        ('{"gone.jpg": 1}', "1 images are not in .*: 'gone.jpg'"),
        ('{"a.jpg": 1', "is no JSON"),
    ],
)
def test_fgvc_of_any_json_is_one_line(tmp_path, content, why):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(DataError, match=why) as refused:
        read_fgvc(tmp_path, "trainval")
    assert "\n" not in str(refused.value)


def test_a_split_without_its_json_is_said(tmp_path):
    write_fgvc(tmp_path)
    (tmp_path / "test.json").unlink()
    with pytest.raises(DataError, match=r"no .*test\.json': a map of paths of images to classes"):
        read_fgvc(tmp_path, "test")


@pytest.mark.parametrize("inner", ["", "eurosat"])
def test_vtab_lists_a_path_and_a_label_a_line(tmp_path, inner):
    write_vtab(tmp_path / inner)
    source = LabelledImages(tmp_path, "train800", layout="vtab_eurosat")
    assert source.classes == tuple("0123456789")
    assert source.targets.argmax(1).tolist() == [3, 9]
    assert source.name(1) == str(tmp_path / inner / "images/train/1 b.jpg")
    assert source[1]["image"].shape == (4, 6, 3)
    assert numbers(read_vtab(tmp_path, "train800val200", "eurosat")) == [3, 9, 0]
    assert numbers(read_vtab(tmp_path, "test", "eurosat")) == [3, 1]


def test_vtab_has_nineteen_tasks_in_three_groups():
    by_group = {group: {} for group in vtab.GROUPS}
    for name, task in vtab.TASKS.items():
        by_group[task.group][name] = task.num_classes
    assert by_group == {
        "Natural": {
            "caltech101": 102, "cifar": 100, "dtd": 47, "oxford_flowers102": 102,
            "oxford_iiit_pet": 37, "sun397": 397, "svhn": 10,
        },
        "Specialized": {
            "patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5,
        },
        "Structured": {
            "clevr_count": 8, "clevr_dist": 6, "dmlab": 6, "dsprites_loc": 16,
            "dsprites_ori": 16, "kitti": 4, "smallnorb_azi": 18, "smallnorb_ele": 9,
        },
    }  # fmt: skip
    assert {f"vtab_{name}" for name in vtab.TASKS} <= LAYOUTS.keys()
    assert LAYOUTS["vtab_kitti"].keywords == {"task": "kitti"}


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["images/a.jpg 3", "", "images/b.jpg"], r"train800\.txt', line 3: 'images/b\.jpg' is no"),
        (["images/a.jpg 10"], r"train800\.txt', line 1: class 10; this task's are 0 to 9"),
        (["images/a.jpg -1"], r"line 1: 'images/a\.jpg -1' is no path and number"),
        (["images/a.jpg " + "9" * 5000], "line 1: .* is no path and number"),
        (["images/a.jpg 1", "gone.jpg 1"], r"line 2: 1 images are not in .*: 'gone\.jpg'"),
        (["images/a.jpg 1", "images/b.jpg 1", "images/a.jpg 2"], "line 3 names images twice"),
        (["images/a.jpg 1", "../b.jpg 1"], r"line 2 names '\.\./b\.jpg'; write a path"),
        ([], "names no image"),
    ],
)
def test_what_is_wrong_with_a_line_of_vtab_is_said(tmp_path, lines, why):
    write_vtab(tmp_path, train800=lines, train800val200=[])
    with pytest.raises(DataError, match=why) as refused:
        read_vtab(tmp_path, "train800", "eurosat")
    assert "\n" not in str(refused.value)


def test_splits_and_files_of_vtab_that_are_not_there(tmp_path):
    write_vtab(tmp_path)
    with pytest.raises(DataError, match="no split 'train'; nearest: 'train800'"):
        read_vtab(tmp_path, "train", "eurosat")
    with pytest.raises(DataError, match=r"no test\.txt in .* nor in 'dtd' therein"):
        read_vtab(tmp_path / "images", "test", "dtd")
    with pytest.raises(ConfigError, match="nearest: 'vtab_eurosat'"):
        LabelledImages(tmp_path, "test", layout="vtab_eurosta")


def test_all_of_fgvc_is_what_is_trained_on_and_the_tests(tmp_path):
    root = write_fgvc(tmp_path)
    everything = read_fgvc(root, "all")
    parts = [read_fgvc(root, split) for split in ("trainval", "test")]
    assert everything.files == parts[0].files + parts[1].files
    np.testing.assert_array_equal(
        everything.targets, np.concatenate([part.targets for part in parts])
    )
    content = json.loads((root / "train.json").read_text())
    (root / "test.json").write_text(json.dumps({**content}))
    with pytest.raises(DataError, match=r"test.json' names .*, which is trained on"):
        read_fgvc(root, "all")
