"""How recipes are written, and that they keep the numbers that they had."""

import ast
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.recipes import config_of
from vadapt.command_line import help_of, load_config
from vadapt.errors import ConfigError
from vadapt.training.former_settings import comparable, modernize

ROOT = Path(__file__).parent.parent / "configs"
# The settings of recipes and their arguments before optimizers and schedules had names: those of
# the default argument whole, of others what differs; of long tuples their ends and length.
FORMER = json.loads((Path(__file__).parent / "recipes_of_0_1.json").read_text(encoding="utf-8"))
SINCE = {"eval.num_worst": 16}  # settings that there were none of, and their defaults
# Of images with labels.
LABELS_SINCE = {"data.split_seed": 0, "data.shots": 0, "data.shots_seed": 0, "data.class_half": ""}
CLASSIFICATION_SINCE = {"eval.features": []}
LONG = 20
ALIKE = 10  # lines in a row


def former(variant):
    """The former settings of a recipe with an argument, by dotted names."""
    settings = {**FORMER[variant.partition(":")[0] + ":"], **FORMER[variant]}
    gone = settings.pop("absent", ())
    return {name: value for name, value in settings.items() if name not in gone}


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        held = tree
        for section in sections:
            held = held.setdefault(section, {})
        held[last] = value
    return tree


def leaves(tree, prefix=""):
    if isinstance(tree, dict):
        return {k: v for name, x in tree.items() for k, v in leaves(x, f"{prefix}{name}.").items()}
    if isinstance(tree, list) and len(tree) > LONG:
        tree = f"{tree[0]} to {tree[-1]}, {len(tree)} values"
    return {prefix[:-1]: tree}


@pytest.mark.parametrize("name", sorted({variant.partition(":")[0] for variant in FORMER}))
def test_recipes_keep_their_numbers(name):
    """Those that there were; a later recipe's stand in a test of its own."""
    arguments = [v.partition(":")[2] for v in FORMER if v.partition(":")[0] == name]
    assert arguments[0] == ""
    for argument in arguments:
        kept = ("full", "run", "parallel", "baselines")  # sections that the file leaves out
        now = json.loads(json.dumps(config_of(name, argument).to_dict()))
        now = leaves(comparable({key: x for key, x in now.items() if key not in kept}))
        before = leaves(comparable(nested(former(f"{name}:{argument}"))))
        del now["data.path"], before["data.path"]  # of scenes it was where files would lie
        since = SINCE | (LABELS_SINCE if "data.num_labels" in before else {})
        if before["task.name"] == "classification":
            since = since | CLASSIFICATION_SINCE
        assert now == before | since, argument


def test_former_names_of_settings_are_understood():
    """In a recipe of one's own that is older than the names of today, and as a flag."""
    config = config_of("spm_ade20k", "scenes,rein")
    now = config.optimizer.to_dict()
    settings = nested(former("spm_ade20k:scenes,rein"))["optimizer"]
    config.optimizer = ConfigDict(settings)
    (note,) = modernize(config)
    assert "config.optimizer.base_lr, warmup_share, end_lr, power" in note
    assert modernize(config) == []
    pair = {"optimizer": now, "batch_size": 16}, {**config.to_dict(), "batch_size": 16}
    before, after = (leaves(comparable(each)["optimizer"]) for each in pair)
    assert json.loads(json.dumps(after)) == json.loads(json.dumps(before))
    with config.unlocked():
        config.optimizer.base_lr = 0.5
    modernize(config)
    assert (config.optimizer.lr, config.optimizer.lr_batch) == (0.5, 256)
    assert config.optimizer.schedule.name == "polynomial"


@pytest.mark.parametrize("folder", [ROOT.parent, None])
def test_recipes_go_by_name_in_any_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder or tmp_path)
    assert load_config("pad_msip:scenes").to_dict() == config_of("pad_msip", "scenes").to_dict()
    assert load_config("rein_gta").to_dict() == config_of("rein_gta").to_dict()
    assert help_of("pad_soda").startswith("PAD downstream, segmentation of SODA")
    assert load_config(str(ROOT / "rein_gta.py")).to_dict() == load_config("rein_gta").to_dict()
    for wrong in ("pad_mspi:scenes", "parts", ""):
        with pytest.raises(ConfigError, match=r"no config file .*'pad_msip'"):
            load_config(wrong)


def test_a_file_of_ones_own_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "from vadapt.configs import pad_soda\nget_config = pad_soda.get_config\n"
    (tmp_path / "rein_gta").write_text(own)
    assert load_config("rein_gta").to_dict() == config_of("pad_soda").to_dict()


def test_no_recipe_imports_another():
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and "configs" in (node.module or ""):
                names = {alias.name for alias in node.names}
                assert names == {"parts"} or node.module.startswith("vadapt.configs.parts"), path


def test_no_two_recipes_share_ten_lines_in_a_row():
    """Of code: what a docstring says, and empty lines, do not count."""
    places = {}
    for path in sorted(ROOT.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        body = source.split('"""', 2)[2].splitlines()
        code = [line.strip() for line in body if line.strip()]
        for start in range(len(code) - ALIKE + 1):
            places.setdefault(tuple(code[start : start + ALIKE]), set()).add(path.stem)
    alike = [(names, lines) for lines, names in places.items() if len(names) > 1]
    assert not alike
