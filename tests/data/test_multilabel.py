"""Labels of images: COCO's and VOC's own files in small, tables, folders of classes, scenes."""

import json

import numpy as np
import pytest
from PIL import Image

from vadapt.data import untrusted
from vadapt.data.label_files import VOC_CLASSES, read_coco, read_table, read_voc
from vadapt.data.multilabel import (
    ClassFolders,
    LabelledImages,
    SceneLabels,
    SceneObjects,
)
from vadapt.data.repeated import Repeated, balanced_counts, repeat_factors
from vadapt.data.scenes import CATEGORIES
from vadapt.data.stream import make_stream
from vadapt.errors import ConfigError, DataError


def put(path, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 60, 30)).save(path)


def write_coco(root, **changes):
    """Three images, one without objects; ids and the order of categories are not in order."""
    content = {
        "info": {"year": 2014},
        "categories": [
            {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 44, "name": "bottle", "supercategory": "kitchen"},
        ],
        "images": [
            {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "height": 8, "width": 12},
            {"id": 3, "file_name": "COCO_val2014_000000000003.jpg", "height": 8, "width": 12},
            {"id": 5, "file_name": "COCO_val2014_000000000005.jpg", "height": 8, "width": 12},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 90, "area": 40.5, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 90, "area": 2.0, "iscrowd": 0},
            {"id": 3, "image_id": 5, "category_id": 1, "area": 7.0, "iscrowd": 1},
        ],
        **changes,
    }
    for image in content["images"]:
        put(root / "val2014" / image["file_name"])
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / "instances_val2014.json").write_text(json.dumps(content))


def voc_xml(*objects):
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin>"
        "</bndbox><part><name>head</name></part></object>"
        for name, difficult in objects
    )
    return f"<annotation><folder>VOC2007</folder><filename>x.jpg</filename>{things}</annotation>"


def write_voc(root):
    files = {
        "000005": voc_xml(("chair", 1), ("chair", 0), ("person", 1)),
        "000007": voc_xml(("car", 0), ("car", 1)),
        "000009": voc_xml(),
    }
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, text in files.items():
        put(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("000005\n000007\n000009\n")
    (root / "ImageSets" / "Main" / "car_trainval.txt").write_text("000005 -1\n")


def table(root, text):
    for name in ("a", "b", "c"):
        put(root / "photos" / f"{name}.png")
    (root / "labels.csv").write_text(text, encoding="utf-8-sig")
    return root


def test_coco_gives_sets_of_labels_in_the_order_of_ids(tmp_path):
    write_coco(tmp_path)
    source = LabelledImages(tmp_path, "val", layout="coco2014")
    assert source.classes == ("person", "bottle", "toothbrush")
    assert source.targets.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]  # the crowd counts
    record = source[0]
    assert record["areas"].tolist() == [0, 0, 42.5]
    assert record["labels"].dtype == np.int8
    assert record["image"].shape == (8, 12, 3)
    assert source.name(1).endswith("val2014/COCO_val2014_000000000003.jpg")


def test_what_is_wrong_with_coco_is_said(tmp_path):
    with pytest.raises(DataError, match=r"instances_val2014\.json.*no instances"):
        read_coco(tmp_path, "val")
    write_coco(tmp_path)
    with pytest.raises(DataError, match=r"there are \['instances_val2014.json'\]"):
        read_coco(tmp_path, "train")
    unknown = {"id": 1, "image_id": 9, "category_id": 77, "area": 1.0}
    write_coco(tmp_path, annotations=[unknown])
    with pytest.raises(DataError, match="no 77"):
        read_coco(tmp_path, "val")
    write_coco(tmp_path, categories=None)
    with pytest.raises(DataError, match="not as COCO has it"):
        read_coco(tmp_path, "val")
    write_coco(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    with pytest.raises(DataError, match=r"1 images are not in .*0003\.jpg"):
        read_coco(tmp_path, "val")
    file = tmp_path / "annotations" / "instances_val2014.json"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"is no JSON.*download it again"):
        read_coco(tmp_path, "val")


