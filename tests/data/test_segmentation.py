"""Folders of images and masks: what their file may say, what they give, and how errors speak."""

import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.data.test_decode import png16
from vadapt.data.label_maps import class_colours, look_up, lookup_table
from vadapt.data.layouts import Layout
from vadapt.data.pipeline import make_source
from vadapt.data.segmentation import MaskReader, Segmentation
from vadapt.data.sources import Source
from vadapt.data.stream import batches, make_stream
from vadapt.data.transforms import HorizontalFlip, Resize
from vadapt.errors import ConfigError, DataError

SIZE = (6, 8)


def save(path, values=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(values, np.uint8), SIZE).copy()).save(path)


def save_colours(path, colours):
    """A picture whose rows have these colours in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.array([colours[row % len(colours)] for row in range(SIZE[0])], np.uint8)
    Image.fromarray(rows[:, None].repeat(SIZE[1], 1)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two splits of pairs whose masks have a suffix of their own; ids are 7, 24 and 3."""
    for split, names in (("train", ("a", "deep/b", "c")), ("val", ("a",))):
        for number, name in enumerate(names):
            save(tmp_path / f"photos/{split}/{name}.jpg", 40 * number)
            mask = np.full(SIZE, 7)
            mask[0, :3], mask[1] = 24, 3
            save(tmp_path / f"truth/{split}/{name}_gt.png", mask)
    (tmp_path / "dataset.yaml").write_text(
        """
        classes: [road, person]
        images: photos/{split}/*
        masks: truth/{split}/*_gt.png
        splits: {train: train, test: val, both: [train, val], few: few.txt}
        remap: {7: 0, 24: 1, 3: ignore}
        """
    )
    (tmp_path / "few.txt").write_text("train/deep/b\ntrain/a.jpg\n\n")
    return tmp_path


def test_records_have_image_train_ids_and_name(root):
    source = Segmentation(root, "train")
    assert isinstance(source, Source)
    assert len(source) == 3
    record = source[1]
    assert record["name"] == "photos/train/c.jpg"
    assert record["image"].shape == (*SIZE, 3)
    assert record["mask"].dtype == np.uint8
    expected = np.zeros(SIZE)
    expected[0, :3], expected[1] = 1, 255
    np.testing.assert_array_equal(record["mask"], expected)
    assert source.classes == ("road", "person")
    assert source.name(2).endswith("photos/train/deep/b.jpg")
    assert source.mask_name(2).endswith("truth/train/deep/b_gt.png")


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("test", ["val/a"]),
        ("both", ["train/a", "train/c", "train/deep/b", "val/a"]),
        ("few", ["train/deep/b", "train/a"]),
        ("", ["train/a", "train/c", "train/deep/b", "val/a"]),
    ],
)
def test_splits_are_folders_or_lists(root, split, names):
    source = Segmentation(root, split)
    assert [source[i]["name"] for i in range(len(source))] == [f"photos/{n}.jpg" for n in names]


