"""Every config runs on the embedded scenes, two steps each, and says what it reproduces."""

import importlib
import json
from pathlib import Path

import pytest

from vadapt.run import run

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
# Paradigms of the paper besides the default one; each is an argument of pad_msip.
PARADIGMS = ["frozen", "scratch", "full_layer_decay", "adapter_learnable_scale"]


def shrunk(name, arg):
    """A config's version on scenes, as small as it gets."""
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    config.total_steps = min(config.total_steps, 2)
    config.batch_size = 8
    config.data.num_scenes = 16
    if "probe_scenes" in config.eval:
        config.eval.probe_scenes = 8
    for changes in config.get("test", {}).values():
        changes.num_scenes = 4
    config.run.log_every = config.run.checkpoint_every = 1
    return config


@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_on_scenes(name, tmp_path):
    config = shrunk(name, "scenes")
    result = run(config, tmp_path)
    assert result["steps"] == 2
    scores = {"mean/miou/adapted"} if "test" in config else {"probe/frozen", "probe/adapted"}
    assert {*scores, "trainable_parameters"} <= set(result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert (tmp_path / "adapter.safetensors").is_file()
    assert list((tmp_path / "pictures").glob("*.png"))
    assert (tmp_path / "model.safetensors").is_file() == bool(config.run.save_model)


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_papers_other_paradigms_are_arguments(paradigm, tmp_path):
    result = run(shrunk("pad_msip", f"scenes,{paradigm}"), tmp_path)
    assert result["steps"] == (0 if paradigm == "frozen" else 2)
    trains = {"frozen": None, "adapter_learnable_scale": 150_000}.get(paradigm, 808_704)
    if trains:
        assert result["trainable_parameters"] == pytest.approx(trains, rel=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_what_it_is(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert "python -m vadapt.main" in text
    assert "scenes" in text


def test_paper_settings_are_the_papers():
    from configs import pad_msip

    config = pad_msip.get_config()
    peak = config.optimizer.base_lr * config.batch_size / 256
    assert peak == pytest.approx(1.6e-3)
    assert config.total_steps == 100 * (178_756 // 4096)
    assert pad_msip.get_config("scratch").total_steps == 400 * (178_756 // 4096)
    assert pad_msip.get_config("full_layer_decay").optimizer.layer_decay == 0.7
    assert pad_msip.get_config("large").model.backbone == "vit_large"


def test_unknown_arguments_say_what_is_allowed():
    from configs import pad_msip

    with pytest.raises(ValueError, match="full_layer_decay"):
        pad_msip.get_config("scenes,ful")
