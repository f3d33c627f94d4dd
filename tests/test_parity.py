"""The golden files pass, and the runner can fail: wrong numbers, unknown modules, broken files."""

import json

import numpy as np
import pytest

from tests import parity

FILES = sorted(parity.GOLDENS.rglob("*.npz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_case_passes(path):
    verdict = parity.check(path)
    assert verdict.passed, str(verdict)


def rewritten(path, folder, **changes):
    """The golden file with some arrays replaced."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays.update(changes)
    np.savez(folder / "case.npz", **arrays)
    return folder / "case.npz"


@pytest.fixture
def block():
    return parity.GOLDENS / "pad" / "block_sum.npz"


@pytest.mark.parametrize("key", ["out/y", "grad/in/x", "grad/param/norm2.bias"])
def test_a_wrong_number_fails_the_case(block, tmp_path, key):
    with np.load(block) as file:
        wrong = file[key].copy()
    wrong.flat[3] += 1e-2
    verdict = parity.check(rewritten(block, tmp_path, **{key: wrong}))
    assert not verdict.passed
    assert key in verdict.why


def test_a_wrong_gradient_of_one_output_alone_fails_the_case(tmp_path):
    path, key = parity.GOLDENS / "gkgnet" / "asl_default.npz", "grad/mean/in/logits"
    with np.load(path) as file:
        wrong = file[key].copy()
    wrong.flat[3] += 1e-2
    verdict = parity.check(rewritten(path, tmp_path, **{key: wrong}))
    assert not verdict.passed
    assert key in verdict.why


def test_a_missing_parameter_fails_the_case(block, tmp_path):
    with np.load(block) as file:
        arrays = {key: value for key, value in file.items() if key != "param/norm1.bias"}
    np.savez(tmp_path / "case.npz", **arrays)
    assert "missing" in parity.check(tmp_path / "case.npz").why


def test_unknown_modules_and_broken_files_fail(block, tmp_path, capsys):
    meta = json.loads(str(np.load(block)["meta"]))
    unknown = rewritten(block, tmp_path, meta=json.dumps({**meta, "module": "Blok"}))
    assert "unknown module 'Blok'" in parity.check(unknown).why
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no archive")
    assert parity.main([str(broken), str(block)]) == 1
    assert "1 passed, 1 failed" in capsys.readouterr().out


def test_no_file_at_all_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "GOLDENS", tmp_path)
    assert parity.main([]) == 1
