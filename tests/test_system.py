"""One way from a config to a model: what is loaded where, in which order, for every task."""

import json
import re
import shutil
import warnings

import jax
import numpy as np
import pytest
from flax import nnx

from tests.recipes import CONFIGS, config_of
from tests.test_recipes import FORMER
from vadapt import models, system
from vadapt.adapters import adapt_from
from vadapt.backbones.named import HALF, IMAGENET, SCENES
from vadapt.configs import frpt_cub, gkgnet_coco, linear_dinov2, pad_msip, vig_imagenet, vtab
from vadapt.errors import ConfigError, WeightsError
from vadapt.heads import segmentation_head
from vadapt.partition import variables
from vadapt.system import System
from vadapt.tasks import TASKS, make_task
from vadapt.tasks.multilabel import MultilabelTask, warn_of_pixels
from vadapt.weights.adapter_file import save_adapter, save_model
from vadapt.weights.beside import Beside
from vadapt.weights.sources import ASSETS, arrays_of

MICRO = {"positions": "sincos"}


def values(model):
    return {path: np.asarray(value[...]) for path, value in variables(model).items()}


def adapting(config, **settings):
    """The same with LoRA in the backbone, and other settings of the model."""
    with config.unlocked():
        config.method = {"name": "lora", "rank": 2}
        config.model.update(settings)
    return config


def trained(model, shift=1.0):
    """The model as if its adapter had been trained."""
    for path, variable in variables(model).items():
        if "lora" in path:
            variable[...] = variable[...] + shift
    return model


def test_a_call_is_features_and_what_the_head_makes_of_them():
    config = linear_dinov2.get_config("scenes")
    make = system.with_head(config, lambda **options: segmentation_head(num_classes=3, **options))
    model = system.build(config, make, options=MICRO)
    assert isinstance(model, System)
    assert model.strides == (8,)
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    np.testing.assert_array_equal(model(images), model.decode(model.features(images)))


def test_a_backbone_alone_is_that_of_every_system():
    config = linear_dinov2.get_config("scenes")
    alone = values(system.build(config, options=MICRO))
    whole = values(make_task(config).build())
    for path, value in alone.items():
        np.testing.assert_array_equal(whole[f"backbone/{path}"], value, err_msg=path)
    assert all(path.startswith("head/") for path in whole if path[9:] not in alone)
    # Without files: other numbers of the same names.
    random = values(system.build(config, options=MICRO, pretrained=False))
    assert random.keys() == alone.keys()
    assert (random["blocks/0/mlp/inner/fc1/kernel"] != alone["blocks/0/mlp/inner/fc1/kernel"]).any()


@pytest.mark.parametrize("recipe", [linear_dinov2, gkgnet_coco, pad_msip])
def test_every_task_goes_on_from_an_adapter(recipe, tmp_path):
    arg = "scenes,frozen" if recipe is gkgnet_coco else "scenes"
    config = adapting(recipe.get_config(arg))
    task = make_task(config)
    model = trained(task.build())
    file = tmp_path / "adapter.safetensors"
    save_adapter(
        file, model.backbone, backbone=config.model.backbone, options=dict(task.backbone_options)
    )
    again = make_task(adapting(recipe.get_config(arg), adapter=str(file))).build()
    assert sum("lora" in path for path in values(again)) > 8
    found = values(again)
    for path, value in values(model).items():
        if not path.startswith("head/"):
            np.testing.assert_array_equal(found[path], value, err_msg=path)


def test_weights_of_an_adapted_model_bring_its_adapter_and_its_head(tmp_path):
    def config(**settings):
        return adapting(gkgnet_coco.get_config("scenes,frozen"), **settings)

    model, file = trained(make_task(config()).build()), tmp_path / "model.safetensors"
    save_model(file, model, "float32")
    loading = config(weights=str(file))
    loading.task.load_head = True
    again = make_task(loading).build()
    for path, value in values(model).items():
        np.testing.assert_array_equal(values(again)[path], value, err_msg=path)
    loading.model.update({"adapter": "other.safetensors"})
    with pytest.raises(ConfigError, match=r"other\.safetensors' goes on from"):
        make_task(loading).build()


def test_weights_of_a_plain_model_bring_its_decoder_and_no_less(tmp_path):
    config = pad_msip.get_config("scenes")
    model, arrays = values(make_task(config).build()), arrays_of(config.model.weights)
    name = "decoder/mask_token"
    np.testing.assert_array_equal(model[name], np.asarray(arrays[name]))
    save_model(tmp_path / "backbone.safetensors", make_task(config).build().backbone, "float32")
    config.model.weights = str(tmp_path / "backbone.safetensors")
    with pytest.raises(WeightsError, match="missing"):
        make_task(config).build()


