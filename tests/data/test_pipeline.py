"""From settings to batches: what sources are asked for and refuse, and shapes without data."""

import threading

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vadapt.data import pipeline
from vadapt.data.pipeline import SOURCES, Feed, make_source, settings_of
from vadapt.data.scenes import CATEGORIES, CLASSES, FIELDS, Scenes
from vadapt.data.sources import Joined
from vadapt.data.stream import make_stream
from vadapt.data.transforms import HorizontalFlip, RandomResizedCrop, Resize
from vadapt.errors import ConfigError, DataError


def config_of(**changes):
    data = {
        "source": "scenes", "num_scenes": 6, "view": "visible", "scene_seed": 0, "path": "",
        "image_size": (32, 48), "max_corrupt": 0.5,
    }  # fmt: skip
    return ConfigDict({"data": {**data, **changes}, "batch_size": 4, "seed": 3})


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def one_argument(data):
    return Scenes(data.num_scenes, seed=5)


def test_settings_of_a_source_are_its_arguments():
    assert settings_of("folder") == ("path",)
    assert settings_of("segmentation") == ("path", "split", "layout")
    assert {"num_scenes", "view", "image_size", "scene_seed"} < {*settings_of("scenes")}
    assert settings_of("folders") == ("path", "split")  # classes are given by the task
    assert settings_of("tests.data.test_pipeline:one_argument") is None
    assert {name for name in SOURCES if name in ("scenes", "tfds")} == {"scenes", "tfds"}


def test_a_source_of_one_argument_gets_all_of_the_data():
    source = make_source(config_of(source="tests.data.test_pipeline:one_argument").data)
    np.testing.assert_array_equal(source[2]["image"], Scenes(6, seed=5)[2]["image"])


def test_scenes_serve_every_field_that_they_have():
    wanted = tuple(name for name in FIELDS if name != "labels")
    record = make_source(config_of().data, wanted)[1]
    assert set(record) == {*wanted}
    both = make_source(config_of().data, ("image", "mask", "boxes_xyxy", "labels", "areas"))
    assert both.classes == CATEGORIES
    assert set(both[1]) == {"image", "mask", "boxes_xyxy", "labels", "areas"}
    np.testing.assert_array_equal(both[1]["mask"], record["mask"])
    assert make_source(config_of().data, ("image", "mask")).classes == tuple(CLASSES)


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ("scenes", ("image", "depth"), "unknown field 'depth'"),
        ("scene_objects", ("image", "mask"), "'scene_objects' has images without labels of pixels"),
        ("folder", ("image", "mask"), "'segmentation' reads images and masks"),
        ("folder", ("image", "labels"), "'labels' and 'folders' read images with labels"),
        ("msip", ("image", "flow"), "no 'flow'; it has image, rois"),
        ("labels", ("image", "rois"), "no candidates of objects"),
        ("folders", ("image", "boxes_xyxy"), "'boxes' reads images and the boxes"),
        ("tests.data.test_pipeline:Unnamed", ("image", "mask"), "images without labels"),
    ],
)
def test_fields_that_a_source_lacks_are_refused_before_it_is_read(source, fields, message):
    with pytest.raises(ConfigError, match=message):
        make_source(config_of(source=source, path="nowhere").data, fields)