def test_fingerprints_follow_files_and_layout_and_not_the_folder(root, tmp_path_factory):
    def fingerprint(folder, split="train", **options):
        return Segmentation(folder, split, **options).fingerprint()

    first = fingerprint(root)
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy)
    assert fingerprint(copy) == first
    assert len({first, fingerprint(root, "few"), fingerprint(root, channels=1)}) == 3
    save_colours(copy / "truth/train/a_gt.png", [(0, 0, 0), (1, 2, 3)])
    assert fingerprint(copy) != first
    shutil.rmtree(copy)
    shutil.copytree(root, copy)
    file = copy / "photos/train/c.jpg"  # corrected in place, at the size that it had
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert fingerprint(copy) != first
    text = (root / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_text(text.replace("3: ignore", "3: 0"))
    assert fingerprint(root) != first


def test_images_alone_need_no_mask(root):
    (root / "truth/train/c_gt.png").unlink()
    source = Segmentation(root, "train", labelled=False)
    assert len(source) == 3
    assert "mask" not in source[0]


def test_without_a_file_folders_and_ids_are_as_they_are(tmp_path):
    mask = np.arange(48).reshape(SIZE)
    mask[0, 0] = 255
    save(tmp_path / "images/x.PNG")
    save(tmp_path / "masks/x.png", mask)
    source = Segmentation(tmp_path)
    np.testing.assert_array_equal(source[0]["mask"], mask)
    assert source.classes == ()
    assert source.palette.shape == (32, 3)


def test_an_empty_folder_says_what_to_write(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.yaml there says .*`images: FOLDER/\*`"):
        Segmentation(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        Segmentation(tmp_path / "nowhere")


def test_missing_masks_are_counted_and_named(root):
    (root / "truth/train/deep/b_gt.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images .* have no mask.*photos/train/deep/b\.jpg"):
        Segmentation(root, "train")


def test_unknown_splits_name_the_known(root):
    with pytest.raises(DataError, match="no split 'tran'; nearest: 'train'"):
        Segmentation(root, "tran")
    (root / "dataset.yaml").write_text("images: photos/{split}/*\nmasks: truth/{split}/*_gt.png")
    with pytest.raises(DataError, match=r"no images photos/vall/\* .*nearest: 'val'"):
        Segmentation(root, "vall")


def test_a_list_may_not_name_what_is_not_there(root):
    (root / "few.txt").write_text("train/a\ntrain/z")
    with pytest.raises(DataError, match=r"1 of 2 images that split 'few' lists .*train/z"):
        Segmentation(root, "few")
    (root / "few.txt").unlink()
    with pytest.raises(DataError, match=r"few\.txt', which is not there"):
        Segmentation(root, "few")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train/a\ntrain/a.jpg\n", "lists samples twice: 'train/a'"),
        (b"../photos/train/a\n", r"names '\.\./photos/train/a'"),
        (b"\xff\n", "no text in UTF-8"),
    ],
)
def test_a_list_names_what_is_in_the_data_set_once(root, content, message):
    (root / "few.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Segmentation(root, "few")


def test_a_split_is_a_folder_of_the_data_set(tmp_path):
    save(tmp_path / "images/a.png")
    with pytest.raises(DataError, match=r"config\.data\.split names '\.\./photos'"):
        Segmentation(tmp_path, "../photos")


def test_two_images_of_one_name_are_an_error(root):
    save(root / "photos/train/a.png")
    with pytest.raises(DataError, match="two files for one sample"):
        Segmentation(root, "train")


def test_a_mask_of_another_size_is_named(root):
    Image.new("L", (4, 4)).save(root / "truth/train/a_gt.png")
    with pytest.raises(DataError, match=r"a_gt\.png has 4x4 pixels, its image 6x8"):
        _ = Segmentation(root, "train")[0]


def test_unknown_ids_are_named_and_counted(root):
    mask = np.full(SIZE, 7)
    mask[2, :5], mask[3, 0] = 9, 200
    save(root / "truth/train/a_gt.png", mask)
    with pytest.raises(DataError) as error:
        _ = Segmentation(root, "train")[0]
    assert "a_gt.png: unknown ids 9 (5 pixels), 200 (1 pixels); known are 3, 7, 24, 255" in str(
        error.value
    )
    yaml = root / "dataset.yaml"
    yaml.write_text(yaml.read_text().replace("3: ignore", "rest: ignore"))
    assert (Segmentation(root, "train")[0]["mask"][2:4] == 255).sum() == 6


def test_colour_masks_are_looked_up_in_the_palette(tmp_path):
    save(tmp_path / "images/a.png")
    save_colours(tmp_path / "masks/a.png", [(9, 9, 9), (255, 0, 1), (0, 0, 0)])
    yaml = tmp_path / "dataset.yaml"
    with pytest.raises(DataError, match="a mask of colours: write `palette:"):
        _ = Segmentation(tmp_path)[0]
    yaml.write_text("palette: [[255, 0, 1], [9, 9, 9]]\nignore: [[0, 0, 0], 255]")
    label = Segmentation(tmp_path)[0]["mask"]
    assert label[:, 0].tolist() == [1, 0, 255, 1, 0, 255]
    yaml.write_text("classes: 2\npalette: [[255, 0, 1], [9, 9, 9]]")
    with pytest.raises(DataError, match=r"unknown colours \[0, 0, 0\] \(16 pixels\)"):
        _ = Segmentation(tmp_path)[0]
    yaml.write_text("channel: 1")
    assert Segmentation(tmp_path)[0]["mask"][:3, 0].tolist() == [9, 0, 0]


def test_sixteen_bit_masks_keep_their_ids(tmp_path):
    save(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.png").write_bytes(png16(np.full((*SIZE, 1), 26001, np.uint16)))
    (tmp_path / "dataset.yaml").write_text("classes: [car]\nremap: {26001: 0}")
    assert (Segmentation(tmp_path)[0]["mask"] == 0).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: [a]", "unknown entry 'clases'; nearest: 'classes'"),
        ("classes: [a, b", "cannot read"),
        ("- a", "expected lines"),
        ("images: photos", r"pattern 'photos': its file name must have one \*"),
        ("classes: 2\nremap: {7: 2}", r"label map \{7: 2\}"),
        ("classes: 2\npalette: [[0, 0, 0]]", "1 colours in the palette for 2 classes"),
        ("classes: 300", "255 at most"),
        ("remap: [1, 2]", "remap must map raw ids"),
        ("remap: {7: road}", "invalid literal"),
        ("remap: {7: 0, 7: 1}", "line 1: '7' stands there twice; leave one"),
        ("remap: {7: 0, '007': 1}", "remap says 7 twice; leave one"),
        ("remap: {7: 0.6}", r"0\.6 in remap is no whole number"),
        ("classes: road", r"'road' is no list; write it as in `classes: \[road, person\]`"),
        ("classes: -3", "classes: -3; write how many there are, from 1 to 255"),
        ("classes: 0", "classes: 0; write how many"),
        ("classes: true", "True is no list"),
        ("classes: [road, no]", "False in classes is no text; write a name, in quotes"),
        ("classes: [road, road]", "classes of one name, 'road'; give each a name of its own"),
        ("classes: [road, ' ']", "classes with an empty name"),
        ("classes: [a]\nclasses: [b]", "'classes' stands there twice"),
        ("palette: [[256, 0, 0]]", r"colour \[256, 0, 0\]; write \[red, green, blue\]"),
        ("palette: [[-1, 0, 0]]", r"each from 0 to 255"),
        ("palette: [[1, 0]]", r"\[1, 0\] is no colour"),
        ("palette: red", "'red' is no list"),
        ("palette: [[1, 0, 0], [1, 0, 0]]", "colours of two classes in the palette"),
        ("ignore: [[70000, 0, 0]]", "each from 0 to 65535"),
        ("channel: 3", "channel 3; write 0, 1 or 2"),
        ("channel: -1", "channel -1; write 0, 1 or 2"),
        ("splits: [train]", r"\['train'\]; write folders or lists by name"),
        ("splits: {val: no}", "False in splits is no text"),
        ("images: ../photos/*", r"a pattern names '\.\./photos/\*'; write a path from"),
        ("masks: /etc/*", r"a pattern names '/etc/\*'"),
        ("splits: {train: ../../all}", r"split 'train' names '\.\./\.\./all'"),
        ("classes: &a [road, *a]", "line 1: write out what"),
        ("classes: " + "[" * 40 + "]" * 40, "more than 20 levels"),
        ("classes: " + "[" * 5000, "more than 20 levels"),
        ("# " + "x" * 2**20, "has 1 MiB, and 1 MiB are read"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(root, text, message):
    (root / "dataset.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        Segmentation(root, "train")


def test_unknown_layouts_and_channels_are_errors(root):
    with pytest.raises(ConfigError, match="unknown layout 'cityscape'; nearest: 'cityscapes'"):
        Segmentation(root, layout="cityscape")
    with pytest.raises(ConfigError, match="channels is 2"):
        Segmentation(root, channels=2)


def test_streams_batch_images_with_their_labels(root):
    source = Segmentation(root, "train")
    options = {"batch_size": 2, "num_threads": 0}
    stream = make_stream(source, [HorizontalFlip(1.0), Resize((6, 8))], seed=0, **options)
    batch = next(stream)
    assert batch["mask"].shape == (2, *SIZE)
    assert (batch["mask"][:, 0, -3:] == 1).all()  # mirrored, as the image
    assert "name" not in batch
    rows = list(batches(source, [], **options))
    assert [row["valid"].tolist() for row in rows] == [[True, True], [True, False]]


def test_lookup_takes_any_integers(rng):
    table = lookup_table({7: 0, 300: 1}, 2, rest=255, ignored=[9])
    for dtype in (np.uint8, np.uint16, np.int32):
        raw = np.array([[7, 9, 255, 8]]).astype(dtype)
        assert look_up(raw, table)[0].tolist() == [[0, 255, 255, 255]]
    wide = np.array([[300, 301, 70000, -4]], np.int32)
    assert look_up(wide, table)[0].tolist() == [[1, 255, 255, 255]]
    strict = lookup_table({7: 0}, 1)
    assert look_up(wide, strict)[1] == {-4: 1, 300: 1, 301: 1, 70000: 1}


def test_reader_ignores_what_the_layout_says():
    reader = MaskReader(Layout(classes=("a", "b"), ignore=(0, 255)))
    label = reader(np.array([[0, 1, 255]], np.uint8))
    assert label.tolist() == [[255, 1, 255]]


def test_colours_of_classes_differ():
    colours = class_colours(60)
    assert len({tuple(colour) for colour in colours.tolist()}) == 60


def test_a_config_names_the_source_its_split_and_layout(root):
    data = ConfigDict({"source": "segmentation", "path": str(root), "split": "train"})
    assert len(make_source(data)) == 3
    save(root / "images/00001.png")
    save(root / "labels/00001.png", 7)
    data.update(split="", layout="gta")
    assert (make_source(data, ("image", "mask"))[0]["mask"] == 0).all()
    with pytest.raises(ConfigError, match="no candidates of objects"):
        make_source(data, ("image", "rois"))
    assert set(make_source(data)[0]) == {"image", "name"}
    data.path = ""
    with pytest.raises(ConfigError, match="give --config"):
        make_source(data)
