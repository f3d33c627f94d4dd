"""Few shots: which images are drawn, on what it depends, and what cannot be drawn from."""

import numpy as np
import pytest

from tests.data.test_multilabel import put
from tests.data.test_pipeline import config_of
from vadapt.data import pipeline
from vadapt.data.identity import identify
from vadapt.data.multilabel import ClassFolders, LabelledImages
from vadapt.data.pipeline import Feed
from vadapt.data.subsets import ClassHalf, FewShot
from vadapt.data.transforms import Resize
from vadapt.errors import ConfigError, DataError

IMAGES = {f"{c}/{i}.png": c for c in ("cat", "dog", "eel") for i in range(12)}


class Named:
    """Images that are called, and labeled, as these."""

    classes = ("cat", "dog", "eel")

    def __init__(self, labels):
        self.files = [*labels]
        numbers = [self.classes.index(label) for label in labels.values()]
        self.targets = np.eye(3, dtype=np.int8)[numbers]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return {"image": np.zeros((2, 2, 3), np.uint8), "name": self.files[index]}

    def __repr__(self):
        return "Named()"

    def name(self, index):
        return f"/somewhere/{self.files[index]}"

    def key(self, index):
        return self.files[index]


def drawn(shots, seed=0, labels=IMAGES):
    source = FewShot(Named(labels), shots, seed)
    return [source[index]["name"] for index in range(len(source))]


def test_as_many_of_each_class_are_drawn():
    source = FewShot(Named(IMAGES), 4)
    assert source.targets.sum(0).tolist() == [4, 4, 4]
    names = drawn(4)
    assert len({*names}) == len(source) == 12
    assert [IMAGES[name] for name in names] == ["cat"] * 4 + ["dog"] * 4 + ["eel"] * 4
    assert source.targets.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.name(5) == f"/somewhere/{names[5]}"
    # Nobody asks for the first, as a reader's order would give them.
    assert {name[4:] for name in names[:4]} != {"0.png", "1.png", "2.png", "3.png"}


def test_neither_order_nor_other_classes_change_what_is_drawn():
    names = drawn(4)
    mixed = np.random.default_rng(0).permutation([*IMAGES]).tolist()
    assert drawn(4, labels={name: IMAGES[name] for name in mixed}) == names
    more = {**{f"dog/more{i}.png": "dog" for i in range(20)}, **IMAGES}
    assert [name for name in drawn(4, labels=more) if "dog" not in name] == [
        name for name in names if "dog" not in name
    ]


def test_the_seed_draws_and_fewer_are_the_first_of_more():
    assert drawn(4) == drawn(4)
    assert {*drawn(4, seed=1)} != {*drawn(4)}
    five = drawn(5)
    assert drawn(4) == [name for number, name in enumerate(five) if number % 5 < 4]
    assert sorted(drawn(12)) == sorted(IMAGES)


def test_a_class_of_fewer_images_is_named():
    with pytest.raises(DataError, match=r"shots=13, and class 'cat' .* fewer images: 12; so"):
        drawn(13)
    few = {name: label for name, label in IMAGES.items() if label != "dog"} | {"dog/0.png": "dog"}
    wanted = r"class 'dog' of Named\(\) has fewer images: 1\. All classes have 1: take"
    with pytest.raises(DataError, match=wanted):
        drawn(2, labels=few)


def test_shots_need_one_label_an_image():
    source = Named(IMAGES)
    source.targets[3] = 1
    with pytest.raises(ConfigError, match="shots=2 needs one label an image"):
        FewShot(source, 2)
    with pytest.raises(ConfigError, match="shots=2 needs one label an image"):
        FewShot(range(4), 2)
    with pytest.raises(ConfigError, match="shots is -1"):
        FewShot(Named(IMAGES), -1)


def test_a_run_notices_that_other_shots_are_drawn():
    first = identify(FewShot(Named(IMAGES), 4))
    assert first == identify(FewShot(Named(IMAGES), 4))
    assert first != identify(FewShot(Named(IMAGES), 4, seed=1))
    assert first != identify(FewShot(Named(IMAGES), 3))