def of(kind, **changes):
    """One entry of each kind of a COCO file, changed."""
    entries = {
        "images": {"id": 9, "file_name": "COCO_val2014_000000000009.jpg"},
        "categories": {"id": 1, "name": "person"},
        "annotations": {"id": 1, "image_id": 9, "category_id": 1, "area": 4.0},
    }
    return entries[kind] | changes


@pytest.mark.parametrize(
    ("kind", "second", "why"),
    [
        ("images", {"file_name": "b.jpg"}, "images of one id, 9"),
        ("images", {"id": 3}, "names images twice: 'val2014/COCO_val2014_000000000009.jpg'"),
        ("images", {"id": 3, "file_name": "../val2014/b.jpg"}, "names 'val2014/../val2014/b.jpg'"),
        ("categories", {"name": "dog"}, "categories of one id, 1"),
        ("categories", {"id": 2}, "categories of one name, 'person'"),
        ("categories", {"id": 2, "name": " "}, "categories with an empty name"),
        ("annotations", {"area": 3.0}, "annotations of one id, 1"),
        ("annotations", {"id": 2, "area": float("nan")}, "a number of pixels is needed"),
        ("annotations", {"id": 2, "area": -1}, "a number of pixels is needed"),
        ("annotations", {"id": 2, "area": 10**400}, "not as COCO has it"),
        ("annotations", {"id": 2, "area": [1, 2]}, "not as COCO has it"),
    ],
)
def test_what_coco_must_say_once_it_says_once(tmp_path, kind, second, why):
    first = {name: [of(name)] for name in ("images", "categories", "annotations")}
    write_coco(tmp_path, **first)
    assert read_coco(tmp_path, "val").targets.tolist() == [[1]]
    write_coco(tmp_path, **first | {kind: [of(kind), of(kind, **second)]})
    with pytest.raises(DataError, match=why):
        read_coco(tmp_path, "val")


def test_more_labels_than_memory_holds_are_refused_before_it_is_taken(tmp_path, monkeypatch):
    write_coco(tmp_path)
    table(tmp_path, "file,labels\nphotos/a.png,cat;dog\nphotos/b.png,emu\n")
    monkeypatch.setattr(untrusted, "MOST_CELLS", 5)
    with pytest.raises(DataError, match="3 images with 3 labels each are more"):
        read_coco(tmp_path, "val")
    with pytest.raises(DataError, match="2 images with 3 labels each are more"):
        LabelledImages(tmp_path)


@pytest.mark.parametrize("inner", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_difficult_objects_alone_leave_a_label_in_doubt(tmp_path, inner):
    write_voc(tmp_path / inner)
    source = LabelledImages(tmp_path, "trainval", layout="voc2007")
    found = [{VOC_CLASSES[i]: int(row[i]) for i in np.flatnonzero(row)} for row in source.targets]
    assert found == [{"chair": 1, "person": -1}, {"car": 1}, {}]
    assert "areas" not in source[2]
    assert source[0]["labels"].shape == (20,)


def test_what_is_wrong_with_voc_is_said(tmp_path):
    with pytest.raises(DataError, match="no JPEGImages"):
        read_voc(tmp_path, "test")
    write_voc(tmp_path)
    with pytest.raises(DataError, match=r"no split 'trainvall'.*nearest: 'trainval'"):
        read_voc(tmp_path, "trainvall")
    file = tmp_path / "Annotations" / "000007.xml"
    bomb = '<!DOCTYPE a [<!ENTITY b "bottle">]>' + voc_xml(("&b;", 0))
    for text, why in (
        (voc_xml(("carr", 0)), "unknown class 'carr'; nearest: 'car'"),
        ("<annotation><object>", "no XML of VOC"),
        (bomb, "document type 'a', which is refused"),
        (bomb.encode("utf-16"), "which is refused"),
    ):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError, match=why):
            read_voc(tmp_path, "trainval")
    file.unlink()
    with pytest.raises(DataError, match=r"no annotation .*000007\.xml"):
        read_voc(tmp_path, "trainval")
    listed = tmp_path / "ImageSets" / "Main" / "trainval.txt"
    for content, why in (
        (b"000005\n000005\n", "names images twice: 'JPEGImages/000005.jpg'"),
        (b"../../000005\n", r"names '\.\./\.\./000005'; write a path"),
        (b"\xff\xfe\xff", "no text in UTF-8"),
    ):
        listed.write_bytes(content)
        with pytest.raises(DataError, match=why):
            read_voc(tmp_path, "trainval")


