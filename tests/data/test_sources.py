"""Folders, TFDS data sets, and the guard against unreadable files."""

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from PIL import Image

from vadapt.data.identity import identity_of
from vadapt.data.sources import Folder, Guarded, Source, Tfds
from vadapt.errors import ConfigError, DataError, UnreadableError


def save(path, shape=(6, 8, 3), value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """A nested folder of grey and colour files, with things in it that are no images."""
    save(tmp_path / "b.png", (6, 8))
    save(tmp_path / "a/deep/er/z.JPG")
    save(tmp_path / "a/y.jpeg")
    save(tmp_path / "a/x.BMP")
    save(tmp_path / "c/w.TIFF")
    save(tmp_path / "c/v.tif", (6, 8))
    save(tmp_path / ".thumbnails/u.png")
    (tmp_path / "c/._w.tiff").write_bytes(b"resource fork")
    (tmp_path / "c/notes.txt").write_text("no image")
    return tmp_path


class Fragile:
    """A source of `length` elements of which `broken` cannot be read; counts the readings."""

    def __init__(self, length, broken=(), error=OSError):
        self.length, self.broken, self.error = length, set(broken), error
        self.reads = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise self.error(f"element {index} is broken")
        return {"image": np.full((2, 2, 1), index, np.uint8)}

    def name(self, index):
        return f"/photos/{index}.png"


def value(record):
    return int(record["image"][0, 0, 0])


def test_folder_finds_every_suffix_at_any_depth_in_path_order(photos):
    source = Folder(photos)
    names = [os.path.relpath(source.name(i), photos) for i in range(len(source))]
    expected = ["a/deep/er/z.JPG", "a/x.BMP", "a/y.jpeg", "b.png", "c/v.tif", "c/w.TIFF"]
    assert names == expected
    assert isinstance(source, Source)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_files_of_a_folder_stack(photos, channels):
    source = Folder(photos, channels=channels)
    images = np.stack([source[i]["image"] for i in range(len(source))])
    assert images.shape == (6, 6, 8, channels)
    assert images.dtype == np.uint8


def test_folder_follows_links_but_not_in_circles(photos, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    save(outside / "linked.png")
    (photos / "link").symlink_to(outside, target_is_directory=True)
    (outside / "back").symlink_to(photos, target_is_directory=True)
    names = [Folder(photos).name(i) for i in range(len(Folder(photos)))]
    assert len(names) == 7
    assert str(photos / "link/linked.png") in names


def test_missing_and_empty_folders_say_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere.*\.png"):
        Folder(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no images under .*\.png, \.jpg"):
        Folder(tmp_path)


def test_channels_other_than_1_and_3_are_refused(photos):
    with pytest.raises(ConfigError, match="channels is 4"):
        Folder(photos, channels=4)


def test_broken_files_of_a_folder_are_replaced_by_readable_ones(photos, caplog):
    for name in ("empty.png", "text.jpg", "short.png"):
        (photos / name).write_bytes(b"")
    (photos / "text.jpg").write_text("not a photograph")
    save(photos / "whole.png", (64, 64, 3))
    (photos / "short.png").write_bytes((photos / "whole.png").read_bytes()[:60])
    guarded = Guarded(Folder(photos), max_corrupt=0.5)
    with caplog.at_level(logging.WARNING, logger="vadapt.data"):
        records = [guarded[i] for i in range(len(guarded))]
    assert len(records) == 10
    assert guarded.num_corrupt == 3
    for name in ("empty.png", "text.jpg", "short.png"):
        assert caplog.text.count(str(photos / name)) == 1


def test_replacement_does_not_depend_on_the_order_of_reading():
    broken = {3, 17, 18, 19, 40}
    forward = Guarded(Fragile(50, broken), 0.2)
    backward = Guarded(Fragile(50, broken), 0.2)
    there = [value(forward[i]) for i in range(50)]
    back = [value(backward[i]) for i in reversed(range(50))][::-1]
    assert there == back
    assert not broken & set(there)
    assert [i for i in range(50) if there[i] != i] == sorted(broken)


def test_an_unreadable_element_is_counted_named_and_read_once(caplog):
    source = Fragile(10, {4})
    guarded = Guarded(source)
    for _ in range(3):
        guarded[4]
    assert guarded.num_corrupt == 1
    assert guarded.is_corrupt(4)
    assert source.reads.count(4) == 1
    assert caplog.text.count("/photos/4.png (OSError: element 4 is broken)") == 1


def test_more_than_the_allowed_share_is_an_error_that_says_what_to_do():
    guarded = Guarded(Fragile(200, {1, 5, 9}), 0.01)
    with pytest.raises(DataError) as caught:
        [guarded[index] for index in range(200)]
    message = str(caught.value)
    for part in ("3 of 200", "1.50%", "1.00%", "/photos/1.png", "config.data.max_corrupt"):
        assert part in message
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("length", "max_corrupt", "allowed"),
    [(5, 0.01, 1), (200, 0.01, 2), (1000, 0.01, 10), (100, 0.29, 29), (5, 0, 0), (5, 1.0, 5)],
)
def test_allowance_is_the_share_and_at_least_one(length, max_corrupt, allowed):
    assert Guarded(Fragile(length), max_corrupt).allowed == allowed


def test_a_share_of_zero_stops_at_the_first_broken_file():
    with pytest.raises(DataError, match="1 of 5"):
        Guarded(Fragile(5, {2}), 0)[2]


def test_a_source_without_any_readable_element_ends_in_an_error():
    with pytest.raises(DataError, match="none of the 3 elements"):
        Guarded(Fragile(3, {0, 1, 2}), 1.0)[1]


@pytest.mark.parametrize("error", [DataError, MemoryError, KeyboardInterrupt])
def test_errors_that_are_no_broken_file_pass(error):
    guarded = Guarded(Fragile(3, {0}, error), 1.0)
    with pytest.raises(error):
        guarded[0]
    assert guarded.num_corrupt == 0


def test_a_file_that_claims_too_much_is_a_broken_one():
    guarded = Guarded(Fragile(3, {0}, UnreadableError), 1.0)
    assert guarded[0] is not None
    assert guarded.num_corrupt == 1


def test_an_index_outside_is_no_broken_file():
    guarded = Guarded(Fragile(3))
    with pytest.raises(IndexError, match="index 3"):
        guarded[3]
    assert guarded.num_corrupt == 0


def test_threads_count_an_unreadable_element_once(caplog):
    guarded = Guarded(Fragile(100, range(0, 100, 10)), 0.1)
    threads = [threading.Thread(target=lambda: [guarded[i] for i in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guarded.num_corrupt == 10
    assert len(caplog.records) == 10


def test_a_share_outside_0_to_1_is_refused():
    with pytest.raises(ConfigError, match="max_corrupt is 5"):
        Guarded(Fragile(3), 5)


BUILDER = """
    import io
    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    class Toyset(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
            features = {"image": image, "label": np.int64, "title": tfds.features.Text()}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                values = (np.arange(20).reshape(4, 5) * (i + 1) + 8000).astype(np.uint16)
                file = io.BytesIO()
                Image.fromarray(values).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i, "title": f"toy {i}"}
"""

SCRIPT = """
    import json, pathlib, shutil, sys
    import numpy as np
    import tensorflow_datasets as tfds
    from vadapt.data.sources import Guarded, Tfds
    from vadapt.errors import DataError
    import toyset.builder

    def failure(**arguments):
        try:
            Tfds(**{"name": "toyset", "data_dir": "data", **arguments})
        except DataError as error:
            return str(error)

    out = {"unprepared": failure()}
    builder = tfds.builder("toyset", data_dir="data", file_format="array_record")
    builder.download_and_prepare()
    shutil.copytree("data", "other")
    shutil.copytree("data", "moved")
    info = pathlib.Path("other/toyset/1.0.0/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    source = Tfds("toyset", data_dir="data")
    record = source[3]
    out.update(
        length=len(source),
        labels=sorted(int(source[i]["label"]) for i in range(6)),
        image=record["image"].tolist(),
        dtype=str(record["image"].dtype),
        first=list(record)[0],
        name=source.name(3),
        slice=len(Tfds("toyset", "train[:50%]", "data")),
        chosen=sorted(Tfds("toyset", data_dir="data", fields=("image", "label"))[0]),
        grey=Tfds("toyset", data_dir="data", channels=1)[0]["image"].shape,
        unknown=failure(name="toysett"),
        split=failure(split="test"),
        identities=[
            Tfds("toyset", data_dir="data").identity(),
            Tfds("toyset", data_dir="moved").identity(),
            Tfds("toyset", "train[:50%]", "data").identity(),
            Tfds("toyset", "train[50%:]", "data").identity(),
        ],
        key=failure(image_key="img"),
        tfrecord=failure(data_dir="other"),
        tensorflow=[name for name in sys.modules if name.split(".")[0] == "tensorflow"],
    )
    print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def tfds_report(tmp_path_factory):
    """What a fresh interpreter found that built the toy data set and read it."""
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "toyset").mkdir()
    (folder / "toyset/__init__.py").touch()
    (folder / "toyset/builder.py").write_text(textwrap.dedent(BUILDER))
    (folder / "read.py").write_text(textwrap.dedent(SCRIPT))
    run = subprocess.run(
        [sys.executable, "read.py"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_tfds_reads_what_was_built_without_tensorflow(tfds_report):
    assert tfds_report["tensorflow"] == []
    assert tfds_report["length"] == 6
    assert tfds_report["labels"] == list(range(6))
    assert tfds_report["slice"] == 3
    assert tfds_report["chosen"] == ["image", "label"]
    assert tfds_report["name"] == "toyset[train] element 3"


def test_tfds_is_known_by_name_version_split_and_count(tfds_report):
    whole, moved, first, second = tfds_report["identities"]
    assert whole == moved == identity_of(6, ("toyset/1.0.0", "train"))
    assert first == identity_of(3, ("toyset/1.0.0", "train[:50%]"))
    assert (second["records"], second == first) == (3, False)


def test_tfds_images_are_decoded_as_those_of_a_folder(tfds_report):
    image = np.array(tfds_report["image"])
    assert tfds_report["dtype"] == "uint8"
    assert tfds_report["first"] == "image"
    expected = np.rint(np.arange(20).reshape(4, 5, 1) * np.float32(255 / 19))
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (4, 5, 3)))
    assert tfds_report["grey"] == [4, 5, 1]


def test_tfds_says_how_to_prepare_a_data_set(tfds_report):
    assert "not prepared" in tfds_report["unprepared"]
    assert "tfds build toyset --file_format=array_record" in tfds_report["unprepared"]
    assert "download_and_prepare" in tfds_report["unprepared"]
    assert "no data set 'toysett'" in tfds_report["unknown"]
    assert "cannot be read" in tfds_report["tfrecord"]
    assert "--file_format=array_record" in tfds_report["tfrecord"]


def test_tfds_names_the_splits_and_features_that_there_are(tfds_report):
    assert "it has ['train']" in tfds_report["split"]
    assert "it has ['image', 'label', 'title']" in tfds_report["key"]


def test_missing_tensorflow_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'vadapt\[tfds\]'"):
        Tfds("cifar10")


def test_importing_the_data_modules_loads_neither_grain_nor_tfds_nor_jax():
    script = (
        "import sys, vadapt.data.stream;"
        "print({'jax', 'grain', 'tensorflow_datasets', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
