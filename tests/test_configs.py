"""Every config runs on the embedded scenes, two steps each, and says what it reproduces."""

import importlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.recipes import CONFIGS, DEAR, DISTINCT, assert_trains, config_of, shrunk
from vadapt.errors import ConfigError
from vadapt.partition import count, flatten, split
from vadapt.run import full_training, run
from vadapt.tasks import TASKS, make_task
from vadapt.tasks.segmentation import pixel_scores
from vadapt.training.optimizers import OptimizerSettings, make_optimizer, treatments
from vadapt.training.settings import check_settings

# Paradigms of the paper besides the default one, each an argument of pad_msip, and what trains of
# two blocks, with a decoder of one.
PARADIGMS = {
    "frozen": 311_360,
    "scratch": 311_360,
    "full_layer_decay": 311_360,
    "adapter_learnable_scale": 87_938,
}


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("name", [name for name in DISTINCT if name not in DEAR])
def test_every_config_trains_on_scenes(name, tmp_path):
    assert_trains(shrunk(name), tmp_path)


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("name", DEAR)
def test_every_config_with_a_dear_head_has_a_loss_on_scenes(name):
    """The weights load and a batch has a loss; test_recipes_whole.py trains them."""
    task = make_task(shrunk(name))
    graph, state = nnx.split(task.build())
    stream = task.stream()
    batch = next(stream)
    stream.close()

    @jax.jit
    def losses(state, batch):
        loss, terms = task.loss(nnx.merge(graph, state), batch, jax.random.key(0))
        return {"loss": loss, **terms}

    with jax.numpy_dtype_promotion("standard"):
        found = losses(state, batch)
    assert len(found) > 1
    assert all(jnp.isfinite(value) for value in found.values()), found
    assert found["loss"] > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_of_a_config_is_read(name):
    config = config_of(name)
    check_settings(config, TASKS[config.task.name])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("totl_steps", 3, "nothing reads config.totl_steps; nearest: 'total_steps'"),
        ("optimiser", {"lr": 3.0}, "nothing reads config.optimiser; nearest: 'optimizer'"),
        ("optimizer.weight_decays", 0.1, "adamw has no option 'weight_decays'; .*'weight_decay'"),
        ("optimizer.momentum", 0.9, "adamw has no option 'momentum'"),
        ("optimizer.schedule.warm_up", 0.1, "cosine has no option 'warm_up'; .*'warmup'"),
        ("optimizer.rules", ((".*", {"rat": 0.1}),), "rules: '.*' gives .*'rat'.* some of rate"),
        ("parallel.step.acumulate", 2, "config.parallel.step has no .*'accumulate'"),
        ("data.crop_aera", (0.2, 1.0), "config.data has no option 'crop_aera'; .*'crop_area'"),
        ("task.mask_ration", 0.5, "config.task has no option 'mask_ration'; .*'mask_ratio'"),
        ("eval.probe_scens", 8, "config.eval has no option 'probe_scens'; .*'probe_scenes'"),
        ("model.wieghts", "", "config.model has no option 'wieghts'; .*'weights'"),
        ("run.checkpoint_evry", 5, "config.run has no .*nearest: 'checkpoint_every'"),
    ],
)
def test_a_typo_in_a_recipe_is_refused(setting, value, message, tmp_path):
    config = shrunk("pad_msip")
    section, _, key = setting.rpartition(".")
    held = config
    for part in filter(None, section.split(".")):
        held = held[part]
    held[key] = value
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path)


WAYS = {"rein_gta": ["clip_l"], "spm_ade20k": ["rein"], "linear_dinov2": ["rein", "spm"]}


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize(
    ("name", "way"),
    [*((name, "") for name in DISTINCT), *((name, way) for name in WAYS for way in WAYS[name])],
)
def test_every_config_has_a_baseline(name, way):
    """Everything trains, without the method: model, loss and optimizer can be made."""
    config = full_training(shrunk(name, f"scenes,{way}".strip(",")))
    task = make_task(config)
    model = nnx.eval_shape(lambda: task.build(pretrained=False))
    parts = split(model, config.trainable)
    assert {path.split("/")[0] for path in flatten(parts.frozen)} <= {"teacher"}
    make_optimizer(config.optimizer, parts.trainable, lambda _: 0.1, total_steps=9)
    graph, state = nnx.split(model)

    def loss(state, batch):
        return task.loss(nnx.merge(graph, state), batch, jax.random.key(0))[0]

    with jax.numpy_dtype_promotion("standard"):
        assert jax.eval_shape(loss, state, task.batch_shapes()).shape == ()


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_papers_other_paradigms_are_arguments(paradigm, tmp_path):
    config = shrunk("pad_msip", f"scenes,{paradigm}")
    result = run(config, tmp_path, devices=jax.devices()[:1])
    assert result["steps"] == (0 if paradigm == "frozen" else 2)
    assert result["trainable_parameters"] == PARADIGMS[paradigm]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_says_what_it_is(name):
    text = importlib.import_module(f"vadapt.configs.{name}").__doc__
    assert "python -m vadapt.main" in text
    assert "scenes" in text


def test_paper_settings_are_the_papers():
    from vadapt.configs import pad_msip

    config = pad_msip.get_config()
    assert OptimizerSettings.of(config.optimizer).peak(config.batch_size) == pytest.approx(1.6e-3)
    assert config.total_steps == 100 * (178_756 // 4096)
    assert pad_msip.get_config("scratch").total_steps == 400 * (178_756 // 4096)
    assert pad_msip.get_config("full_layer_decay").optimizer.layer_decay == 0.7
    assert pad_msip.get_config("large").model.backbone == "vit_large"


def test_unknown_arguments_say_what_is_allowed():
    from vadapt.configs import pad_msip

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
    scores = jax.eval_shape(pixel_scores, model, images)
    assert scores.shape == (1, 512, 512, 19)


@pytest.mark.parametrize(("name", "number"), [("spm_ade20k", 483_138), ("spm_cityscapes", 432_441)])
def test_matchers_are_as_small_as_the_docs_say(name, number):
    model, config = model_of(name)
    parts = split(model, config.trainable)
    assert count(parts.trainable["backbone"]) == number
    found = treatments(OptimizerSettings.of(config.optimizer), parts.trainable)
    assert {found[path].rate for path in found if path.startswith("head/")} == {0.1}
    assert {found[path].rate for path in found if path.startswith("backbone/")} == {1.0}


def test_pads_segmenter_is_the_papers():
    model, config = model_of("pad_soda")
    parts = split(model, config.trainable)
    trained = parts.trainable
    assert count(trained["backbone"]) + count(trained["neck"]) == 95_331_648
    leaves = flatten(trained)
    found = treatments(OptimizerSettings.of(config.optimizer), trained)
    decayed = {path: bool(treatment.decay) for path, treatment in found.items()}
    by_axes = {path: leaf.ndim > 1 or path.endswith("cls_token") for path, leaf in leaves.items()}
    assert decayed == by_axes


def test_several_training_sets_and_test_sets_are_arguments():
    from vadapt.configs import rein_cityscapes, rein_gta

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
