"""Charts: a confusion matrix in colors, and lines of text as panels."""

import numpy as np
import pytest

from vadapt.charts import RIGHT, WRONG, draw_confusion, most_confused, text_panel
from vadapt.errors import ShapeError

CLASSES = ("road", "sky", "car")
# Of road three quarters are found, a quarter is taken for cars; nothing is sky.
MATRIX = np.array([[3, 0, 1, 0], [0, 0, 0, 0], [1, 0, 2, 1]])


def colors(sheet):
    return {tuple(x) for x in sheet.reshape(-1, 3).tolist()}


def shade(full, share):
    return tuple(np.round(255 + np.sqrt(share) * (np.asarray(full) - 255)).astype(int).tolist())


def test_rows_are_drawn_as_shares_of_their_sums():
    found = colors(draw_confusion(MATRIX, CLASSES))
    assert {shade(RIGHT, 3 / 4), shade(WRONG, 1 / 4), shade(RIGHT, 2 / 4)} <= found
    assert (236, 237, 240) in found  # the row of what is nowhere
    assert shade(RIGHT, 1.0) not in found


def test_predictions_of_no_class_have_a_column_where_there_are_any():
    with_them = draw_confusion(MATRIX, CLASSES)
    without = draw_confusion(np.delete(MATRIX, 3, 1), CLASSES)
    none = draw_confusion(MATRIX * [1, 1, 1, 0], CLASSES)
    # The title may be the widest: the names above the columns, one of which is longer, tell.
    assert with_them.shape[0] > without.shape[0] == none.shape[0]


def test_many_classes_come_without_names_on_a_bounded_picture():
    for number in (41, 200, 2000):
        matrix = np.eye(number, number + 1, dtype=int) * 3
        matrix[0, 1] = 1
        sheet = draw_confusion(matrix, [f"class {k}" for k in range(number)])
        assert max(sheet.shape) < 1100
        assert (sheet == shade(RIGHT, 1.0)).all(-1).any()


def test_the_most_confused_pairs_come_first():
    assert most_confused(MATRIX, CLASSES, 5) == [
        ("road", "car", 0.25),
        ("car", "road", 0.25),
    ]


def test_what_is_no_matrix_of_these_classes_is_refused():
    for matrix in (MATRIX[:2], np.zeros((3, 5), int)):
        with pytest.raises(ShapeError, match="3 classes"):
            draw_confusion(matrix, CLASSES)
    with pytest.raises(ShapeError, match="0 classes"):
        draw_confusion(np.zeros((0, 1), int), ())


def test_lines_that_do_not_fit_are_counted():
    few, many = ([("dog", (0, 0, 255))] * number for number in (2, 30))
    panel = text_panel(many, 200, 200)
    assert panel.shape == (200, 200, 3)

    def has_gray(panel):  # in which stands how many more there are; blue has no red
        return bool(((panel[..., 0] < 200) & (panel[..., 2] < 200)).any())

    assert has_gray(panel)
    assert not has_gray(text_panel(few, 200, 200))
    long = text_panel([("a name without an end" * 9, WRONG)], 200, 200)
    assert (long[:, -4:] == 255).all()
    assert (long[:, :160] != 255).any()
