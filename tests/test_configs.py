"""Every config runs on the embedded scenes, two steps each, and says what it reproduces."""

import importlib
import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.recipes import CONFIGS, DISTINCT, config_of
from vadapt.partition import count, flatten, split
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.training.optim import decay_mask, rate_factors
from vadapt.weights.adapter_file import read_info

# Paradigms of the paper besides the default one; each is an argument of pad_msip.
PARADIGMS = ["frozen", "scratch", "full_layer_decay", "adapter_learnable_scale"]


def shrunk(name, arg):
    """A config's version on scenes, as small as it gets."""
    config = config_of(name, arg)
    config.total_steps = min(config.total_steps, 2)
    config.batch_size = 8
    config.data.num_scenes = 16
    if "probe_scenes" in config.eval:
        config.eval.probe_scenes = 8
    for changes in config.get("test", {}).values():
        changes.num_scenes = 4
    if config.model.backbone == "vig_micro":  # two stages instead of four compile in half the time
        config.model.options.update(widths=(24, 48), depths=(1, 1), reductions=(2, 1))
        config.task.layers = (0, 1)[-len(config.task.layers) :]
        if "drop_path_rates" in config.head:
            config.head.drop_path_rates = (0.0, 0.0)
    config.run.log_every = config.run.checkpoint_every = 1
    return config


@pytest.mark.parametrize("name", DISTINCT)
def test_every_config_trains_on_scenes(name, tmp_path):
    config = shrunk(name, "scenes")
    result = run(config, tmp_path)
    assert result["steps"] == 2
    kinds = {"segmentation": "mean/miou", "multilabel": "clean/mAP", "classification": "clean/top1"}
    scores = {f"{kinds[config.task.name]}/adapted"} if "test" in config else {
        "probe/frozen", "probe/adapted"
    }  # fmt: skip
    assert {*scores, "trainable_parameters"} <= set(result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    info = read_info(tmp_path / "adapter.safetensors")
    assert info.backbone == config.model.backbone
    assert info.extra["options"] == json.loads(json.dumps(dict(make_task(config).backbone_options)))
    assert list((tmp_path / "pictures").glob("*.png"))
    assert (tmp_path / "model.safetensors").is_file() == bool(config.run.save_model)


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_papers_other_paradigms_are_arguments(paradigm, tmp_path):
    result = run(shrunk("pad_msip", f"scenes,{paradigm}"), tmp_path)
    assert result["steps"] == (0 if paradigm == "frozen" else 2)
    trains = {"frozen": None, "adapter_learnable_scale": 150_000}.get(paradigm, 808_704)
    if trains:
        assert result["trainable_parameters"] == pytest.approx(trains, rel=0.5)


@pytest.mark.parametrize("name", CONFIGS)
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


def model_of(name, arg=""):
    """The model that a config trains, by shapes alone, and the config."""
    config = config_of(name, arg)
    config.data.num_classes = {"spm_ade20k": 150, "pad_soda": 21}.get(name, 19)
    task = make_task(config)
    return nnx.eval_shape(lambda: task.build(pretrained=False)), config


def test_rein_trains_as_many_numbers_as_the_paper_says():
    model, config = model_of("rein_gta")
    parts = split(model, config.trainable)
    assert count(parts.trainable) == 23_569_877
    assert count(parts.trainable["backbone"]) == 2_990_081


@pytest.mark.parametrize("arg", ["clip_l", "sam_h", "clip_l,frozen"])
def test_reins_other_backbones_and_ways_are_arguments(arg):
    model, config = model_of("rein_gta", arg)
    images = jax.ShapeDtypeStruct((1, *config.data.image_size, 3), jnp.float32)
    scores = jax.eval_shape(lambda model, images: model.scores(images), model, images)
    assert scores.shape == (1, 512, 512, 19)


@pytest.mark.parametrize(("name", "number"), [("spm_ade20k", 483_138), ("spm_cityscapes", 432_441)])
def test_matchers_are_as_small_as_the_docs_say(name, number):
    model, config = model_of(name)
    parts = split(model, config.trainable)
    assert count(parts.trainable["backbone"]) == number
    rates = flatten(rate_factors(parts.trainable, config.optimizer.rates))
    assert {rate for path, rate in rates.items() if path.startswith("head/")} == {0.1}
    assert {rate for path, rate in rates.items() if path.startswith("backbone/")} == {1.0}


def test_pads_segmenter_is_the_papers():
    model, config = model_of("pad_soda")
    parts = split(model, config.trainable)
    trained = parts.trainable
    assert count(trained["backbone"]) + count(trained["neck"]) == 95_331_648
    leaves = flatten(trained)
    decayed = flatten(decay_mask(config.optimizer, trained))
    by_axes = {path: leaf.ndim > 1 or path.endswith("cls_token") for path, leaf in leaves.items()}
    assert decayed == by_axes


def test_several_training_sets_and_test_sets_are_arguments():
    from configs import rein_cityscapes, rein_gta

    config = rein_gta.get_config("synthia,acdc,bdd100k")
    config.root = "/sets"
    assert list(config.train) == ["gta", "synthia"]
    assert set(config.test) == {"acdc", "bdd100k"}
    assert config.train.synthia.path == "/sets/synthia"
    assert config.test.acdc.layout == "acdc"
    config = rein_cityscapes.get_config()
    assert config.train.cityscapes.split == "train"
    assert config.test.cityscapes.test_longest == 2048
    assert rein_cityscapes.get_config("small_crops").data.image_size == (512, 512)
