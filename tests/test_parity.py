"""The golden files pass, and the runner can fail: wrong numbers, unread fields, broken files."""

import json

import numpy as np
import pytest

from tests import parity
from tests.compiled import drop_all
from tests.golden_modules import pad
from tests.golden_modules.fields import Fields

FILES = sorted(parity.GOLDENS.rglob("*.npz"))


@pytest.fixture(autouse=True)
def drop_programs_of_cases():
    """Those of all cases would be gigabytes."""
    yield
    drop_all()


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


def reconfigured(path, folder, change):
    """The golden file with a config that `change` has changed in place."""
    meta = json.loads(str(np.load(path)["meta"]))
    change(meta["config"])
    return rewritten(path, folder, meta=json.dumps(meta))


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


def test_a_gradient_by_an_input_of_one_output_fails_the_case_where_its_numbers_count(tmp_path):
    path, key = parity.GOLDENS / "cfpt" / "losses.npz", "grad/giou/pred_boxes"
    with np.load(path) as file:
        wrong, excluded = file[key].copy(), file[key].copy()
    wrong[3, 0] += 1e-2
    verdict = parity.check(rewritten(path, tmp_path, **{key: wrong}))
    assert not verdict.passed
    assert "grad/giou/in/pred_boxes" in verdict.why
    excluded[0] += 1.0  # two equal boxes: the file's notes leave them out
    assert parity.check(rewritten(path, tmp_path, **{key: excluded})).passed


def test_a_missing_parameter_fails_the_case(block, tmp_path):
    with np.load(block) as file:
        arrays = {key: value for key, value in file.items() if key != "param/norm1.bias"}
    np.savez(tmp_path / "case.npz", **arrays)
    assert "missing" in parity.check(tmp_path / "case.npz").why


@pytest.mark.parametrize(
    ("case", "change", "unread"),
    [
        ("pad/rel_pos_index", lambda config: config.update(mirrored=True), "mirrored"),
        ("pad/rel_pos_index", lambda config: config.update(norm={"type": "LN"}), "norm"),
        (
            "rein/lr_warmup_poly",
            lambda config: config["schedulers"][1].update(by_epoch=True),
            "schedulers[1].by_epoch",
        ),
        (
            "rein/optim_groups",
            lambda config: config["custom_keys"]["norm"].update(flat=1, lr_mult=1.0),
            "custom_keys.norm.flat",
        ),
    ],
)
def test_a_field_that_the_builder_leaves_unread_fails_the_case(tmp_path, case, change, unread):
    verdict = parity.check(reconfigured(parity.GOLDENS / f"{case}.npz", tmp_path, change))
    assert not verdict.passed
    assert verdict.error <= 1.0
    assert verdict.why == f"unread in config: {unread}"


def test_a_value_without_an_option_fails_the_case_and_is_named(tmp_path):
    path = parity.GOLDENS / "pad" / "pos_embed_resize_up.npz"
    aligned = reconfigured(path, tmp_path, lambda config: config.update(align_corners=True))
    assert "align_corners is True" in parity.check(aligned).why
    other = reconfigured(path, tmp_path, lambda config: config.update(dim=13))
    assert "dim is 13; the rest of the case says 12" in parity.check(other).why


@pytest.mark.parametrize(
    "copy", [dict, lambda config: {**config}, lambda config: dict(config.items())]
)
def test_a_copy_of_a_config_does_not_count_as_read(tmp_path, monkeypatch, copy):
    path, module = parity.GOLDENS / "pad" / "rel_pos_index.npz", "RelativePositionBias.index"
    build = pad.MODULES[module]
    monkeypatch.setitem(pad.MODULES, module, lambda config, *rest: build(copy(config), *rest))
    assert "not copied or unpacked" in parity.check(path).why


def test_a_value_that_hides_a_field_does_not_read_it():
    config = Fields({"width": 8, "norm": {"eps": 1e-6, "type": "LN"}})
    over, under = config | {"width": 4}, {"width": 4, "depth": 2} | config
    assert (over["width"], under["depth"], config.unread()) == (4, 2, ["width", "norm"])
    assert (under["width"], over["norm"]["eps"]) == (8, 1e-6)
    assert config.unread() == ["norm.type"]


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
