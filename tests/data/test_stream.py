"""The training stream: its order, its sharing among processes, its resumption to the bit."""

import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image

from vadapt.data.sources import Folder
from vadapt.data.stream import batches, make_stream
from vadapt.data.transforms import Channels, HorizontalFlip, RandomResizedCrop
from vadapt.errors import ConfigError, DataError

PIPELINE = [RandomResizedCrop((8, 8)), HorizontalFlip()]


class Numbered:
    """Records whose image and "id" say their index; some may be unreadable."""

    def __init__(self, length, broken=()):
        self.length, self.broken = length, set(broken)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError("broken")
        image = np.random.default_rng(index).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        return {"image": image, "id": index, "title": f"number {index}"}


def stream_of(source, transforms=(), **options):
    options = {"batch_size": 4, "seed": 0, "num_threads": 2} | options
    return make_stream(source, list(transforms), **options)


def take(stream, count):
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def ids(taken):
    return np.concatenate([batch["id"] for batch in taken]).tolist()


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_are_stacked_arrays_of_the_numeric_fields():
    (batch,) = take(stream_of(Numbered(9), PIPELINE), 1)
    assert set(batch) == {"image", "id"}
    assert batch["image"].shape == (4, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["id"].shape == (4,)


@pytest.mark.parametrize("length", [1, 3, 7, 24])
def test_every_epoch_is_a_permutation(length):
    order = ids(take(stream_of(Numbered(length), batch_size=4), length))
    epochs = np.reshape(order, (4, length))
    assert (np.sort(epochs) == np.arange(length)).all()


def test_epochs_and_seeds_differ_in_order():
    orders = [ids(take(stream_of(Numbered(32), batch_size=32, seed=seed), 3)) for seed in range(3)]
    epochs = {tuple(order[start : start + 32]) for order in orders for start in (0, 32, 64)}
    assert len(epochs) == 9  # also epoch 1 of seed 0 is not epoch 0 of seed 1


def test_without_shuffling_the_order_is_the_source_s_and_draws_still_differ():
    taken = take(stream_of(Numbered(4), PIPELINE, shuffle=False), 2)
    assert ids(taken) == [0, 1, 2, 3] * 2
    assert not np.array_equal(taken[0]["image"], taken[1]["image"])


def test_elements_of_one_batch_draw_differently():
    same = [Numbered(1)[0]] * 8
    (batch,) = take(stream_of(same, [RandomResizedCrop((8, 8))], batch_size=8), 1)
    assert len({image.tobytes() for image in batch["image"]}) == 8


@pytest.mark.parametrize("position", [0, 1, 5, 6, 19])
def test_after_seek_the_batches_are_those_of_an_uninterrupted_stream(position):
    whole = take(stream_of(Numbered(23), PIPELINE, batch_size=4), 24)
    stream = stream_of(Numbered(23), PIPELINE, batch_size=4)
    stream.seek(position)
    assert stream.position == position
    assert_same(take(stream, 4), whole[position : position + 4])
    assert stream.position == position + 4


def test_seek_goes_back_and_forth_on_a_running_stream():
    stream = stream_of(Numbered(23), PIPELINE)
    first = [next(stream) for _ in range(5)]
    stream.seek(1)
    again = [next(stream) for _ in range(4)]
    stream.close()
    assert_same(again, first[1:])


def test_seeking_far_reads_nothing_on_the_way():
    reads = []

    class Watched(Numbered):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    stream = stream_of(Watched(1000), prefetch=1)
    stream.seek(10**9)
    take(stream, 1)
    assert len(reads) <= 12


@pytest.mark.parametrize(("num_threads", "prefetch"), [(0, 2), (1, 1), (5, 3), (16, 2), (3, 0)])
def test_threads_and_read_ahead_change_nothing(num_threads, prefetch):
    expected = take(stream_of(Numbered(23), PIPELINE), 8)
    options = {"num_threads": num_threads, "prefetch": prefetch}
    assert_same(take(stream_of(Numbered(23), PIPELINE, **options), 8), expected)


def rows_of(process_index, process_count, batch):
    """One process's rows of a global batch: those after the rows of the processes before it."""
    return np.split(batch, process_count)[process_index]


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_processes_together_read_exactly_the_global_batch(process_count):
    whole = take(stream_of(Numbered(23), PIPELINE, batch_size=8), 6)
    shares = [
        take(
            stream_of(
                Numbered(23),
                PIPELINE,
                batch_size=8,
                process_index=index,
                process_count=process_count,
            ),
            6,
        )
        for index in range(process_count)
    ]
    for position, batch in enumerate(whole):
        for index in range(process_count):
            share = {key: rows_of(index, process_count, value) for key, value in batch.items()}
            assert_same([shares[index][position]], [share])


def test_a_run_resumes_on_another_number_of_processes():
    whole = take(stream_of(Numbered(23), PIPELINE, batch_size=4), 6)
    stream = stream_of(Numbered(23), PIPELINE, batch_size=4, process_index=1, process_count=2)
    stream.seek(5)
    assert_same(take(stream, 1), [{key: rows_of(1, 2, value) for key, value in whole[5].items()}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size 6 cannot be shared by 4"),
        ({"process_index": 2, "process_count": 2}, "process_index is 2"),
        ({"max_corrupt": 2}, "max_corrupt is 2"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        stream_of(Numbered(8), **options)


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="empty"):
        stream_of([])
    with pytest.raises(DataError, match="empty"):
        next(batches([], [], 4))


def test_unreadable_elements_are_replaced_the_same_after_resumption():
    source = Numbered(23, broken={5, 6})
    stream = stream_of(source, PIPELINE, max_corrupt=0.1)
    whole = take(stream, 12)
    assert stream.num_corrupt == 2
    assert not {5, 6} & set(ids(whole))
    resumed = stream_of(source, PIPELINE, max_corrupt=0.1)
    resumed.seek(9)
    assert_same(take(resumed, 3), whole[9:])


def test_too_many_unreadable_elements_stop_the_stream():
    with pytest.raises(DataError, match=r"3 of 23 .*config\.data\.max_corrupt"):
        take(stream_of(Numbered(23, broken={5, 6, 7}), max_corrupt=0.1), 12)


def test_a_failed_batch_is_tried_again_at_its_own_position():
    source = Numbered(8)
    failing = {"on": True}

    def transform(record, rng):
        if failing["on"] and record["id"] == 5:
            raise RuntimeError("a transform failed")
        return record

    stream = stream_of(source, [transform], shuffle=False)
    next(stream)
    with pytest.raises(RuntimeError, match="a transform failed"):
        next(stream)
    failing["on"] = False
    assert stream.position == 1
    assert next(stream)["id"].tolist() == [4, 5, 6, 7]
    stream.close()


def test_images_of_different_sizes_name_the_transform_to_add():
    sizes = [{"image": np.zeros((4 + i, 4, 3), np.uint8)} for i in range(4)]
    with pytest.raises(DataError, match=r"\(4, 4\) and \(7, 4\); add RandomResizedCrop"):
        next(stream_of(sizes))
    channels = [{"image": np.zeros((4, 4, 1 + 2 * (i % 2)), np.uint8)} for i in range(4)]
    with pytest.raises(DataError, match=r"1 and 3 channels within .* add Channels\(3\)"):
        next(stream_of(channels))
    assert take(stream_of(channels, [Channels(3)]), 1)[0]["image"].shape == (4, 4, 4, 3)


def test_images_that_are_not_uint8_are_refused():
    with pytest.raises(DataError, match="must be uint8"):
        next(stream_of([{"image": np.zeros((4, 4, 3), np.float32)}] * 4))


def test_fields_of_varying_shape_can_be_left_out():
    source = [{"image": np.zeros((2, 2, 1), np.uint8), "boxes": np.zeros((i, 4))} for i in range(4)]
    with pytest.raises(DataError, match="'boxes' differs in shape"):
        next(stream_of(source))
    assert set(take(stream_of(source, fields=["image"]), 1)[0]) == {"image"}
    with pytest.raises(DataError, match="no field 'imag'; nearest: 'image'"):
        next(stream_of(source, fields=["imag"]))


def test_records_with_different_fields_are_refused():
    source = [Numbered(1)[0], {"image": Numbered(1)[0]["image"]}] * 2
    with pytest.raises(DataError, match="different fields"):
        next(stream_of(source))


def test_close_stops_the_threads():
    def reading():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    deadline = time.monotonic() + 10
    while reading() and time.monotonic() < deadline:  # those of earlier tests
        time.sleep(0.01)
    stream = stream_of(Numbered(23), num_threads=4)
    next(stream)
    assert reading()
    stream.close()
    while reading() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading()


def test_one_pass_keeps_the_order_and_marks_what_fills_up():
    taken = list(batches(Numbered(10), [], 4))
    assert [len(batch["id"]) for batch in taken] == [4, 4, 4]
    valid = np.concatenate([batch["valid"] for batch in taken])
    assert valid.dtype == bool
    assert valid.tolist() == [True] * 10 + [False] * 2
    assert np.array(ids(taken))[valid].tolist() == list(range(10))


def test_one_pass_may_begin_later():
    assert_same(
        list(batches(Numbered(10), PIPELINE, 4, first=1)),
        list(batches(Numbered(10), PIPELINE, 4))[1:],
    )


def test_one_pass_is_the_same_every_time_also_with_random_transforms():
    assert_same(list(batches(Numbered(10), PIPELINE, 4)), list(batches(Numbered(10), PIPELINE, 4)))


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_share_one_pass_and_get_as_many_batches(process_count):
    whole = list(batches(Numbered(10), PIPELINE, 8))
    for index in range(process_count):
        share = batches(Numbered(10), PIPELINE, 8, process_index=index, process_count=process_count)
        expected = [
            {k: rows_of(index, process_count, v) for k, v in batch.items()} for batch in whole
        ]
        assert_same(list(share), expected)


def test_one_pass_marks_what_stands_in_for_an_unreadable_element():
    taken = list(batches(Numbered(10, broken={3}), [], 5))
    valid = np.concatenate([batch["valid"] for batch in taken])
    assert valid.tolist() == [i != 3 for i in range(10)]


def test_a_folder_with_a_broken_file_trains(tmp_path, caplog):
    for index in range(6):
        Image.fromarray(Numbered(6)[index]["image"]).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more than a start")
    stream = stream_of(Folder(tmp_path), PIPELINE)
    assert all(batch["image"].shape == (4, 8, 8, 3) for batch in take(stream, 8))
    assert stream.num_corrupt == 1
    assert caplog.text.count("broken.jpg") == 1


@pytest.mark.parametrize("length", [1, 7, 13])
@pytest.mark.parametrize("process_count", [2, 3])
def test_one_pass_of_several_processes_counts_every_element_once(process_count, length):
    counted = []
    for index in range(process_count):
        options = {"process_index": index, "process_count": process_count}
        for batch in batches(Numbered(length), [], 6, **options):
            counted += batch["id"][batch["valid"]].tolist()
    assert sorted(counted) == list(range(length))
