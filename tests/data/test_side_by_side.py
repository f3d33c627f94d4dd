"""Several streams as one: names, one position, and failures that put no stream ahead of another."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.data.test_stream import PIPELINE, Numbered, assert_same, rows_of, stream_of, take
from vadapt.data import pipeline
from vadapt.data.pipeline import Feed
from vadapt.data.side_by_side import SideBySide
from vadapt.data.transforms import HorizontalFlip, RandomResizedCrop
from vadapt.errors import ConfigError, DataError


def both(**options):
    first, second = Numbered(23), Numbered(7, broken={3})
    return SideBySide(
        {
            "source": stream_of(first, PIPELINE, **options),
            "target": stream_of(second, PIPELINE, max_corrupt=0.2, **options),
        }
    )


def test_a_batch_holds_one_of_each_stream():
    taken = take(both(), 5)
    assert set(taken[0]) == {"image", "id", "target/image", "target/id"}
    alone = take(stream_of(Numbered(23), PIPELINE), 5)
    assert_same([{"image": b["image"], "id": b["id"]} for b in taken], alone)


@pytest.mark.parametrize("position", [0, 1, 5, 12])
def test_after_seek_the_batches_are_those_of_an_uninterrupted_stream(position):
    whole = take(both(), 15)
    stream = both()
    stream.seek(position)
    assert stream.position == position
    assert_same(take(stream, 3), whole[position : position + 3])
    assert stream.position == position + 3


def test_processes_together_read_exactly_the_global_batch():
    whole = take(both(), 4)
    for index in range(2):
        share = take(both(process_index=index, process_count=2), 4)
        for mine, batch in zip(share, whole, strict=True):
            assert_same([mine], [{k: rows_of(index, 2, value) for k, value in batch.items()}])


def test_unreadable_elements_of_all_streams_are_counted():
    stream = both()
    taken = take(stream, 4)
    assert stream.num_corrupt == 1
    assert 3 not in np.concatenate([batch["target/id"] for batch in taken])


def test_a_failure_in_one_stream_leaves_all_at_the_same_batch():
    failing = {"on": True}

    def transform(record, rng):
        if failing["on"] and record["id"] == 5:
            raise RuntimeError("a transform failed")
        return record

    first = stream_of(Numbered(8), shuffle=False)
    stream = SideBySide({"a": first, "b": stream_of(Numbered(8), [transform], shuffle=False)})
    next(stream)
    with pytest.raises(RuntimeError, match="a transform failed"):
        next(stream)
    assert stream.position == first.position == 1
    failing["on"] = False
    batch = next(stream)
    assert batch["id"].tolist() == batch["b/id"].tolist() == [4, 5, 6, 7]
    stream.close()


def test_wrong_positions_and_no_streams_are_refused():
    with pytest.raises(ConfigError, match="position is -1"):
        both().seek(-1)
    with pytest.raises(ConfigError, match="no stream"):
        SideBySide({})
    broken = SideBySide({"a": stream_of(Numbered(4)), "b": stream_of(Numbered(2, broken={0, 1}))})
    with pytest.raises(DataError, match="none of the 2 elements can be read"):
        next(broken)


def config_of(**streams):
    data = {
        "source": "scenes", "num_scenes": 6, "view": "visible", "scene_seed": 0,
        "image_size": (16, 24), "max_corrupt": 0.0,
    }  # fmt: skip
    return ConfigDict({"data": data, "batch_size": 4, "seed": 3, "streams": streams})


def labeled(data):
    return Feed([RandomResizedCrop(data.image_size), HorizontalFlip()], ("image", "mask"))


def unlabeled(data):
    return Feed([RandomResizedCrop(data.image_size)])


FEEDS = {"source": labeled, "target": unlabeled}


def test_a_config_names_the_sets_of_the_streams():
    config = config_of(target={"view": "thermal", "image_size": (24, 16)})
    stream = pipeline.training_streams(config, FEEDS)
    batch = next(stream)
    stream.close()
    shapes = pipeline.streams_shapes(config, FEEDS)
    found = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert found == {name: (shape.shape, shape.dtype) for name, shape in shapes.items()}
    assert found["target/image"][0] == (4, 24, 16, 1)
    alone = next(pipeline.training_stream(config, labeled(config.data)))
    assert_same([{name: batch[name] for name in alone}], [alone])


def test_equal_sets_are_not_drawn_in_equal_order():
    config = config_of(source={}, target={})
    stream = pipeline.training_streams(config, {"source": unlabeled, "target": unlabeled})
    taken = take(stream, 3)
    assert any((batch["image"] != batch["target/image"]).any() for batch in taken)
    more = {"source": unlabeled, "other": unlabeled, "target": unlabeled}
    config.streams.other = ConfigDict({"scene_seed": 1})
    beside = take(pipeline.training_streams(config, more), 3)
    assert_same([{k: b[k] for k in taken[0]} for b in beside], taken)


def test_sets_that_are_missing_or_not_asked_for_are_named():
    with pytest.raises(ConfigError, match=r"'source' and 'target'.*no 'target'"):
        pipeline.training_streams(config_of(), FEEDS)
    config = config_of(target={}, traget={})
    with pytest.raises(ConfigError, match=r"config\.streams\.traget; nearest: 'target'"):
        pipeline.streams_shapes(config, FEEDS)


def test_the_first_set_may_be_joined_of_several():
    config = config_of(target={})
    config.train = ConfigDict({"one": {"num_scenes": 2}, "two": {"num_scenes": 3}})
    stream = pipeline.training_streams(config, FEEDS)
    alone = pipeline.training_stream(config, labeled(config.data))
    np.testing.assert_array_equal(next(stream)["image"], next(alone)["image"])
    stream.close()
    alone.close()
