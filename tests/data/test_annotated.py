"""Bad data in sets with boxes: said with file and number, counted, handled as the config says."""

import json

import pytest

from tests.data import box_sets
from vadapt.data.detection import BoxedImages
from vadapt.data.sources import Guarded
from vadapt.errors import ConfigError, DataError

GOOD = {"image_id": 3, "category_id": 9, "bbox": [10, 5, 20, 10]}


def written(root, *annotations, **changes):
    """A set with a good object, numbered 1, and these, numbered from 2 on."""
    objects = [
        {"id": number, **GOOD, **entry} for number, entry in enumerate(({}, *annotations), 1)
    ]
    return box_sets.write_coco(root, box_sets.coco(None, objects, **changes))


BAD_BOXES = [
    ("beyond", {"bbox": [50, 30, 20, 20]}, [[50, 30, 60, 40]]),
    ("outside", {"bbox": [61, 30, 20, 20]}, []),
    ("empty", {"bbox": [5, 5, 0, 9]}, []),
    ("empty", {"bbox": [5, 5, -3, 9]}, []),
]


@pytest.mark.parametrize(("kind", "entry", "left"), BAD_BOXES)
def test_bad_boxes_are_cut_or_dropped_or_kept_or_raise(tmp_path, caplog, kind, entry, left):
    root = written(tmp_path, entry)
    good = [10, 5, 30, 15]
    for handling, expected in (("clip", [good, *left]), ("drop", [good])):
        source = BoxedImages(root, "val", bad_boxes=handling)
        assert source[1]["boxes_xyxy"].tolist() == expected
        assert [problem.kind for problem in source.problems] == [kind]
        assert "annotation 2 of image id 3" in caplog.text
        assert "instances_val.json': 1 boxes " in caplog.text
        caplog.clear()
    assert len(BoxedImages(root, "val", bad_boxes="keep")[1]["boxes_xyxy"]) == 2
    with pytest.raises(DataError, match=r"annotation 2 of image id 3.*bad_boxes='clip'"):
        BoxedImages(root, "val", bad_boxes="raise")


def test_what_files_round_is_no_problem(tmp_path):
    source = BoxedImages(written(tmp_path, {"bbox": [50, 30, 10.3, 10]}), "val")
    assert source.problems == []
    assert source[1]["boxes_xyxy"][1, 2] == pytest.approx(60.3)


BAD_RECORDS = [
    ("category", {"category_id": 8}, r"annotation 2 of image id 3 \(category 8\)"),
    ("unlisted", {"image_id": 4}, "annotation 2 of image id 4"),
    ("doubled", {"id": 1}, "annotation 1 of image id 3"),
    ("number", {"bbox": [1, 2, 3]}, "annotation 2 of image id 3"),
    ("number", {"bbox": [1, 2, float("nan"), 4]}, "annotation 2 of image id 3"),
    ("number", {"bbox": [1, 2, "wide", 4]}, "annotation 2 of image id 3"),
]


@pytest.mark.parametrize(("kind", "entry", "said"), BAD_RECORDS)
def test_bad_records_raise_or_are_left_out(tmp_path, kind, entry, said):
    root = written(tmp_path, entry)
    with pytest.raises(DataError, match=said) as raised:
        BoxedImages(root, "val")
    assert "instances_val.json" in str(raised.value)
    assert "bad_records='drop'" in str(raised.value)
    source = BoxedImages(root, "val", bad_records="drop")
    assert source[1]["boxes_xyxy"].tolist() == [[10, 5, 30, 15]]
    assert [problem.kind for problem in source.problems] == [kind]


@pytest.mark.parametrize(
    "again", [{"id": 3, "file_name": "c.png"}, {"id": 4, "file_name": "a.png"}]
)
def test_images_that_are_listed_twice(tmp_path, again):
    images = [*box_sets.coco()["images"], again]
    root = box_sets.write_coco(tmp_path, box_sets.coco(images, [{"id": 1, **GOOD}]))
    with pytest.raises(DataError, match="1 records that are given twice: image"):
        BoxedImages(root, "val")
    source = BoxedImages(root, "val", bad_records="drop")
    assert [source.key(index) for index in range(len(source))] == ["val/b.png", "val/a.png"]
    assert boxes_of(source) == [[], [[10, 5, 30, 15]]]


def boxes_of(source):
    return [record["boxes_xyxy"].tolist() for record in source]


