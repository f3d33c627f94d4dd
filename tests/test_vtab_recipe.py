"""The recipe of VTAB-1k: SSF's table, the arguments, and what each method trains."""

import numpy as np
import pytest
from flax import nnx

from tests.data.test_transfer_sets import write_vtab
from vadapt import models
from vadapt.configs import vtab
from vadapt.data import pipeline
from vadapt.data.vtab import TASKS
from vadapt.partition import count, split
from vadapt.tasks import image_labels, make_task
from vadapt.training.optimizers import OptimizerSettings
from vadapt.training.schedules import make_schedule
from vadapt.weights.load import load_weights


def test_ssfs_settings_of_a_task_are_its_authors():
    # In SSF's order, "1e-3,5e-2,.1; ...".
    table = """
        caltech101 1e-3,5e-2,.1; cifar 5e-3,5e-5,0; clevr_count 2e-3,5e-2,.1;
        clevr_dist 5e-2,5e-2,.1; diabetic_retinopathy 5e-3,5e-5,.2; dmlab 5e-3,5e-5,.1;
        dsprites_loc 1e-2,5e-5,0; dsprites_ori 5e-3,5e-5,.2; dtd 5e-3,5e-5,0; eurosat 3e-3,5e-2,.2;
        oxford_flowers102 5e-3,5e-5,0; kitti 1e-2,5e-5,0; patch_camelyon 5e-3,5e-5,0;
        oxford_iiit_pet 5e-3,5e-5,0; resisc45 2e-3,5e-5,.1; smallnorb_azi 2e-2,5e-5,.1;
        smallnorb_ele 5e-3,5e-2,.2; sun397 5e-3,5e-5,0; svhn 1e-2,5e-5,0
    """
    rows = [row.split() for row in table.split(";")]
    assert {name for name, _ in rows} == {*TASKS}
    for name, numbers in rows:
        config = vtab.get_config(name)
        found = config.optimizer.lr, config.optimizer.weight_decay
        assert (*found, config.model.options.drop_path_rate) == tuple(
            map(float, numbers.split(","))
        )
        assert (config.data.layout, config.data.num_labels) == (
            f"vtab_{name}",
            TASKS[name].num_classes,
        )


def test_the_course_is_a_hundred_epochs_and_ten_of_the_last_rate():
    config = vtab.get_config("svhn")
    epoch = 1000 / 64
    assert config.total_steps == pytest.approx(110 * epoch, abs=1)
    settings = OptimizerSettings.of(config.optimizer)
    rate = make_schedule(settings.schedule, settings.peak(64), config.total_steps)
    assert float(rate(0)) == pytest.approx(1e-7, rel=1e-3)
    assert float(rate(5 * epoch)) == pytest.approx(0.005, rel=1e-2)
    # Behind the warm-up, a cosine that began at the first step.
    assert float(rate(10.01 * epoch)) == pytest.approx(0.00976, rel=1e-2)
    assert float(rate(50 * epoch)) == pytest.approx(0.005, rel=1e-2)
    assert float(rate(101 * epoch)) == pytest.approx(1e-8, rel=1e-2)


@pytest.mark.parametrize(
    ("arg", "trained"),
    [
        ("cifar", 205_824),
        ("cifar,linear", 0),
        ("cifar,vpt", 92_160),
        ("cifar,cls_reinit+vpt", 92_160 + 768),
        ("cifar,lora", 294_912),
        ("cifar,adaptformer", 1_189_632),
        ("kitti,ssf,dinov2", 205_824),
    ],
)
def test_methods_train_as_many_numbers_as_their_papers_say(arg, trained):
    config = vtab.get_config(arg)
    task = make_task(config)
    model = nnx.eval_shape(lambda: task.build(pretrained=False))
    parts = split(model, config.trainable)
    assert count(parts.trainable.get("backbone", {})) == trained
    classes = TASKS[arg.partition(",")[0]].num_classes
    assert parts.trainable["head"]["linear"]["kernel"].shape == (768, classes)


def timm_vit(d=96, depth=6):
    """The micro ViT with a classifier, in timm's names."""
    layers = {"patch_embed.proj": (d, 3, 8, 8), "norm": (d,), "head": (9, d)}
    for block in (f"blocks.{number}." for number in range(depth)):
        layers |= {f"{block}norm1": (d,), f"{block}norm2": (d,), f"{block}attn.qkv": (3 * d, d)}
        layers |= {f"{block}attn.proj": (d, d), f"{block}mlp.fc1": (4 * d, d)}
        layers[f"{block}mlp.fc2"] = (d, 4 * d)
    arrays = {f"{name}.weight": np.ones(shape, "f4") for name, shape in layers.items()}
    arrays |= {f"{name}.bias": np.ones(shape[0], "f4") for name, shape in layers.items()}
    return arrays | {
        "cls_token": np.ones((1, 1, d), "f4"),
        "pos_embed": np.ones((1, 65, d), "f4"),
    }


def test_files_of_augreg_may_have_their_classifier():
    allowed = vtab.get_config("cifar").model.allow_unexpected
    model = models.create("vit_micro")
    load_weights(model, timm_vit(), allow_unexpected=allowed)
    assert model.cls_token[...].min() == 1


def test_pixels_are_those_of_the_checkpoint_unless_others_are_named():
    half, imagenet = {"mean": (0.5,) * 3, "std": (0.5,) * 3}, vtab.PIXELS["imagenet"]
    for arg, wanted in {
        "augreg": half,
        "augreg,checkpoint": half,
        "augreg,imagenet": imagenet,
        "mae": imagenet,
        "dinov2": imagenet,
        "dinov2,half": half,
    }.items():
        data = vtab.get_config(arg).data
        assert {"mean": data.mean, "std": data.std} == wanted, arg
    for name in ("mae", "dinov2"):
        known = models.statistics(vtab.BACKBONES[name][0])
        assert (known.mean, known.std) == (imagenet["mean"], imagenet["std"])


def test_the_class_token_is_read_of_backbones_that_were_trained_with_it():
    pools = {"augreg": "cls", "mae": "img_pool", "dinov2": "img_pool", "scenes": "img_pool"}
    assert {arg: vtab.get_config(arg).head.pool for arg in pools} == pools


def test_training_and_test_images_are_those_of_the_protocol(tmp_path):
    write_vtab(tmp_path / "eurosat")
    for arg, train, test in (
        ("eurosat", "train800val200", "test"),
        ("eurosat,search", "train800", "val200"),
    ):
        config = vtab.get_config(arg)
        config.data.path = str(tmp_path)
        source = pipeline.training_source(config, image_labels.FIELDS)
        (tested,) = pipeline.evaluation_sets(config, "test").values()
        there = pipeline.make_source(tested, image_labels.FIELDS, classes=source.classes)
        assert (source.split, there.split) == (train, test)
        assert len(source.classes) == config.data.num_labels == 10


def test_unknown_arguments_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"unknown argument \['cifar100'\]; allowed: caltech101,"):
        vtab.get_config("cifar100")


def test_neighbors_and_a_probe_train_nothing_and_may_be_asked_for_together():
    config = vtab.get_config("eurosat,knn")
    assert (config.total_steps, config.method.name) == (0, "none")
    assert config.eval.features == ("knn",)
    assert vtab.get_config("scenes,probe,knn").eval.features == ("probe", "knn")
    assert vtab.get_config("scenes").eval.features == ()
