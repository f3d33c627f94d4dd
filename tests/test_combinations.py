"""Parts put together by flags that no recipe puts together: they work, or one line says why."""

import jax
import pytest
from flax import nnx

from tests.recipes import two_blocks  # noqa: F401
from vadapt import tasks
from vadapt.command_line import change, describe, load_config, split_options
from vadapt.errors import ConfigError, VadaptError

PAD, LINEAR, SPM = "pad_msip:scenes", "linear_dinov2:scenes", "spm_ade20k:scenes"
LORA = ["config.method.name=lora", "config.method.rank=4"]
# Recipe, flags, what is dropped, and what is said, "" where it works.
CASES = [
    (PAD, LORA, "", "lora has no option 'fusion', .*--drop=method.fusion"),
    (PAD, LORA, "method.fusion,method.hidden,method.scale", ""),
    (PAD, ["config.method.name=rein"], "method.fusion,method.hidden,method.scale", ""),
    (PAD, ["config.method.name=spm"], "method.fusion,method.scale", "spm needs num_classes"),
    (LINEAR, ["config.method.name=spm"], "", ""),
    (LINEAR, ["config.method.name=lora", "config.method.rnk=4"], "", "nearest: 'rank'"),
    (LINEAR, ["config.method.name=lora", "config.method.rank=four"], "", "rank='four' is no int"),
    (LINEAR, ["config.head.name=upernet"], "", "upernet fuses maps of several sizes"),
    (LINEAR, ["config.head.name=mask2former"], "", "strides 4, 8, 16 and 32 are needed, got 1"),
    (SPM, ["config.model.backbone=convnext_tiny"], "", "'positions'.*--drop=model.options.pos"),
    (SPM, ["config.model.backbone=convnext_tiny", "config.task.layers=0,1,2,3",
           "config.neck.name=deconvolutions"], "model.options.positions",
     "strides out of maps of one; these have 4, 8, 16, 32 already: --config.neck.name=none"),
    (SPM, ["config.head.name=linear"], "", "linear has no option .*'average_all'"),
    (SPM, ["config.head.name=mask2former", "config.head.linked=True", "config.head.width=32",
           "config.head.outputs=32", "config.head.depth=1", "config.head.encoder_depth=1"],
     "head.average_all,head.auxiliary_channels,head.channels",
     "this head has no queries: call it with some, as Rein gives them"),
    ("pad_soda:scenes", ["config.head.name=linear"], "", "--drop=head"),
    ("vig_imagenet:scenes", ["config.method.name=spm", "config.method.hidden=4"], "", ""),
    ("vig_imagenet:scenes", ["config.model.backbone=vit_micro"], "", "--drop=model.options.groups"),
]  # fmt: skip


def built(recipe, flags, dropped):
    """A recipe's task, as main makes it of these flags."""
    file, _, argument = recipe.partition(":")
    name = f"configs/{file}.py:{argument}"
    kept, added = split_options([f"--config={name}", *(f"--{flag}" for flag in flags)])
    config = load_config(name)
    for flag in kept[1:]:
        key, _, value = flag.removeprefix("--config.").partition("=")
        default = config
        for part in key.split("."):
            default = default[part]
        if isinstance(default, tuple):
            value = tuple(map(int, value.split(",")))
        config.update_from_flattened_dict({key: value})
    change(config, added, [name for name in dropped.split(",") if name])
    task = tasks.make_task(config)

    def loss():
        model = task.build(pretrained=False)
        batch = {k: jax.numpy.zeros(x.shape, x.dtype) for k, x in task.batch_shapes().items()}
        return task.loss(model, batch, jax.random.key(0))[0]

    return nnx.eval_shape(loss)


@pytest.mark.parametrize(("recipe", "flags", "dropped", "said"), CASES)
def test_what_is_combined_works_or_is_refused_in_one_line(recipe, flags, dropped, said):
    if not said:
        assert built(recipe, flags, dropped).shape == ()
        return
    with pytest.raises(VadaptError, match=said) as refused:
        built(recipe, flags, dropped)
    assert "\n" not in describe(refused.value)


def test_what_is_not_there_cannot_be_dropped():
    with pytest.raises(ConfigError, match=r"--drop=method\.fusoin: no such setting; .*fusion"):
        built(PAD, [], "method.fusoin")