def test_a_plan_of_the_config_is_that_of_the_backbone_and_of_its_adapter_file(tmp_path):
    options = {**MICRO, "depth": 2}
    settings = {"plan": "1,0", "weights": "", "options": options}
    config = adapting(linear_dinov2.get_config("scenes"), **settings)
    config.task.layers = (1,)
    task = make_task(config)
    model, images = trained(task.build(), 0.1), jax.random.normal(jax.random.key(0), (1, 8, 8, 3))

    def features(backbone):
        graph, state = nnx.split(backbone)
        return jax.jit(lambda state: nnx.merge(graph, state).features(images))(state)

    wanted = features(model.backbone)
    # What the file adapts runs as it was trained.
    file = tmp_path / "adapter.safetensors"
    save_adapter(file, task.export(model), backbone=config.model.backbone)
    plain = models.create("vit_micro", image_size=(64, 64), **options)
    again = adapt_from(plain, file)
    assert (again.plan, plain.plan) == ((1, 0), None)
    np.testing.assert_allclose(features(again), wanted, atol=1e-5)
    again.follow("")
    assert np.abs(features(again) - wanted).max() > 1e-3


def test_a_plan_that_cannot_be_run_is_refused_where_the_model_is_built():
    config = linear_dinov2.get_config("scenes")
    config.model.plan = "skip:3"
    with pytest.raises(ConfigError, match="start 3 of the middle of 6 blocks"):
        make_task(config).build(pretrained=False)
    staged = vig_imagenet.get_config("scenes")
    staged.model.plan = "skip:1"
    with pytest.raises(ConfigError, match="has stages, which run in their order alone"):
        make_task(staged).build(pretrained=False)


def test_adapters_in_blocks_that_a_plan_leaves_out_are_named():
    config = adapting(linear_dinov2.get_config("scenes"), plan="skip:1")
    with pytest.warns(UserWarning, match=r"leaves out blocks .* \(blocks/2/.*do nothing"):
        make_task(config).build(pretrained=False)


def micro_with_pixels(folder, statistics):
    """The shipped backbone, and a file beside it that says how images were normalized."""
    shutil.copy(ASSETS / "vit_micro_scenes.safetensors", folder / "model.safetensors")
    pixels = {"image_mean": statistics.mean, "image_std": statistics.std}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return str(folder / "model.safetensors")


def test_pixels_of_another_training_are_named_with_the_flags_that_take_the_files(tmp_path):
    config = vtab.get_config("scenes")
    config.model.weights = micro_with_pixels(tmp_path, HALF)
    config.data.update(IMAGENET._asdict())
    flags = '--config.data.mean="(0.5, 0.5, 0.5)" --config.data.std="(0.5, 0.5, 0.5)"'
    wanted = rf"\(0\.485, .* trained with \(0\.5, .*{re.escape(flags)}"
    with pytest.warns(UserWarning, match=wanted) as found:
        make_task(config).build()
    assert len(found) == 1
    config.data.update(HALF._asdict())
    with warnings.catch_warnings(action="error"):
        make_task(config).build()


# What files beside the weights of recipes say, by the start of their names.
PIXELS = {
    "hf:timm/vit_base_patch16_224.augreg_in21k": HALF,
    "hf:timm/resnet50.tv_in1k": IMAGENET,
    "hf:facebook/": IMAGENET,
    "vit_micro_scenes": SCENES,
}


@pytest.fixture
def warnings_of(monkeypatch):
    """How often a config is warned of, where files beside its weights say what is published."""

    def said(weights):
        found = [own for start, own in PIXELS.items() if weights.startswith(start)]
        assert found or not weights.startswith("hf:"), weights
        return Beside(statistics=found[0] if found else None)

    def warnings_of(config):
        with warnings.catch_warnings(record=True, action="always") as found:
            warn_of_pixels(config)
        return len(found)

    monkeypatch.setattr(models, "beside_of", said)
    return warnings_of


@pytest.mark.parametrize("name", ["frpt_cub", "gkgnet_coco", "gkgnet_voc", "vig_imagenet", "vtab"])
def test_recipes_of_labels_as_published_raise_no_alarm(name, warnings_of):
    former = [v.partition(":")[2] for v in FORMER if v.partition(":")[0] == name]
    since = {"vtab": ["mae", "dinov2", "kitti,lora"], "frpt_cub": ["cars"]}.get(name, [])
    for argument in {"", "scenes", *former, *since}:
        config = config_of(name, argument)
        assert issubclass(TASKS[config.task.name], MultilabelTask)
        assert warnings_of(config) == 0, argument


def test_no_other_recipe_is_of_labels():
    labelled = [
        name for name in CONFIGS if issubclass(TASKS[config_of(name).task.name], MultilabelTask)
    ]
    assert labelled == ["frpt_cub", "gkgnet_coco", "gkgnet_voc", "vig_imagenet", "vtab"]


def test_pixels_of_another_backbone_or_of_ones_own_colors_raise_one(warnings_of):
    for argument in ("imagenet", "mae,half", "dinov2,half"):
        assert warnings_of(vtab.get_config(argument)) == 1, argument
    assert warnings_of(vtab.get_config("mae,imagenet")) == 0
    own = frpt_cub.get_config()
    own.data.mean = (0.45, 0.5, 0.41)
    assert warnings_of(own) == 1
    own.data.mean, own.data.std = (0.38,) * 3, (0.187,) * 3  # infrared's
    assert warnings_of(own) == 0
    own.data.mean, own.data.std = HALF  # another backbone's
    assert warnings_of(own) == 1
