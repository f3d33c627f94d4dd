"""Images with boxes in every layout: what is read, what counts, tiles, and the way to scores."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.data import box_sets
from vadapt.data.aerial_boxes import VISDRONE_CLASSES
from vadapt.data.annotated import REGION
from vadapt.data.detection import BOX_FIELDS, BoxedImages
from vadapt.data.identity import identify
from vadapt.data.pipeline import make_source, settings_of
from vadapt.errors import ConfigError, DataError, UnreadableError
from vadapt.metrics.detection import Found, coco_scores, detection_curves


def boxes(source, index):
    return source[index]["boxes_xyxy"].tolist()


def test_coco(tmp_path):
    source = BoxedImages(box_sets.write_coco(tmp_path), "val")
    assert source.classes == ("dog", "cat")  # by ascending id
    assert [source.key(index) for index in range(2)] == ["val/b.png", "val/a.png"]
    record = source[1]
    assert record["image"].shape == (40, 60, 3)
    assert record["boxes_xyxy"].tolist() == [[10, 5, 30, 15], [0, 0, 60, 40]]
    assert record["boxes_xyxy"].dtype == np.float32
    assert record["box_classes"].tolist() == [1, 0]
    assert record["box_crowds"].tolist() == record["box_ignored"].tolist() == [False, True]
    assert source[0]["box_ignored"].tolist() == [True]
    assert source.problems == []


def test_truth_has_all_objects_with_the_areas_of_the_file(tmp_path):
    source = BoxedImages(box_sets.write_coco(tmp_path), "val")
    truth = source.truth()
    assert truth.images.tolist() == [0, 1, 1]
    assert truth.areas.tolist() == [12, 150.5, 2400]
    assert truth.crowds.tolist() == [False, False, True]
    assert not truth.ignored.any()  # as pycocotools has it
    assert source.truth(heed_ignored=True).ignored.tolist() == [True, False, False]
    assert source.truth([1]).images.tolist() == [1, 1]
    assert len(source.truth([]).images) == 0


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/val.json", "images/val"),
        ("val/_annotations.coco.json", "val"),
        ("val.json", "images"),
        ("val.json", ""),
    ],
)
def test_files_of_ones_own_are_found_where_they_usually_lie(tmp_path, file, folder):
    box_sets.write_coco(tmp_path, file=file, folder=folder)
    assert boxes(BoxedImages(tmp_path, "val"), 0) == [[1, 2, 4, 6]]


def test_places_of_files_may_be_given(tmp_path):
    box_sets.write_coco(tmp_path, file="my/boxes.json", folder="pictures/all")
    options = {"annotations": "my/boxes.json", "images": "pictures/all"}
    assert boxes(BoxedImages(tmp_path, **options), 0) == [[1, 2, 4, 6]]
    with pytest.raises(DataError, match=r"annotations=FILE\.json"):
        BoxedImages(tmp_path, "val")
    with pytest.raises(ConfigError, match="'visdrone' takes no 'annotations'"):
        BoxedImages(tmp_path, "val", layout="visdrone", annotations="my/boxes.json")


def test_yolo(tmp_path):
    source = BoxedImages(box_sets.write_yolo(tmp_path), "val", layout="yolo")
    assert source.classes == ("cat", "dog")
    np.testing.assert_allclose(boxes(source, 0), [[15, 15, 45, 25], [6, 8, 18, 24]], rtol=1e-6)
    assert source[0]["box_classes"].tolist() == [1, 0]
    assert [len(source[index]["box_classes"]) for index in range(3)] == [2, 0, 0]
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert boxes(BoxedImages(tmp_path, "val", layout="yolo"), 0) == boxes(source, 0)


def test_voc_counts_from_1_and_its_difficult_objects_are_ignored(tmp_path):
    source = BoxedImages(box_sets.write_voc(tmp_path), "val", layout="voc")
    assert source.classes[11] == "dog"
    assert boxes(source, 0) == [[10, 5, 30, 15], [0, 0, 60, 40]]
    assert source[0]["box_ignored"].tolist() == [False, True]
    assert len(BoxedImages(tmp_path, layout="voc")) == 2
    own = BoxedImages(tmp_path, layout="voc", classes=("cat", "dog"))
    assert own[0]["box_classes"].tolist() == [1, 0]


def test_visdrone_keeps_ignored_regions_and_leaves_others_out(tmp_path):
    source = BoxedImages(box_sets.write_visdrone(tmp_path), "train", layout="visdrone")
    assert source.classes == VISDRONE_CLASSES
    record = source[0]
    assert record["box_classes"].tolist() == [0, REGION, 3]
    assert record["box_ignored"].tolist() == [False, True, False]
    assert source[1]["box_ignored"].tolist() == [True]  # of score 0
    assert source.truth().classes.tolist() == [0, 3, 9]
    assert source.regions().boxes_xyxy.tolist() == [[0, 0, 30, 40]]
    with pytest.raises(DataError, match="no 'VisDrone2019-DET-val' with images"):
        BoxedImages(tmp_path, "val", layout="visdrone")


def test_visdrone_is_trained_on_without_boxes_at_its_edges(tmp_path):
    lines = {"a": "51,5,5,5,1,4,0,0\n5,5,5,5,1,4,0,0\n5,31,9,9,1,1,0,0", "b": "0,0,9,9,0,0,0,0"}
    box_sets.write_visdrone(tmp_path, lines=lines)
    source = BoxedImages(tmp_path, "train", layout="visdrone", rule="visdrone")
    assert len(source) == 1  # a region alone is no object
    assert boxes(source, 0) == [[5, 5, 10, 10]]
    every = BoxedImages(tmp_path, "train", layout="visdrone", rule="training")
    assert len(boxes(every, 0)) == 3
    assert len(BoxedImages(tmp_path, "train", layout="visdrone")) == 2


def test_visdrone_as_coco(tmp_path):
    names = [{"id": n, "name": "ignored"} for n in (0, 11)]
    objects = [
        {"id": n, "image_id": 3, "category_id": kind, "bbox": [1, 2, 3, 4]}
        for n, kind in enumerate((0, 11, 4), 1)
    ]
    content = box_sets.coco(None, objects, categories=names)
    for split, folder in (("train", ""), ("val", "/images")):
        where = f"images/instances_UAV{split}{folder}"
        box_sets.write_coco(
            tmp_path, content, file=f"annotations/instances_UAV{split}.json", folder=where
        )
        source = BoxedImages(tmp_path, split, layout="visdrone_coco")
        assert source[1]["box_classes"].tolist() == [REGION, 3]
        assert source.classes == VISDRONE_CLASSES


def test_tiny_person_has_one_class_tiles_to_train_on_and_no_dense_picture(tmp_path):
    source = BoxedImages(box_sets.write_tiny_person(tmp_path), "train", layout="tiny_person")
    assert source.classes == ("person",)
    whole = np.asarray(Image.open(source.path / source.annotated[0].file))
    np.testing.assert_array_equal(source[1]["image"], whole[20:40, 30:60])
    assert boxes(source, 1) == [[3, 4, 8, 10]]
    assert source[1]["box_ignored"].tolist() == [True]  # uncertain
    assert len({source.key(index) for index in range(2)}) == 2
    test = BoxedImages(tmp_path / "tiny_set", "test", layout="tiny_person")
    assert [test.key(index) for index in range(len(test))] == ["test/a.png"]
    assert len(BoxedImages(tmp_path, "test", layout="tiny_person", dense=True)) == 2
    with pytest.raises(ConfigError, match="in tiles already"):
        BoxedImages(tmp_path, "train", layout="tiny_person", tile=(8, 8))


def test_flir_has_three_classes(tmp_path):
    source = BoxedImages(box_sets.write_flir(tmp_path), "val", layout="flir")
    assert source.classes == ("person", "bicycle", "car")
    assert [source[index]["box_classes"].tolist() for index in range(2)] == [[], [2, 0]]
    assert source.problems == []


def test_a_picture_in_tiles_scores_as_the_whole(tmp_path):
    box_sets.write_coco(tmp_path)
    options = {"tile": (32, 32), "tile_overlap": (8, 8), "rule": "training"}
    source, plain = BoxedImages(tmp_path, "val", **options), BoxedImages(tmp_path, "val")
    corners = ["val/b.png (0, 0, 32, 32)", "val/a.png (0, 0, 32, 32)", "val/a.png (24, 0, 56, 32)"]
    assert [source.key(index) for index in range(3)] == corners
    np.testing.assert_array_equal(source[3]["image"], plain[1]["image"][:32, 28:])
    assert boxes(source, 1) == [[10, 5, 30, 15], [0, 0, 32, 32]]
    assert source[2]["box_crowds"].tolist() == [True]  # the other box has too little of itself here
    assert source.pictures.tolist() == [0] + [1] * 6
    by_area = BoxedImages(tmp_path, "val", **options, tile_keep="area")
    assert boxes(by_area, 2)[0] == [0, 5, 6, 15]  # of which 0.3 is enough
    records = [source[index] for index in range(len(source))]
    counts = [len(record["box_classes"]) for record in records]
    found = Found(
        np.repeat(np.arange(len(source)), counts),
        np.concatenate([record["box_classes"] for record in records]),
        np.concatenate([record["boxes_xyxy"] for record in records]),
        np.linspace(1, 0.5, sum(counts)),
    )
    whole = source.whole(found)
    assert set(whole.images.tolist()) == {0, 1}
    assert len(whole.scores) < len(found.scores)
    assert coco_scores(detection_curves(whole, source.truth(), 2))["AP"] == pytest.approx(100)
    both = found._replace(images=found.images % 2)
    assert plain.whole(both).images.tolist() == both.images.tolist()


def test_an_image_of_another_size_than_its_annotation_is_unreadable(tmp_path):
    source = BoxedImages(box_sets.write_coco(tmp_path), "val")
    box_sets.put(tmp_path / "val/a.png", (40, 60))
    with pytest.raises(UnreadableError, match="60x40 pixels where its annotation has 40x60"):
        source[1]


def test_identity_follows_the_boxes_and_not_the_place(tmp_path):
    one, two = (BoxedImages(box_sets.write_coco(tmp_path / name), "val") for name in ("one", "two"))
    assert identify(one) == identify(two)
    content = box_sets.coco()
    content["annotations"][0]["bbox"][0] += 1
    other = BoxedImages(box_sets.write_coco(tmp_path / "two", content), "val")
    assert identify(other) != identify(one)


def test_config_names_the_source_and_its_settings(tmp_path):
    box_sets.write_coco(tmp_path)
    data = {"source": "boxes", "path": str(tmp_path), "split": "val", "box_rule": "training"}
    source = make_source(ConfigDict(data), ("image", *BOX_FIELDS))
    assert len(source) == 2
    assert source[1].keys() >= {"image", *BOX_FIELDS}
    for name in ("layout", "bad_boxes", "bad_records", "tile", "annotations", "image_folder"):
        assert name in settings_of("boxes")
    with pytest.raises(ConfigError, match="'boxes' has images without labels of pixels"):
        make_source(ConfigDict(data), ("image", "mask"))
    with pytest.raises(ConfigError, match="'boxes' reads images and the boxes"):
        make_source(ConfigDict({"source": "folder", "path": str(tmp_path)}), ("boxes_xyxy",))
    with pytest.raises(ConfigError, match="unknown rule 'trainin'; nearest: 'training'"):
        make_source(ConfigDict(data | {"box_rule": "trainin"}))
