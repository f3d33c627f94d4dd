"""Name tables read a family's names and write them back."""

import numpy as np
import pytest

from tests.weights.test_load import official
from vadapt.weights.families.eva02 import EVA02
from vadapt.weights.families.mae import MAE
from vadapt.weights.families.upernet import PAD_SEGMENTER
from vadapt.weights.files import read_arrays, read_header, write_arrays
from vadapt.weights.tables import convert, revert


@pytest.mark.parametrize("backbone", ["", "backbone/"])
def test_names_and_layouts_written_back_are_those_that_were_read(backbone):
    arrays = official(adapters=True)
    converted, unknown = convert(arrays, MAE, backbone=backbone)
    assert unknown == []
    reverted, lost = revert(converted, MAE, backbone=backbone)
    assert lost == []
    assert reverted.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(reverted[name], array, err_msg=name)


@pytest.mark.parametrize("table", [MAE, EVA02, PAD_SEGMENTER], ids=lambda table: table.family)
def test_biases_by_offset_of_blocks_and_the_shared_one_have_places_of_their_own(table):
    names = [
        "blocks.0.attn.relative_position_bias_table",
        "rel_pos_bias.relative_position_bias_table",
    ]
    converted, unknown = convert({name: np.ones((12, 2)) for name in names}, table)
    attention = "blocks/0/attn/inner"
    assert unknown == []
    assert list(converted) == [f"{attention}/relative/table", f"{attention}/shared_relative/table"]
    assert [name.removeprefix("backbone.") for name in revert(converted, table)[0]] == names


def test_other_spellings_are_read_and_the_first_is_written():
    gamma = np.arange(3.0)
    converted, _ = convert({"blocks.4.ls2.gamma": gamma}, MAE)
    assert list(converted) == ["blocks/4/mlp/scale/gamma"]
    assert list(revert(converted, MAE)[0]) == ["blocks.4.gamma_2"]


def test_unknown_names_are_given_back():
    assert convert({"head.weight": np.ones(2)}, MAE) == ({}, ["head.weight"])
    assert revert({"head/kernel": np.ones(2)}, MAE) == ({}, ["head/kernel"])


def test_files_keep_their_header_and_can_be_read_by_others(tmp_path):
    path = tmp_path / "deep" / "file.safetensors"
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "one": np.asarray(2.0)}
    write_arrays(path, arrays, {"who": "me"})
    assert read_arrays(path)["one"].shape == ()
    np.testing.assert_array_equal(read_arrays(path)["a"], np.arange(6.0).reshape(2, 3).T)
    assert read_header(path) == {"who": "me"}
    assert path.stat().st_mode & 0o044
    assert not list(tmp_path.rglob("*.partial"))
