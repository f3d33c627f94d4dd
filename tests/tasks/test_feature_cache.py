"""Anything may lie in a cache's folder: read as it was written, or refused in one line."""

import json

import jax
import numpy as np
import pytest

from vadapt.errors import DataError
from vadapt.tasks.feature_cache import INFO, FeatureCache, open_or_fill

SHAPES = {"map": jax.ShapeDtypeStruct((2, 3), np.float32)}
MAPS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def fill(folder):
    return open_or_fill(folder, {"of": "test"}, SHAPES, 4, lambda first: [{"map": MAPS[first:]}])


def changed(**fields):
    info = {"made_from": {"of": "test"}, "length": 4, "done": 4}
    return json.dumps({**info, "fields": {"map": {"shape": [2, 3], "dtype": "float32"}}, **fields})


def field(name="map", shape=(2, 3), dtype="float32"):
    return changed(fields={name: {"shape": shape, "dtype": dtype}})


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "5", "[" * 10**5, '{"a":' * 10**5, "{}", '{"length": 4, "length": 5}'),
        *(changed(length=value) for value in (-1, 1.5, "4", None, True, [], 2**40)),
        *(changed(done=value) for value in (-1, "4", None)),
        *(changed(made_from=value) for value in (5, [])),
        *(changed(fields=value) for value in (5, [], {"map": 5}, {"map": {}}, {"map": []})),
        *(field(name) for name in ("../map", "/map", "", "other", "a.b")),
        *(field(shape=shape) for shape in ([2**40, 2**40], [-2, 3], [3, 2], [2.0, 3], 6, "23")),
        *(field(dtype=dtype) for dtype in ("int32", "object", "float31", 5, "f4,f4")),
    ],
    ids=lambda text: text[-90:],
)
def test_an_info_that_says_what_was_not_written(tmp_path, text):
    np.testing.assert_array_equal(fill(tmp_path / "c")[3]["map"], MAPS[3])
    (tmp_path / "c" / INFO).write_text(text)
    with pytest.raises(DataError, match="delete the folder") as error:
        FeatureCache(tmp_path / "c")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "c") in str(error.value)


@pytest.mark.parametrize(
    ("shape", "kind"), [("(4, 2, 2**40)", "<f4"), ("(9, 2, 3)", "<f4"), ("(4, 2, 3)", "|O")]
)
def test_an_array_that_claims_more_than_its_file_has(tmp_path, shape, kind):
    fill(tmp_path / "c")
    path = tmp_path / "c" / "map.npy"
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    path.write_bytes(b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + MAPS.tobytes())
    with pytest.raises(DataError, match="delete the folder") as error:
        FeatureCache(tmp_path / "c")
    assert "\n" not in str(error.value)
