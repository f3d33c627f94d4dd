"""Weight files that anyone may have written: one line each, and no memory for what they claim."""

import json
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save

from tests.weights import fake_torch
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.weights.files import parse_json, read_arrays, write_arrays
from vadapt.weights.load import load_weights


def npy(shape="(2,)", dtype="'<f4'", data=b"\0" * 8, version=b"\1\0"):
    """An array in NumPy's format, whatever it claims."""
    head = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + data


def write_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def refused(act, path):
    """Return the message, of one line, and see that no memory was taken."""
    tracemalloc.start()
    with pytest.raises(WeightsError) as error:
        act()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    assert peak < 2**24
    return str(error.value)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.npy": npy("(1000000000, 1000)")}, "claims more than it holds"),
        ({"a.npy": npy("(3,)")}, "claims more than it holds"),
        ({"a.npy": npy("(-1,)")}, "not of numbers"),
        ({"a.npy": npy("(10**9,)")}, ""),
        ({"a.npy": npy("(2.5,)")}, ""),
        ({"a.npy": npy("(" * 5000)}, ""),
        ({"a.npy": npy("(" + "-" * 8000 + "1,)")}, ""),
        ({"a.npy": npy(dtype="'|O'")}, "allow_pickle"),
        ({"a.npy": npy(dtype="'|V8'")}, "not of numbers"),
        ({"a.npy": npy(dtype="[('x', '<f4')]")}, "not of numbers"),
        ({"a.npy": npy(dtype="'<f4', 5")}, ""),
        ({"a.npy": npy(version=b"\7\0")}, "another version"),
        ({"a.npy": b""}, ""),
        ({"a.txt": b"text"}, "is no array"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_npz_that_claims_what_it_does_not_hold(tmp_path, members, words):
    path = write_zip(tmp_path / "a.npz", members)
    assert words in refused(lambda: read_arrays(path), path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_with_two_arrays_of_one_name(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", npy())
        file.writestr("a.npy", npy())
    assert "two of its arrays have one name" in refused(lambda: read_arrays(path), path)


def test_a_bomb_of_zeros_is_compared_with_the_model_before_it_is_read(tmp_path):
    zeros = npy(f"({2**24},)", data=bytes(2**24 * 4))
    path = write_zip(tmp_path / "a.npz", {"a.npy": zeros}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    model = vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0))
    assert "1 unexpected (a)" in refused(lambda: load_weights(model, path), path)


def test_any_changed_byte_of_an_npz_is_read_or_refused(tmp_path):
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    np.savez_compressed(path, a=np.arange(6.0).reshape(2, 3), b=np.ones(3, np.int8))
    whole = path.read_bytes()
    refusals = 0
    for place in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[place] ^= rng.integers(1, 256)
        path.write_bytes(changed)
        try:
            for array in read_arrays(path).values():
                np.asarray(array)
        except WeightsError:
            refusals += 1
    assert refusals > 150


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "5", '{"weight_map": 5}', '{"weight_map": []}', "[" * 10**5),
        *('{"weight_map": {"a": 5}}', '{"weight_map": {"a": null}}', '{"weight_map": {"a": []}}'),
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        *(
            json.dumps({"weight_map": {"a": name}})
            for name in ("", ".", "..", "../x.bin", "/x.bin", "sub/x.bin", INDEX, "a\0.bin", "sub")
        ),
    ],
    ids=lambda value: value[:60],
)
def test_an_index_that_is_none_or_leads_elsewhere(tmp_path, text):
    (tmp_path / "sub").mkdir()
    (tmp_path / INDEX).write_text(text)
    refused(lambda: read_arrays(tmp_path), tmp_path / INDEX)


def test_an_index_of_files_that_hold_the_same(tmp_path):
    for name in ("x", "y"):
        write_arrays(tmp_path / f"{name}.safetensors", {"a": np.ones(2, np.float32)})
    shards = {"a": "x.safetensors", "b": "y.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert "several hold 'a'" in refused(lambda: read_arrays(tmp_path), tmp_path / INDEX)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[" * 200 + "]" * 200, "nul", "9" * 5000])
def test_json_beside_weights_is_read_within_bounds(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    refused(lambda: parse_json(path), path)
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "64 MiB are read" in refused(lambda: parse_json(path), path)


def tensor(kind="F32", shape=(2,), ends=(0, 8)):
    return json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": ends}}).encode()


@pytest.mark.parametrize(
    ("length", "text"),
    [
        *((2**60, b"{}"), (2**63 + 5, b"{}"), (100, b"[" * 100)),
        *((0, tensor(shape=shape)) for shape in ([2**40, 2**40], [-2], "2", [2.5], [[2]])),
        *((0, tensor(ends=ends)) for ends in ([0, 2**60], [8, 0], [-8, 0], [0])),
        *((0, tensor(kind)) for kind in ("X99", "F64", "", 5)),
        (0, tensor("F8_E4M3", [8])),
        (0, b'{"__metadata__": {"vadapt": 5}}'),
    ],
    ids=str,
)
def test_a_safetensors_header_that_claims_what_it_does_not_hold(tmp_path, length, text):
    path = tmp_path / "a.safetensors"
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + bytes(8))
    refused(lambda: read_arrays(path), path)


@pytest.mark.parametrize("digests", ["[" * 10**5, "[]", "5", "null", '"x"', "{}", '{"": null}'])
def test_digests_that_are_none(tmp_path, digests):
    path = tmp_path / "a.safetensors"
    header = {"digests": "crc32", "crc32": digests}
    path.write_bytes(save({"a": np.ones(2, np.float32)}, metadata=header))
    refused(lambda: read_arrays(path), path)


def test_a_torch_file_that_claims_more_bytes_than_it_has(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch.module(None))
    members = {"a/data.pkl": b"", "a/data/0": bytes(2**22)}
    path = write_zip(tmp_path / "a.pth", members, compression=zipfile.ZIP_DEFLATED)
    assert "and claims 4,194,304" in refused(lambda: read_arrays(path), path)
