"""Heads of labels that read the class token, and VPT's classifier."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from tests.golden_modules.fields import Fields
from tests.golden_modules.pad_models import nhwc
from tests.golden_modules.peft_vpt import prompted_vit
from tests.parity import GOLDENS, Golden
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.heads import label_head
from vadapt.partition import Head, count, split
from vadapt.system import System

SIZE = {"width": 16, "depth": 2, "num_heads": 2, "image_size": 16}


@pytest.fixture(scope="module")
def backbone():
    return vit("micro", **SIZE, num_registers=2, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 16, 16, 3))


def scores(model, images):
    return model(images).logits


@pytest.mark.parametrize(
    ("name", "norm"), [("linear", True), ("vpt_classifier", True), ("vpt_classifier", False)]
)
def test_the_class_token_is_what_the_backbone_gives_as_its_first(name, norm, backbone, images):
    head = label_head(name, [16], 5, pool="cls", rngs=nnx.Rngs(2))
    model = System(backbone, head, layers=(-1,), norm=norm)
    features = compiled.run("features", backbone, images, norm=norm)
    wanted = features[:, 0]
    if name == "linear":
        wanted = head.norm(wanted)
    found = compiled.run(scores, model, images)
    np.testing.assert_allclose(found, head.linear(wanted), rtol=1e-5, atol=1e-5)
    other = head.linear(features.mean(axis=1))
    assert np.abs(found - other).max() > 1e-3


def test_a_backbone_without_a_class_token_is_refused_by_name(images):
    plain = Swin(depths=(1,), width=4, num_heads=(1,), window=2, rngs=nnx.Rngs(0))
    for name, options in (("linear", {"pool": "cls"}), ("vpt_classifier", {})):
        head = label_head(name, [4], 5, **options, rngs=nnx.Rngs(0))
        model = System(plain, head, layers=(0,))
        with pytest.raises(ConfigError, match=r"pool 'cls' .* choose 'img_pool'"):
            jax.eval_shape(lambda x, model=model: model(x).logits, images)


def test_a_new_classifier_gives_each_label_a_hundredth_and_has_the_published_spread():
    head = label_head("vpt_classifier", [64], 400, rngs=nnx.Rngs(0))
    assert count(split(head, Head).trainable) == 65 * 400
    np.testing.assert_allclose(head.linear.bias[...], -math.log(99), rtol=1e-6)
    kernel = np.asarray(head.linear.kernel[...])
    assert abs(kernel.mean()) < 0.002
    np.testing.assert_allclose(kernel.std(), math.sqrt(2 / 400), rtol=0.02)


def test_hidden_layers_are_dropped_out_in_training_alone():
    head = label_head("vpt_classifier", [16], 5, num_hidden=2, dropout=0.5, rngs=nnx.Rngs(0))
    assert count(split(head, Head).trainable) == 2 * (17 * 16 + 2 * 16) + 17 * 5
    token = jax.random.normal(jax.random.key(3), (4, 16))

    map_ = jnp.zeros((4, 1, 1, 16))

    def call(key=None):
        return jax.jit(lambda x: head([map_], class_token=x, key=key).logits)(token)

    x = token
    for linear, norm in zip(head.hidden, head.norms, strict=True):
        x = norm(jax.nn.relu(linear(x)))
    np.testing.assert_allclose(call(), head.linear(x), rtol=1e-5, atol=1e-5)
    assert np.abs(call(jax.random.key(0)) - call()).max() > 1e-3
    assert np.abs(call(jax.random.key(0)) - call(jax.random.key(1))).max() > 1e-3


@pytest.mark.parametrize("case", ["vpt_shallow", "vpt_deep", "vpt_deep_project"])
def test_logits_are_those_of_vpts_code(case):
    golden = Golden.read(GOLDENS / "peft_zoo" / f"{case}.npz")
    params = jax.tree.map(jnp.asarray, golden["param"])
    model = prompted_vit(Fields(golden.meta["config"]), params)
    head = label_head("vpt_classifier", [model.width], len(params["head.bias"]), rngs=nnx.Rngs(0))
    head.linear.kernel[...] = params["head.weight"].T
    head.linear.bias[...] = params["head.bias"]
    system = System(model, head, layers=(-1,), norm=True)
    found = compiled.run(scores, system, nhwc(golden["in"]["x"]))
    np.testing.assert_allclose(found, golden["out"]["logits"], rtol=1e-4, atol=2e-5)
