"""VisDrone, TinyPerson and FLIR as data sets of TFDS, from small trees in their own layouts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data import box_sets
from vadapt.data.detection import BoxedImages

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib, json, sys
name, root, out, split = sys.argv[1:]
importlib.import_module(f"vadapt.datasets.{name}.__main__").main([root, "--tfds", out])
from ml_collections import ConfigDict
from vadapt.data.detection import BOX_FIELDS
from vadapt.data.pipeline import make_source
data = {"source": "tfds", "tfds_name": name, "split": split, "path": out}
source = make_source(ConfigDict(data), ("image", "file", *BOX_FIELDS))
records = sorted((source[i] for i in range(len(source))), key=lambda r: r["file"])
truth, regions = source.truth(heed_ignored=True), source.regions()
assert source.pictures.tolist() == [*range(len(source))]
print(json.dumps({
    "classes": source.classes,
    "records": [{n: r[n].tolist() for n in ("image", *BOX_FIELDS)} for r in records],
    "truth": [sorted(column.tolist()) for column in truth[1:]],
    "regions": regions.boxes_xyxy.tolist(),
    "tensorflow": [name for name in sys.modules if name.split(".")[0] == "tensorflow"],
}))
"""


@pytest.mark.parametrize(
    ("name", "split"), [("visdrone", "test-dev"), ("tiny_person", "train"), ("flir", "val")]
)
def test_records_are_those_of_the_files(tmp_path, name, split):
    root, out = tmp_path / "raw", tmp_path / "out"
    if name == "visdrone":
        box_sets.write_visdrone(root, split)
    else:
        getattr(box_sets, f"write_{name}")(root)
    command = [sys.executable, "-c", SCRIPT, name, str(root), str(out), split.replace("-", "_")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    source = BoxedImages(root, split, layout=name, bad_boxes="keep")
    assert found["classes"] == list(source.classes)
    assert found["tensorflow"] == []
    order = sorted(range(len(source)), key=source.key)
    assert len(found["records"]) == len(source)
    for record, index in zip(found["records"], order, strict=True):
        for field, value in record.items():
            np.testing.assert_array_equal(np.array(value).ravel(), source[index][field].ravel())
    truth = source.truth(heed_ignored=True)
    assert found["truth"] == [sorted(column.tolist()) for column in truth[1:]]
    assert found["regions"] == source.regions().boxes_xyxy.tolist()


@pytest.mark.parametrize("name", ["tiny_person"])
def test_a_folder_without_the_data_set_is_refused(name, tmp_path):
    command = [sys.executable, "-m", f"vadapt.datasets.{name}", tmp_path, "--tfds", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode
    assert "DataError" in result.stderr
