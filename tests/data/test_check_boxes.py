"""The command that reads a data set with boxes before a run does."""

import numpy as np
import pytest
from PIL import Image

from tests.data import box_sets
from vadapt.data import check, check_boxes
from vadapt.data.detection import BoxedImages


def test_everything_is_counted(tmp_path):
    box_sets.write_visdrone(tmp_path)
    summary = check_boxes.summarise(BoxedImages(tmp_path, "train", layout="visdrone"))
    assert summary.objects.tolist() == [1, 0, 0, 1] + [0] * 6
    assert summary.images.tolist() == summary.objects.tolist()
    assert summary.sides[0].tolist() == [pytest.approx(200**0.5)]
    assert (summary.ignored, summary.most) == (2, 3)
    assert summary.sizes == {(40, 60): 2}
    assert summary.unreadable == {}


def test_the_command_prints_and_draws(tmp_path, capsys):
    box_sets.write_coco(tmp_path)
    sheet = tmp_path / "sheets/sheet.png"
    arguments = [str(tmp_path), "--layout", "coco", "--split", "val", "--out", str(sheet)]
    assert check.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 images, 2 readable, 0 without objects; 1 objects, 2 ignored; at most 2" in printed
    assert "1 sizes (height x width): 2 of 40x60" in printed
    pixels = np.asarray(Image.open(sheet))
    palette = BoxedImages(tmp_path, "val").palette
    for color in (palette[1], (128, 128, 128)):  # the cat's, and what is ignored
        assert (pixels == color).all(-1).sum() > 100


def test_problems_are_listed_and_stop_nothing(tmp_path, capsys):
    content = box_sets.coco()
    content["annotations"] += [
        {"id": 6, "image_id": 3, "category_id": 77, "bbox": [1, 2, 3, 4]},
        *({"id": 10 + n, "image_id": 3, "category_id": 9, "bbox": [1, 2, 0, 4]} for n in range(12)),
    ]
    box_sets.write_coco(tmp_path, content)
    (tmp_path / "val/b.png").write_bytes(b"nothing")
    assert check.main([str(tmp_path), "--layout", "coco", "--split", "val"]) == 1
    printed = capsys.readouterr().out
    assert "1 objects of an unknown category:\n  annotation 6 of image id 3" in printed
    assert "12 boxes without an area:\n  annotation 10 of" in printed
    assert "and 2 more" in printed
    assert "1 images that cannot be read:" in printed
    assert "2 images, 1 readable" in printed


def test_a_wrong_root_is_one_message(tmp_path, capsys):
    assert check.main([str(tmp_path), "--layout", "coco", "--split", "val"]) == 1
    assert "annotations=FILE.json" in capsys.readouterr().err
