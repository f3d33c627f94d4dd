"""Files that others wrote: what is too deep, too large, or said twice is one message."""

import json
import zipfile

import numpy as np
import pytest

from vadapt.data.roi_table import NO_ROIS, RoiTable, read_text
from vadapt.data.untrusted import check_inside, parse_json, parse_yaml, read_bytes, read_lines
from vadapt.errors import DataError


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 200 + "]" * 200, "deeper than any data set's"),
        ("[" * 200_000, "deeper than any data set's"),
        ('{"a":' * 200_000, "deeper than any data set's"),
        ('{"images": [1], "images": [2]}', "says 'images' twice in one object"),
        ("[1, 2", "is no JSON.*download it again"),
        ("9" * 10_000, "is no JSON"),
    ],
)
def test_json_is_read_within_bounds(tmp_path, text, why):
    with pytest.raises(DataError, match=why) as refused:
        parse_json(text, tmp_path / "x.json")
    assert "\n" not in str(refused.value)


def test_what_is_well_formed_is_read():
    assert parse_yaml("a: {b: [1, x]}\nc: [{d: 1}, {d: 2}]") == {
        "a": {"b": [1, "x"]},
        "c": [{"d": 1}, {"d": 2}],
    }
    assert parse_yaml("# nothing") is None


@pytest.mark.parametrize("levels", [2, 30])
def test_yaml_that_says_a_value_again_is_refused_before_it_grows(levels):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    with pytest.raises(DataError, match="line 1: write out"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "", " ", "a/..", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name):
    check_inside(["a", "a/b.c/..d", "./a"], "the list")
    with pytest.raises(DataError, match=r"the list names .*; write a path"):
        check_inside(["a", name], "the list")


def test_sizes_are_looked_at_before_a_file_is_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no place on the disk
    with pytest.raises(DataError, match=r"has 1,048,576 MiB, and 3 MiB are read"):
        read_bytes(path, 3)
    path.write_bytes(b"\xef\xbb\xbf a \r\n\n b c\n")
    assert read_lines(path) == ["a", "b c"]


def packed(path, **changes):
    arrays = {
        "names": np.array(["a", "b"]),
        "offsets": np.array([0, 1, 1]),
        "boxes": np.ones((1, 4), np.int32),
        "settings": json.dumps({}),
    }
    np.savez_compressed(path, **arrays | changes)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": np.array([0, 1])},
        {"offsets": np.array([0, 2, 1])},
        {"offsets": np.array([0, 1, 9])},
        {"offsets": np.array([0.0, 1.0, 1.0])},
        {"boxes": np.ones((1, 3), np.int32)},
        {"names": np.array(["a", "a"])},
        {"names": np.array([["a", "b"]])},
        {"settings": "[" * 100_000},
        {"settings": "[]"},
    ],
)
def test_packed_candidates_that_do_not_fit_are_refused(tmp_path, changes):
    assert RoiTable.load(packed(tmp_path / "roi.npz"))["b"].shape == NO_ROIS.shape
    with pytest.raises(DataError, match=r"cannot read the candidates .*roi_candidates again"):
        RoiTable.load(packed(tmp_path / "roi.npz", **changes))


def test_packed_candidates_take_the_memory_that_they_have(tmp_path, monkeypatch):
    path = packed(tmp_path / "roi.npz")
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    assert b"(1, 4), }" in members["boxes.npy"]
    members["boxes.npy"] = members["boxes.npy"].replace(b"(1, 4), }  ", b"(999999,4)}")
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match=r"boxes\.npy claims more than it holds: \(999999, 4\)"):
        RoiTable.load(tmp_path / "claims.npz")
    monkeypatch.setattr("vadapt.data.roi_table._MOST_BYTES", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        RoiTable.load(path)


@pytest.mark.parametrize("line", ["1,2,3,99999999999", "1,2,3", "1,2,3,4.5", "9" * 5000 + ",1,1,1"])
def test_lines_that_are_no_boxes_are_refused(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"1,2,3,4\n{line}\n")
    with pytest.raises(DataError, match=r"no list of x,y,w,h"):
        read_text(tmp_path / "a.txt")
