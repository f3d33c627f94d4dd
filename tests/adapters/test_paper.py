"""What papers set otherwise: applied, with as many numbers as published, and documented."""

from pathlib import Path

import pytest
from flax import nnx

from tests.adapters.test_peft_zoo import BACKBONES, SMALL
from vadapt import adapters
from vadapt.adapters.paper import PAPER, paper, trainable
from vadapt.errors import ConfigError
from vadapt.partition import count, flatten, split

# Of conv_adapter with its norms, and of SSF, published; of others the published number of the
# method's own, and what the setting adds: norms of 25 places; a scale of each block less.
COUNTS = [
    ("conv_adapter", {"reduction": 4}, "convnext", 3_759_872),
    ("conv_adapter", {"reduction": 8}, "convnext", 2_362_816),
    ("conv_adapter", {"reduction": 4}, "resnet", 356_848),
    ("conv_adapter", {"reduction": 8}, "resnet", 199_192),
    ("houlsby", {}, "vit", 2_379_264 + 25 * 2 * 768),
    ("pro_tuning", {}, "vit", 14_413_836 - 12),
    ("ssf", {}, "vit", 205_824),
    # Three mergings each: a norm of 4 C and a layer to 2 C; a norm of C and a convolution to 2 C.
    ("ssf", {}, "swin", 267_264 + 2 * (4 + 2) * (128 + 256 + 512)),
    ("ssf", {}, "convnext", 255_232 + 2 * (1 + 2) * (128 + 256 + 512)),
]


@pytest.mark.parametrize(("name", "options", "backbone", "number"), COUNTS)
def test_as_many_numbers_train_as_in_the_paper(name, options, backbone, number):
    def build():
        return adapters.apply(BACKBONES[backbone](), name, **options, **paper(name))

    parts = split(nnx.eval_shape(build), trainable(name))
    assert count(parts.trainable) == number


class Holder(nnx.Module):
    def __init__(self, backbone):
        self.backbone = backbone


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("conv_adapter", "convnext"), ("houlsby", "vit"), ("pro_tuning", "vit"), ("ssf", "convnext")],
)
def test_a_setting_differs_from_the_defaults_with_or_without_a_head(name, backbone):
    def trained(wrap, options, what):
        model = wrap(adapters.apply(SMALL[backbone](), name, rngs=nnx.Rngs(0), **options))
        return {*flatten(split(model, what).trainable)}

    common = {"reduction": 2} if name == "conv_adapter" else {}
    own = trained(lambda model: model, common | paper(name), trainable(name))
    assert own != trained(lambda model: model, common, "default")
    inside = trained(Holder, common | paper(name), trainable(name))
    assert inside == {f"backbone/{path}" for path in own}


def test_every_setting_is_tried_and_documented():
    tried = {name for name, *_ in COUNTS}
    assert tried == {*PAPER}
    page = (Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
    table = page.partition("settings by name")[2].splitlines()
    for name, setting in PAPER.items():
        (row,) = [line for line in table if line.startswith(f"| `{name}` |")]
        if setting.trainable != "default":
            assert setting.trainable.replace("|", r"\|") in row
        for option, value in setting.options.items():
            assert f"{option}={value}".replace("'", '"') in row


def test_other_methods_are_as_in_their_papers_and_unknown_ones_are_refused():
    assert (paper("lora"), trainable("lora")) == ({}, "default")
    for ask in (paper, trainable):
        with pytest.raises(ConfigError, match="houlsby"):
            ask("houlsbi")