class Unnamed:
    """Images without classes."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": np.zeros((4, 4, 3), np.uint8)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "scnees"}, "nearest: 'scenes'"),
        ({"source": "tfds"}, r"tfds needs tfds_name: give --config\.data\.tfds_name=\.\.\."),
        ({"num_scenes": "many"}, "scenes: num_scenes='many' is no int"),
        ({"source": "folder"}, r"give --config\.data\.path=DIR"),
    ],
)
def test_settings_that_are_missing_or_wrong_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_source(config_of(**changes).data)


@pytest.mark.parametrize("view", ["visible", "thermal"])
def test_shapes_are_those_of_the_batches(view):
    config = config_of(view=view, max_boxes=12)
    names = (
        *("image", "mask", "instances", "boxes_xyxy", "box_classes", "flow", "clip", "clip_mask"),
        *("labels", "areas"),
    )
    feed = Feed([RandomResizedCrop((32, 48)), HorizontalFlip()], names)
    stream = pipeline.training_stream(config, feed)
    batch = next(stream)
    stream.close()
    shapes = pipeline.batch_shapes(config, names, num_labels=20)
    found = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert found == {name: (shape.shape, shape.dtype) for name, shape in shapes.items()}


def test_a_training_stream_is_that_of_its_settings():
    config = config_of(views=2)
    feed = Feed([RandomResizedCrop((8, 8))])
    stream = pipeline.training_stream(config, feed)
    direct = make_stream(
        Scenes(6, options=make_source(config.data).options),
        [RandomResizedCrop((8, 8))],
        batch_size=4,
        seed=3,
        views=2,
        fields=("image",),
    )
    assert_same(next(stream), next(direct))
    stream.close()
    direct.close()


def test_rare_labels_come_more_often_where_labels_are_told_at_once():
    config = config_of(balance=0.6)
    feed = Feed([], ("image", "labels"))
    assert next(pipeline.training_stream(config, feed))["labels"].shape == (4, 20)
    with pytest.raises(ConfigError, match=r"balance=0\.6.*give --config\.data\.balance=0"):
        pipeline.training_stream(config, Feed([]))
    config.data.source, config.data.balance = "scene_objects", 0.3
    stream = pipeline.training_stream(config, feed)
    assert next(stream)["image"].shape == (4, 32, 48, 3)
    stream.close()
    one = make_source(config_of().data, ("image", "labels"))
    joined = Joined({"a": one, "b": one})
    np.testing.assert_array_equal(joined.targets, np.concatenate([one.targets] * 2))


@pytest.fixture
def folder(tmp_path):
    """Five images of two sizes, and one that cannot be read."""
    for number in range(5):
        size = (12, 10) if number % 2 else (8, 6)
        Image.new("RGB", size, (number,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "2_broken.png").write_bytes(b"no image")
    return config_of(source="folder", path=str(tmp_path), max_corrupt=0.2).data


@pytest.mark.parametrize("by_size", [True, False])
def test_testing_sees_every_readable_image_once_and_names_the_rest(folder, caplog, by_size):
    feed = Feed([] if by_size else [Resize((4, 4))], optional=("areas",), by_size=by_size)
    source = make_source(folder)
    batches = list(pipeline.evaluation_batches(folder, feed, source, 2))
    seen = np.concatenate([batch["image"][batch["valid"]][:, 0, 0, 0] for batch in batches])
    assert sorted(seen.tolist()) == [0, 1, 2, 3, 4]
    assert all(len(batch["image"]) == len(batch["valid"]) == 2 for batch in batches)
    if by_size:
        assert [batch["image"].shape[1:3] for batch in batches] == [(6, 8), (10, 12), (6, 8)]
    assert caplog.text.count("2_broken.png") == 1
    assert "left out" in caplog.text
    folder.max_corrupt = 0.0
    with pytest.raises(DataError, match="2_broken"):
        list(pipeline.evaluation_batches(folder, feed, source, 2))


@pytest.mark.parametrize("by_size", [True, False])
def test_images_to_test_on_are_read_ahead_by_threads_while_a_batch_is_scored(by_size):
    ahead, readers = threading.Event(), set()

    class Source:
        def __len__(self):
            return 9

        def __getitem__(self, index):
            readers.add(threading.current_thread())
            if index >= 5:
                ahead.set()
            return {"image": np.full((4, 4, 3), index, np.uint8)}

    feed = Feed([], by_size=by_size)
    batches = pipeline.evaluation_batches(config_of().data, feed, Source(), 2)
    first = next(batches)
    assert ahead.wait(60)  # nobody asks for the next batch
    assert threading.main_thread() not in readers
    left = [image for batch in (first, *batches) for image in batch["image"][batch["valid"]]]
    assert [int(image[0, 0, 0]) for image in left] == list(range(9))


def test_boxes_are_tested_on_in_batches_of_one_size():
    data = config_of(max_boxes=10).data
    feed = Feed([], ("image", "boxes_xyxy", "box_classes"), by_size=True)
    source = make_source(data, feed.fields)
    batches = list(pipeline.evaluation_batches(data, feed, source, 4))
    assert [batch["valid"].sum() for batch in batches] == [4, 2]
    boxes = np.concatenate([batch["boxes_xyxy"][batch["valid"]] for batch in batches])
    real = np.concatenate([batch["boxes_xyxy_valid"][batch["valid"]] for batch in batches])
    for index in range(6):
        np.testing.assert_array_equal(boxes[index][real[index]], source[index]["boxes_xyxy"])


def test_elements_are_read_by_number():
    data = config_of().data
    feed = Feed([Resize((8, 8))], ("image", "mask"))
    source = make_source(data, feed.fields)
    batch = pipeline.read(data, feed, source, np.array([4, 1]))
    whole = next(pipeline.evaluation_batches(data, feed, source, 6))
    assert_same(batch, {name: whole[name][[4, 1]] for name in batch})