def test_missing_images(tmp_path):
    root = written(tmp_path)
    (root / "val/b.png").unlink()
    with pytest.raises(DataError, match=r"1 images that are not there: 'val/b\.png' of "):
        BoxedImages(root, "val")
    source = BoxedImages(root, "val", bad_records="drop")
    assert boxes_of(source) == [[[10, 5, 30, 15]]]
    (root / "val/a.png").unlink()
    with pytest.raises(DataError, match="names no image that is there"):
        BoxedImages(root, "val", bad_records="drop")


def test_all_problems_are_in_one_error(tmp_path):
    root = written(tmp_path, *[{"bbox": [5, 5, 0, 9]}] * 5, {"category_id": 8})
    with pytest.raises(DataError, match=r"5 boxes without an area: .* and 2 more; .*1 objects of"):
        BoxedImages(root, "val", bad_boxes="raise")


def test_damaged_images_are_replaced_as_those_of_any_source(tmp_path):
    root = written(tmp_path)
    (root / "val/b.png").write_bytes(b"nothing")
    guarded = Guarded(BoxedImages(root, "val"))
    assert guarded[0]["name"] == "val/a.png"
    assert guarded.num_corrupt == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [}', "no JSON: Expecting value: line 1 column 13"),
        ("[]", "must hold an object"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [3], "annotations": []}', "entry 0 of 'images' is 3"),
        (
            json.dumps(box_sets.coco([{"id": 3}])),
            r"image 0 \(id 3\) has 'file_name' None, which is no text",
        ),
        (
            json.dumps(box_sets.coco([{"id": 3, "file_name": "../a.png"}])),
            r"image 0 \(id 3\) names '../a.png'",
        ),
        (
            json.dumps(box_sets.coco(None, [{"id": 4, "category_id": 9, "bbox": [1, 2, 3, 4]}])),
            "annotation 4 has 'image_id' None",
        ),
        (
            json.dumps(box_sets.coco(None, [{"image_id": 3, "category_id": 9, "bbox": "all"}])),
            "annotation number 0 has 'bbox' 'all'",
        ),
        (
            json.dumps(box_sets.coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])),
            "categories of one id, 1",
        ),
        (
            json.dumps(box_sets.coco([{"id": 3, "file_name": "a.png", "corner": [0, 0, 0, 4]}])),
            "has a corner",
        ),
    ],
)
def test_malformed_files_say_where(tmp_path, text, said):
    root = written(tmp_path)
    (root / "annotations/instances_val.json").write_text(text)
    with pytest.raises(DataError, match=said) as raised:
        BoxedImages(root, "val", bad_records="drop")
    assert "instances_val.json" in str(raised.value)


@pytest.mark.parametrize(
    ("layout", "file", "text", "said"),
    [
        ("yolo", "labels/val/a.txt", "0 0.5 0.5 0.5", "line 1: .* class x y width height"),
        ("yolo", "labels/val/a.txt", "\n5 .5 .5 .5 .5", r"line 2 \(class 5 of 2\)"),
        ("yolo", "data.yaml", "names: 3\nval: images/val", "'names' must be"),
        ("yolo", "data.yaml", "names: [a]\ntrain: images/val", "no split 'val'"),
        ("voc", "Annotations/a.xml", "<annotation>", "no XML of VOC"),
        (
            "voc",
            "Annotations/a.xml",
            "<annotation><object><name>dog</name></object></annotation>",
            r"no four finite numbers: object 0 of '.*a\.xml'",
        ),
        (
            "visdrone",
            "VisDrone2019-DET-val/annotations/0000002_b.txt",
            "1,2,3,4,1,1,0,0\n1,2,3,4\n",
            r"0000002_b\.txt', line 2: '1,2,3,4' is not as VisDrone has it",
        ),
        (
            "visdrone",
            "VisDrone2019-DET-val/annotations/0000002_b.txt",
            "1,2,3,4,1,77,0,0",
            r"line 1 \(category 77\)",
        ),
    ],
)
def test_malformed_files_of_other_layouts_say_where(tmp_path, layout, file, text, said):
    write = {
        "yolo": box_sets.write_yolo,
        "voc": box_sets.write_voc,
        "visdrone": lambda root: box_sets.write_visdrone(root, "val"),
    }[layout]
    root = write(tmp_path)
    (root / file).write_text(text)
    with pytest.raises(DataError, match=said):
        BoxedImages(root, "val", layout=layout)


def test_an_unknown_way_of_handling_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.data\.bad_boxes is 'clop'; nearest: 'clip'"):
        BoxedImages(tmp_path, bad_boxes="clop")
