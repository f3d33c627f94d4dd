"""What headers of unknown origin may do: patterns without end, endless JSON, other numbers."""

import json
import re
import time

import numpy as np
import pytest

from vadapt import adapters, models
from vadapt.errors import WeightsError
from vadapt.weights.adapter_file import load_adapter, read_info, save_adapter
from vadapt.weights.files import read_arrays, read_header, write_arrays
from vadapt.weights.patterns import ends_soon

SIZE = {"width": 8, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": 8}
ENDLESS = ["(a+)+$", "(a|aa)*b", "(.*/?)*x", ".*.*.*.*.*x", "a?" * 30 + "a" * 30, "(x{1,9}){9}y"]
USUAL = ["blocks/.*/mlp/.*", "head/.*|norm/(scale|bias)", r"blocks/\d+/(?:attn|mlp)/.*", "[ab]*/c"]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_without_end(pattern):
    assert not ends_soon(pattern)


@pytest.mark.parametrize("pattern", USUAL)
def test_usual_patterns(pattern):
    re.compile(pattern)
    assert ends_soon(pattern)


@pytest.fixture
def changed(tmp_path):
    """An adapter file with another header or other arrays, and a model that it is of."""
    model = adapters.apply(models.create("vit_tiny", **SIZE), "lora", rank=1)
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, model)

    def change(arrays=(), **fields):
        held, header = read_arrays(path), read_header(path)
        held = {name: np.asarray(array) for name, array in held.items()} | dict(arrays)
        write_arrays(path, held, {**header, **fields})
        return path, model

    return change


def test_an_endless_pattern_is_not_tried(changed):
    path, model = changed(trainable=json.dumps("([a-z0-9]+/?)+$|(.*)*!"))
    start = time.monotonic()
    load_adapter(model, path)
    assert time.monotonic() - start < 20
    path, model = changed(method=json.dumps({"name": "lora", "targets": ["(a+)+$"]}))
    with pytest.raises(WeightsError, match="a pattern that might never end"):
        read_info(path)


def test_endless_json_is_refused_in_one_line(changed):
    path, _ = changed(classes="[" * 100_000)
    with pytest.raises(WeightsError, match="not nested deeper than 32") as error:
        read_info(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda x: x * np.nan, "infinite numbers or none"), (lambda x: x.astype(np.int8), "as int8")],
)
def test_other_numbers_are_refused(changed, change, words):
    path, model = changed()
    name, array = next(iter(read_arrays(path).items()))
    path, model = changed(arrays={name: change(np.asarray(array))})
    with pytest.raises(WeightsError, match=words):
        load_adapter(model, path)


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "../x.safetensors", "/etc/x.bin"])
def test_an_index_that_names_itself_or_other_places(tmp_path, file):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(WeightsError, match="names what is no file beside it"):
        read_arrays(index)
    index.write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"cannot be read as \.json"):
        read_arrays(index)