def test_a_table_of_names_and_one_of_columns(tmp_path):
    text = "file,labels,split\nphotos/a.png,dog; cat,train\nphotos/b.png,,train\n"
    table(tmp_path, text + "photos/c.png,emu,val\n")
    train, val = (LabelledImages(tmp_path, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog", "emu")  # of all splits
    assert train.targets.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert val.targets.tolist() == [[0, 0, 1]]
    assert len(LabelledImages(tmp_path)) == 3
    table(tmp_path, 'file,dog,"cat, wild"\nphotos/a.png,1,-1\nphotos/c.png,,0\n')
    columns = LabelledImages(tmp_path, "photos")  # the first folder is the split
    assert columns.classes == ("dog", "cat, wild")
    assert columns.targets.tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("photo,labels\nphotos/a.png,x\n", "must begin with a line"),
        ("file,labels\n", "must begin with a line"),
        ("file,cat\nphotos/a.png,yes\n", "line 2: cat is 'yes'; expected 1, 0 or -1"),
        ("file,cat\nphotos/a.png,1\nphotos/b.png\n", "line 3: not as many fields"),
        ("file,labels\nphotos/a.png,cat,dog\n", "line 2: not as many fields"),
        ("file,labels\nphotos/z.png,cat\n", "line 2: 1 images are not in .*z.png"),
        (
            "file,labels\nphotos/a.png,cat\nphotos/a.png,dog\n",
            "line 3 names images twice: 'photos/a.png'",
        ),
        ("file,labels\n./photos/a.png,cat\nphotos/a.png,dog\n", "names images twice"),
        ("file,labels\n../a.png,cat\n", "line 2 names '../a.png'; write a path from"),
        ("file,labels\n/etc/a.png,cat\n", "names '/etc/a.png'; write a path from"),
        ("file,dog,dog\nphotos/a.png,1,0\n", "columns of one name, 'dog'; give each"),
        ("file,dog, dog\nphotos/a.png,1,0\n", "columns of one name, 'dog'; give each"),
        ("file,file,dog\nphotos/a.png,photos/b.png,0\n", "columns of one name, 'file'"),
        ("file,dog,\nphotos/a.png,1,0\n", "columns with an empty name"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, why):
    with pytest.raises(DataError, match=why):
        LabelledImages(table(tmp_path, text))


def test_a_split_and_a_layout_that_are_not_there(tmp_path):
    table(tmp_path, "file,labels\nphotos/a.png,cat\n")
    with pytest.raises(DataError, match="no split 'photo'; nearest: 'photos'"):
        LabelledImages(tmp_path, "photo")
    with pytest.raises(ConfigError, match="unknown layout 'coco'"):
        LabelledImages(tmp_path, layout="coco")
    with pytest.raises(DataError, match="no folder"):
        LabelledImages(tmp_path / "nowhere")


def test_folders_of_classes(tmp_path):
    for name in ("train/n01/x.JPEG", "train/n02/y.png", "train/n02/deep/z.png", "val/n02/w.png"):
        put(tmp_path / name)
    train = ClassFolders(tmp_path)
    assert train.classes == ("n01", "n02")
    assert train.targets.tolist() == [[1, 0], [0, 1], [0, 1]]
    val = ClassFolders(tmp_path, "val", classes=train.classes)
    assert val[0]["labels"].tolist() == [0, 1]  # and not the first of its own folders
    put(tmp_path / "val" / "n03" / "v.png")
    with pytest.raises(DataError, match=r"1 folders .* are no class: 'n03'"):
        ClassFolders(tmp_path, "val", classes=train.classes)
    with pytest.raises(DataError, match="classes of one name, 'n02'"):
        ClassFolders(tmp_path, classes=("n01", "n02", "n02"))
    with pytest.raises(DataError, match="expected CLASS/IMAGE"):
        ClassFolders(tmp_path, "train/n01")


def test_scenes_have_the_kinds_of_what_is_seen_in_them():
    source = SceneLabels(60)
    assert source.classes == CATEGORIES
    shares = source.targets.mean(0)
    assert shares.min() > 0.05
    assert shares.max() < 0.5
    record = source[0]
    np.testing.assert_array_equal(record["areas"] > 0, record["labels"])
    assert 0 < record["areas"].sum() < 64 * 64
    assert SceneLabels(4, view="thermal")[0]["image"].shape == (64, 64, 1)


def test_objects_of_scenes_have_one_label_each():
    source = SceneObjects(40)
    labels = np.stack([source[i]["labels"] for i in range(40)])
    assert (labels.sum(1) == 1).all()
    assert labels.any(0).sum() > 8
    np.testing.assert_array_equal(source[7]["image"], SceneObjects(40)[7]["image"])


def test_rare_images_repeat_within_an_epoch():
    source = SceneLabels(20)
    counts = np.ones(20, int)
    counts[3] = 4
    repeated = Repeated(source, counts)
    assert len(repeated) == 23
    stream = make_stream(repeated, [], batch_size=23, seed=0, fields=("image",), num_threads=0)
    batch = next(stream)["image"]
    same = (batch == source[3]["image"]).reshape(23, -1).all(1)
    assert same.sum() == 4
    assert repeated.name(5) == "element 3"
    with pytest.raises(ConfigError, match="2 counts for 20 elements"):
        Repeated(source, [1, 2])


def test_images_without_labels_and_of_common_ones_come_once():
    targets = np.zeros((100, 2), np.int8)
    targets[:50, 0], targets[99, 1] = 1, 1
    factors = repeat_factors(targets, 0.09)
    np.testing.assert_allclose(factors[[0, 60, 99]], [1, 1, 3])
    np.testing.assert_array_equal(balanced_counts(targets, 0.09)[[0, 60, 99]], [1, 1, 3])
    assert balanced_counts(targets, 0.01).max() == 1


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "5", '"x"', "{}", "[" * 10**5, '{"images": [], "images": []}'),
        *({name: value} for name in ("images", "annotations", "categories")
          for value in (5, "x", None, {"a": 1}, [5], [None], [[]], [{}], [{"id": []}])),
        *({"annotations": [{"image_id": 1, "category_id": 1, "area": area}]}
          for area in ("x", None, -1, [])),
        {"annotations": [{"image_id": [], "category_id": 1, "area": 1}]},
        {"annotations": [{"image_id": 10**400, "category_id": 1, "area": 1}]},
        {"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": []},
        {"images": [{"id": 1, "file_name": None}], "annotations": []},
    ],
    ids=lambda content: str(content)[:60],
)  # fmt: skip
def test_coco_of_any_json_is_one_line(tmp_path, content):
    good = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"image_id": 1, "category_id": 1, "area": 2}],
    }
    file = tmp_path / "annotations" / "instances_train2014.json"
    file.parent.mkdir()
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / "a.png").touch()
    file.write_text(json.dumps(good))
    assert read_coco(tmp_path, "train").files == ["train2014/a.png"]
    text = content if isinstance(content, str) else json.dumps({**good, **content})
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read_coco(tmp_path, "train")
    assert "\n" not in str(error.value)


def test_files_of_labels_beyond_any_size_are_not_read(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("annotations/instances_train2014.json", "labels.csv"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**43)  # takes no place on the disk
    for read in (read_coco, read_table):
        with pytest.raises(DataError, match=r"MiB are read") as error:
            read(tmp_path, "train")
        assert "\n" not in str(error.value)
