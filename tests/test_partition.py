"""The partition: what trains, what does not, and how patterns are checked."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiled import run
from vadapt import adapters
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.partition import (
    DEFAULT,
    Adapter,
    Head,
    count,
    flatten,
    mark,
    merge,
    split,
    summary,
    variables,
)


class Classifier(nnx.Module):
    """A grafted micro ViT under a linear head."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        plain = vit("micro", depth=2, image_size=16, positions="sincos", rngs=rngs)
        self.backbone = adapters.apply(plain, "patchwise_scale", hidden=4)
        self.head = mark(nnx.Linear(96, 3, rngs=rngs), Head)

    def __call__(self, images):
        return self.head(self.backbone(images).mean(1))


@pytest.fixture(scope="module")
def model():
    return Classifier()


def test_default_trains_adapters_and_head_only(model):
    parts = split(model)
    names = set(flatten(parts.trainable))
    assert names == {
        name
        for name in variables(model)
        if "/adapter/" in name or "/gate/" in name or "head" in name
    }
    assert count(parts.trainable) + count(parts.frozen) == count(
        jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    )
    assert set(flatten(parts.state)) == {"backbone/pos_embed"}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("everything", lambda name: True),
        ("head", lambda name: name.startswith("head")),
        ("biases", lambda name: name.endswith("bias")),
        (r"backbone/blocks/1/.*", lambda name: name.startswith("backbone/blocks/1/")),
        (["biases", Head], lambda name: name.endswith("bias") or name.startswith("head")),
        ("biases,head", lambda name: name.endswith("bias") or name.startswith("head")),
        ("(biases, 'head')", lambda name: name.endswith("bias") or name.startswith("head")),
        (r"(.*/bias|head/.*){1,2}", lambda name: name.endswith("bias") or name.startswith("head")),
        (Adapter, lambda name: "/adapter/" in name or "/gate/" in name),
        (lambda path, value: path[-1] == "cls_token", lambda name: name.endswith("cls_token")),
    ],
    ids=[
        *("everything", "head", "biases", "pattern", "list", "flag", "tuple", "braces"),
        *("type", "function"),
    ],
)
def test_filters_select_what_they_say(model, trainable, expected):
    parts = split(model, trainable)
    every = {**flatten(parts.trainable), **flatten(parts.frozen)}
    assert set(flatten(parts.trainable)) == {name for name in every if expected(name)}
    assert parts.trainable


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("bias", ".*/bias"),
        ("norm", "(.*/)?norms?/.*"),
        ("cls", "backbone/cls_token"),
        ("adapter", ".*/(adapter|gate)/.*"),
        ("partial-1", r"backbone/(blocks/1|norm)/.*"),
        ("partial-2", r"backbone/(blocks/[01]|norm)/.*"),
        ("cls,partial-1", r"backbone/(blocks/1/.*|norm/.*|cls_token)"),
    ],
)
def test_names_of_tuning_modes_select_what_they_say(model, name, pattern):
    parts = split(model, name)
    every = {**flatten(parts.trainable), **flatten(parts.frozen)}
    assert set(flatten(parts.trainable)) == {path for path in every if re.fullmatch(pattern, path)}
    assert parts.trainable


def test_the_last_blocks_count_through_stages():
    sizes = {"depths": (2, 1), "width": 4, "num_heads": (1, 1), "window": 2}
    swin = Swin(**sizes, rngs=nnx.Rngs(0))
    found = {re.sub("/(attn|mlp|scale|bias).*", "", path) for path in flatten(
        split(swin, "partial-2").trainable
    )}  # fmt: skip
    assert found == {"stages/0/1", "stages/1/0", "norms/1"}
    with pytest.raises(ConfigError, match="partial-4 of a model of 3 blocks"):
        split(swin, "partial-4")


def test_pattern_without_match_lists_the_nearest_paths(model):
    with pytest.raises(ConfigError, match="backbone/blocks/0/attn/inner/qkv/kernel"):
        split(model, "backbone/blocks/0/attn/qkv/kernel")


def test_merge_undoes_split(model):
    images = np.ones((1, 16, 16, 3), np.float32)
    again = merge(*split(model))
    assert np.array_equal(run("__call__", again, images), run("__call__", model, images))
    assert type(again.head.kernel) is Head


def test_gradients_exist_for_trainable_leaves_only(model):
    parts = split(model)

    def loss(trainable):
        return merge(parts.graph, trainable, parts.frozen, parts.state)(
            jnp.ones((1, 16, 16, 3))
        ).sum()

    gradients = jax.eval_shape(jax.grad(loss), parts.trainable)
    assert set(flatten(gradients)) == set(flatten(parts.trainable))


def test_summary_counts_everything_once(model):
    lines = summary(model, DEFAULT, depth=2).splitlines()
    rows = [line.split() for line in lines[1:-1]]
    trains = sum(int(row[-2].replace(",", "")) for row in rows)
    frozen = sum(int(row[-1].replace(",", "")) for row in rows)
    parts = split(model)
    assert (trains, frozen) == (count(parts.trainable), count(parts.frozen))
    assert lines[-1].startswith(f"trainable: {trains:,} of {trains + frozen:,} parameters")
