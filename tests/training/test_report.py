"""Reports: tables of classes, order of images, and what is written, to the letter."""

import numpy as np
import pytest
from PIL import Image

from vadapt.drawing import contact_sheet
from vadapt.errors import ConfigError, TrainingError
from vadapt.metrics.gathering import of_all_processes
from vadapt.training.report import (
    Images,
    Report,
    check_number,
    class_table,
    sort_images,
    write_report,
)

NAN = float("nan")
ROWS = [
    {"class": "road", "IoU": 75.0, "pixels": 4},
    {"class": 'a "sky", blue', "IoU": NAN, "pixels": 0},
    {"class": "car", "IoU": 40.5, "pixels": 1200},
]
MATRIX = np.array([[3, 0, 1, 0], [0, 0, 0, 0], [1, 0, 2, 1]])


def images(scores):
    order, elements = sort_images(np.arange(len(scores)), np.array(scores), lowest_first=True)
    panel = np.zeros((8, 8), np.uint8)
    return Images(
        score="mIoU",
        elements=elements,
        scores=np.array(scores)[order],
        name=lambda element: f"{element}.png",
        draw=lambda places: contact_sheet([[panel]] * len(places), cell=8, gap=2),
    )


def test_the_files_of_a_report_are_exact(tmp_path):
    report = Report(ROWS, "IoU", MATRIX, images([0.5, NAN, 0.25, 0.5]))
    names = write_report(tmp_path / "val", report, 16)
    assert names == ["classes.csv", "confusion.csv", "confusion.png", "worst.csv", "worst.png"]
    assert sorted(path.name for path in (tmp_path / "val").iterdir()) == sorted(names)
    text = {name: (tmp_path / "val" / name).read_text() for name in names if "csv" in name}
    assert text["classes.csv"] == (
        'class,IoU,pixels\nroad,75,4\n"a ""sky"", blue",,0\ncar,40.5,1200\n'
    )
    assert text["confusion.csv"] == (
        '"truth (rows), prediction (columns)",road,"a ""sky"", blue",car,(no class)\n'
        'road,3,0,1,0\n"a ""sky"", blue",0,0,0,0\ncar,1,0,2,1\n'
    )
    assert text["worst.csv"] == "image,mIoU\n2.png,0.25\n0.png,0.5\n3.png,0.5\n1.png,\n"


@pytest.mark.parametrize(("asked", "rows"), [(2, 2), (16, 3)])
def test_a_sheet_has_so_many_rows_and_none_without_a_score(tmp_path, asked, rows):
    write_report(tmp_path, Report(ROWS, "IoU", None, images([0.5, NAN, 0.25, 0.5])), asked)
    sheet = np.asarray(Image.open(tmp_path / "worst.png"))
    black = (sheet == 0).all(-1).any(1)
    assert black.sum() == 8 * rows


def test_a_former_report_leaves_nothing(tmp_path):
    write_report(tmp_path, Report(ROWS, "IoU", MATRIX, images([0.5])), 1)
    assert write_report(tmp_path, Report(ROWS, "IoU", None, images([NAN])), 1) == [
        "classes.csv",
        "worst.csv",
    ]
    assert write_report(tmp_path, Report(ROWS, "IoU"), 1) == ["classes.csv"]
    assert [path.name for path in tmp_path.iterdir()] == ["classes.csv"]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "val").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot write .*val'"):
        write_report(tmp_path / "val", Report(ROWS, "IoU"), 1)


def test_the_table_is_for_people():
    assert class_table("val", Report(ROWS, "IoU")).splitlines() == [
        "val: 3 classes by IoU, the worst first",
        "  class    IoU  pixels",
        "  car    40.50   1,200",
        "  road   75.00       4",
        '  without a score: a "sky", blue',
    ]
    assert class_table("val", Report(ROWS[1:2], "IoU")).endswith("none has a score")


def test_of_many_classes_the_table_has_both_ends():
    rows = [{"class": f"c{k}", "IoU": float(k)} for k in range(30)]
    lines = class_table("val", Report(rows[::-1], "IoU")).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        *(f"c{k}" for k in range(10)),
        "...",
        *(f"c{k}" for k in range(20, 30)),
    ]
    assert len(class_table("val", Report(rows[:24], "IoU")).splitlines()) == 26


def test_the_worst_image_comes_first_whichever_way_its_score_goes():
    elements, scores = np.array([4, 2, 9, 7, 1]), np.array([0.5, NAN, 0.1, 0.5, 0.9])
    order, lowest = sort_images(elements, scores, lowest_first=True)
    assert lowest.tolist() == [9, 4, 7, 1, 2]
    np.testing.assert_array_equal(scores[order], [0.1, 0.5, 0.5, 0.9, NAN])
    _, highest = sort_images(elements, scores, lowest_first=False)
    assert highest.tolist() == [1, 4, 7, 9, 2]


def test_one_process_has_all_rows():
    rows = np.arange(6, dtype=np.int32).reshape(3, 2)
    np.testing.assert_array_equal(of_all_processes(rows), rows)
    assert of_all_processes(rows[:0]).shape == (0, 2)


def test_a_number_of_images_is_within_reason():
    assert [check_number(number) for number in (0, 16, 100)] == [0, 16, 100]
    for number in (-1, 101):
        with pytest.raises(ConfigError, match=rf"config\.eval\.num_worst is {number}; .* from 0"):
            check_number(number)
