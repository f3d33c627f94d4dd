"""JSON in a workdir: what is none counts as missing, whatever it is."""

import math

import pytest

from vadapt.training.checkpoint import Checkpoints
from vadapt.training.claim import read_json
from vadapt.training.logging import _drop_later


@pytest.mark.parametrize("text", ["", "5", "[5]", "nul", "[" * 10**5, '{"a": 1, "a": 2}', "\0"])
def test_damaged_json_counts_as_missing(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert read_json(path) == {}
    with path.open("wb") as file:
        file.truncate(2**43)
    assert read_json(path) == {}
    path.write_text('{"a": {"b": 1}}')
    assert read_json(path) == {"a": {"b": 1}}


def test_lines_of_metrics_that_are_none_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1}', "[" * 10**5, "5", '{"step": []}', '{"step": 9}', "{}", '{"step": 2}']
    path.write_text("\n".join(lines) + "\n")
    assert _drop_later(path, 5) == 5
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("text", ["[1]", "5", '{"a": []}', '{"a": "x"}', "[" * 10**5, "nul"])
def test_scores_that_are_none_compete_for_nothing(tmp_path, text):
    folder = tmp_path / "3" / "scores"
    folder.mkdir(parents=True)
    (folder / "metadata").write_text(text)
    assert math.isnan(Checkpoints(tmp_path, best_metric="a").score(3))
    (folder / "metadata").write_text('{"a": 0.5}')
    assert Checkpoints(tmp_path, best_metric="a").score(3) == 0.5
