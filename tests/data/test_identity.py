"""Identities of data sets: of what they are, wherever they lie, without reading an image."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vadapt.data import pipeline
from vadapt.data.identity import identify, identity_of
from vadapt.data.msip import Msip
from vadapt.data.multilabel import ClassFolders, LabelledImages
from vadapt.data.pipeline import Feed
from vadapt.data.repeated import Repeated
from vadapt.data.roi_table import RoiTable
from vadapt.data.scenes import SceneOptions, Scenes
from vadapt.data.segmentation import Segmentation
from vadapt.data.sources import Folder, Joined
from vadapt.data.stream import make_stream

PLACES = (
    *("train/cat/a.png", "train/cat/b.png", "train/dog/c.png"),
    *("images/a.png", "images/b.png", "masks/a.png", "masks/b.png"),
    *("ships/thermal/1.png", "ships/thermal/2.png"),
)
# A source of each kind that reads files, one of them, and how many records it has.
READERS = {
    "folder": (lambda root: Folder(root / "train"), "train/cat/a.png", 3),
    "folders": (ClassFolders, "train/dog/c.png", 3),
    "labels": (LabelledImages, "images/b.png", 2),
    "segmentation": (Segmentation, "images/a.png", 2),
    "segmentation's masks": (Segmentation, "masks/a.png", 2),
    "msip": (lambda root: Msip(root, subsets=["ships"]), "ships/thermal/2.png", 2),
    "msip's candidates": (lambda root: Msip(root, subsets=["ships"]), "ships/roi/2.txt", 2),
}


def save(path, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side, side), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    for place in PLACES:
        save(root / place)
    (root / "labels.csv").write_text("file,labels\nimages/a.png,cat\nimages/b.png,dog;cat\n")
    (root / "ships" / "roi").mkdir()
    (root / "ships" / "roi" / "2.txt").write_text("1,2,3,4\n")
    return root


@pytest.mark.parametrize(("read", "file", "number"), READERS.values(), ids=READERS)
def test_a_moved_data_set_is_the_same_and_one_with_another_file_is_not(root, read, file, number):
    before = identify(read(root))
    assert before["records"] == number
    moved = shutil.move(root, root.parent / "elsewhere")
    assert identify(read(moved)) == before
    with (moved / file).open("ab") as opened:
        opened.write(b"\n")  # the images stay what they were: only the size tells
    after = identify(read(moved))
    assert after["records"] == number
    assert after["digest"] != before["digest"]


def test_another_name_is_another_data_set(root):
    before = identify(Folder(root / "train"))
    (root / "train/cat/a.png").rename(root / "train/cat/aa.png")
    assert identify(Folder(root / "train"))["digest"] != before["digest"]
    save(root / "train/cat/d.png")
    assert identify(Folder(root / "train"))["records"] == 4


@pytest.mark.parametrize(
    ("read", "file", "content"),
    [
        (LabelledImages, "labels.csv", "file,labels\nimages/a.png,dog\nimages/b.png,dog;cat\n"),
        (Segmentation, "dataset.yaml", "classes: [road, person]\n"),
    ],
)
def test_other_labels_are_another_data_set(root, read, file, content):
    before = identify(read(root))
    (root / file).write_text(content)
    assert identify(read(root))["digest"] != before["digest"]


def test_packed_candidates_count(root):
    def read():
        return identify(Msip(root, subsets=["ships"]))["digest"]

    found = [read()]
    for boxes in (1, 2):
        rois = {"1.png": np.ones((boxes, 4), np.int32), "2.png": np.ones((1, 4), np.int32)}
        RoiTable.of(rois).save(root / "ships" / "roi.npz")
        found.append(read())
    assert len({*found}) == 3


def test_scenes_are_their_settings_whatever_is_read_of_them():
    one = identify(Scenes(8, seed=1))
    assert one == identify(Scenes(8, seed=1, fields=("image", "mask"), cache=False))
    others = [Scenes(9, seed=1), Scenes(8), Scenes(8, seed=1, view="thermal")]
    others.append(Scenes(8, seed=1, options=SceneOptions(domain="real")))
    assert len({str(identify(source)) for source in others} | {str(one)}) == 5


@pytest.mark.parametrize("source", ["scenes", "scene_objects"])
@pytest.mark.parametrize("fields", [("image",), ("image", "labels")])
def test_named_scenes_have_their_seed_in_their_identity(source, fields):
    data = ConfigDict(
        {"source": source, "num_scenes": 6, "view": "visible", "scene_seed": 0}
        | {"image_size": (16, 24)}
    )
    before = identify(pipeline.make_source(data, fields))
    assert before["records"] == 6
    data.scene_seed = 1
    assert identify(pipeline.make_source(data, fields))["digest"] != before["digest"]


class Own:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise AssertionError("nothing is read")


class Versioned(Own):
    version = 1

    def identity(self):
        return identity_of(len(self), "versioned", self.version)


def test_a_source_of_ones_own_is_its_length_and_class_unless_it_says_more():
    assert identify(Own()) == identify(Own()) == identity_of(3, "Own")
    assert identify(Own()) != identify(Versioned())
    newer = Versioned()
    newer.version = 2
    assert identify(newer)["digest"] != identify(Versioned())["digest"]


def test_sources_of_sources_are_what_they_hold():
    parts = {"a": Scenes(4), "b": Scenes(5, seed=1)}
    joined = identify(Joined(parts))
    assert joined["records"] == 9
    other = identify(Joined({**parts, "b": Scenes(5, seed=2)}))
    assert other["digest"] != joined["digest"]
    assert identify(Repeated(Versioned(), [1, 2, 0])) == identify(Versioned())


def test_streams_say_the_identity_of_each_data_set():
    alone = make_stream(Versioned(), [], batch_size=1, seed=0)
    assert alone.identity() == {"data": identify(Versioned())}
    data = {"source": "scenes", "num_scenes": 6, "view": "visible", "scene_seed": 0}
    config = ConfigDict({"data": {**data, "image_size": (16, 24), "max_corrupt": 0.0}})
    config.update({"batch_size": 2, "seed": 0, "streams": {"target": {"scene_seed": 4}}})
    feeds = {"source": lambda data: Feed([]), "target": lambda data: Feed([])}
    found = pipeline.training_streams(config, feeds).identity()
    options = SceneOptions(16, 24)
    wanted = {"source": Scenes(6, options=options), "target": Scenes(6, seed=4, options=options)}
    assert found == {name: identify(source) for name, source in wanted.items()}


def test_fields_with_their_defaults_and_arrays_as_they_are():
    assert identity_of(1, SceneOptions()) == identity_of(1)
    assert identity_of(1, np.zeros(2, np.int8)) != identity_of(1, np.zeros(2, np.int32))
    assert identity_of(1, iter(["a", "b"])) != identity_of(1, iter(["a", "c"]))
