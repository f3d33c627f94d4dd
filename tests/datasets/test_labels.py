"""COCO and VOC as data sets of TFDS, from small trees in their own layouts, without TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.test_multilabel import write_coco, write_voc

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib, json, sys
name, root, out, split = sys.argv[1:]
importlib.import_module(f"vadapt.datasets.{name}.__main__").main([root, "--tfds", out])
from vadapt.data.multilabel import TfdsLabels
source = TfdsLabels(name, split, data_dir=out)
places = sorted(range(len(source)), key=lambda i: str(source[i]["file"]))
records = [source[i] for i in places]
print(json.dumps({
    "classes": source.classes,
    "targets": source.targets[places].tolist(),
    "labels": [record["labels"].tolist() for record in records],
    "areas": [record["areas"].tolist() for record in records if "areas" in record],
    "shapes": [record["image"].shape for record in records],
    "tensorflow": [name for name in sys.modules if name.split(".")[0] == "tensorflow"],
}))
"""


def built(*arguments):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_coco(tmp_path):
    write_coco(tmp_path / "raw")
    found = built("coco_labels", tmp_path / "raw", tmp_path / "out", "val")
    assert found["classes"] == ["person", "bottle", "toothbrush"]
    assert found["labels"] == found["targets"] == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert found["areas"] == [[0, 0, 0], [7, 0, 0], [0, 0, 42.5]]
    assert found["shapes"] == [[8, 12, 3]] * 3
    assert found["tensorflow"] == []


def test_voc(tmp_path):
    write_voc(tmp_path / "raw" / "VOCdevkit" / "VOC2007")
    found = built("voc_labels", tmp_path / "raw", tmp_path / "out", "trainval")
    assert found["classes"][8] == "chair"
    assert [sum(map(abs, row)) for row in found["labels"]] == [2, 1, 0]
    assert found["labels"][0][14] == -1
    assert found["areas"] == found["tensorflow"] == []


@pytest.mark.parametrize("name", ["coco_labels", "voc_labels"])
def test_a_folder_without_the_data_set_is_refused(name, tmp_path):
    command = [sys.executable, "-m", f"vadapt.datasets.{name}", tmp_path, "--tfds", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode
    assert "DataError" in result.stderr