def test_shots_do_not_depend_on_where_a_data_set_lies_nor_on_how_it_is_read(tmp_path):
    found = []
    for root in (tmp_path / "here", tmp_path / "there" / "deep"):
        for file in IMAGES:
            put(root / "train" / file)
        source = FewShot(ClassFolders(root), 3)
        found.append([source[index]["name"] for index in range(len(source))])
        lines = [f"{file},{label}" for file, label in reversed(IMAGES.items())]
        (root / "train" / "labels.csv").write_text("\n".join(["file,labels", *lines]))
        source = FewShot(LabelledImages(root / "train"), 3)
        found.append([source[index]["name"] for index in range(len(source))])
    assert found[0] == found[1] == found[2] == found[3]


def test_training_takes_shots_and_tests_all(tmp_path):
    for file in IMAGES:
        put(tmp_path / "train" / file)
        put(tmp_path / "val" / file)
    config = config_of(source="folders", path=str(tmp_path), shots=2, shots_seed=5, split="train")
    config.batch_size = 6
    fields = ("image", "labels")
    source = pipeline.training_source(config, fields)
    assert len(source) == 6
    assert {source[i]["name"] for i in range(6)} == {*drawn(2, seed=5)}
    config.test = {"val": {"split": "val"}}
    (val,) = pipeline.evaluation_sets(config, "test").values()
    assert len(pipeline.make_source(val, fields)) == 36
    feed = Feed([Resize((4, 4))], fields)
    batch = next(pipeline.training_stream(config, feed))
    assert batch["labels"].sum(0).tolist() == [2, 2, 2]
    config.train = {"one": {}, "two": {"split": "val", "shots": 3}}
    assert len(pipeline.training_source(config, fields)) == 6 + 9
    streams = {"source": lambda data: feed, "target": lambda data: feed}
    config.streams = {"target": {"split": "val", "shots": 1}}
    del config.train
    batch = next(pipeline.training_streams(config, streams))
    assert batch["target/labels"].sum(0).tolist() == [2, 2, 2]  # each comes twice
    assert batch["labels"].sum(0).tolist() == [2, 2, 2]


def test_a_half_of_the_classes_has_their_images_and_labels_alone():
    source = Named({"a.png": "eel", "b.png": "cat", "c.png": "dog", "d.png": "cat"})
    first, second = ClassHalf(source, "first"), ClassHalf(source, "second")
    assert (first.classes, second.classes) == (("cat",), ("dog", "eel"))
    assert [first.key(i) for i in range(len(first))] == ["b.png", "d.png"]
    assert [second.name(i) for i in range(len(second))] == ["/somewhere/a.png", "/somewhere/c.png"]
    assert second.targets.tolist() == [[0, 1], [1, 0]]
    assert identify(first) != identify(second) != identify(source)
    # Drawn as of a data set that has these alone.
    assert FewShot(second, 1).targets.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kind", ["folders", "table"])
def test_training_and_tests_take_a_half_each(kind, tmp_path):
    for name in ("bee/0", "cat/0", "cat/1", "dog/0", "eel/0"):
        put(tmp_path / "data" / "train" / f"{name}.png")
    lines = ["train/cat/0.png,cat", "train/dog/0.png,dog", "train/bee/0.png,bee"]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(["file,labels", *lines]))
    source = {"folders": "folders", "table": "labels"}[kind]
    settings = {"source": source, "layout": "table", "path": str(tmp_path / "data")}
    config = config_of(**settings, split="train", class_half="first")
    learned = pipeline.training_source(config, ("image", "labels"))
    assert learned.classes == (("bee", "cat") if kind == "folders" else ("bee",))
    assert len(learned) == (3 if kind == "folders" else 1)
    config.data.class_half = "second"
    tested = pipeline.make_source(config.data, ("image", "labels"))
    assert tested.classes == (("dog", "eel") if kind == "folders" else ("cat", "dog"))
    assert [tested[i]["labels"].tolist() for i in range(2)] == [[1, 0], [0, 1]]
    with pytest.raises(ConfigError, match="has other classes"):
        pipeline.make_source(config.data, ("image", "labels"), classes=learned.classes)
    config.data.class_half = "fisrt"
    with pytest.raises(ConfigError, match=r"class_half='fisrt'; nearest: 'first'"):
        pipeline.make_source(config.data, ("image", "labels"))
