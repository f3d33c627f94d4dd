"""What stands beside a frozen model: a class token drawn anew, and a side network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from vadapt import adapters
from vadapt.adapters.side import SideNetwork
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.partition import flatten, merge, split
from vadapt.weights.base import base_of

SIZE = {"width": 16, "depth": 2, "num_heads": 2, "image_size": 16}
CHANNELS = (4, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def plain():
    return vit("micro", **SIZE, num_registers=1, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (2, 16, 16, 3))


def test_the_class_token_starts_near_zero_at_its_position_and_takes_the_place(plain, images):
    model = adapters.apply(plain, "cls_reinit", rngs=nnx.Rngs(3))
    token = np.asarray(model.cls_reinit.token[...])
    drawn = token - plain.pos_embed[0]
    assert 0 < np.abs(drawn).max() < 1e-5
    emptied = nnx.clone(plain)
    emptied.cls_token[...] = jnp.zeros_like(emptied.cls_token[...])
    found, wanted = (compiled.run("__call__", one, images) for one in (model, emptied))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert np.abs(found - compiled.run("__call__", plain, images)).max() > 1e-3
    assert base_of(model) == base_of(plain)
    assert list(flatten(split(model).trainable)) == ["cls_reinit/token"]


def test_prompts_stand_behind_a_new_class_token(plain, images):
    model = adapters.apply(adapters.apply(plain, "cls_reinit"), "vpt", num_tokens=2)
    parts = split(model, "prompt")
    assert set(flatten(parts.trainable)) == {"cls_reinit/token", "vpt/prompts"}
    wanted = split(model, "prompt,cls").trainable
    assert set(flatten(wanted)) == {"cls_reinit/token", "vpt/prompts", "cls_token"}

    def loss(tree):
        return jnp.square(merge(parts.graph, tree, parts.frozen, parts.state)(images)[:, 1:]).sum()

    for path, slope in flatten(jax.jit(jax.grad(loss))(parts.trainable)).items():
        assert np.abs(slope).max() > 0, path


def test_a_norm_before_the_blocks_leaves_no_place_for_a_new_class_token():
    model = vit("micro", **SIZE, first_norm=True, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="a norm stands between class token and blocks"):
        adapters.apply(model, "cls_reinit")


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_side_network_is_mixed_with_what_the_norm_gives(alpha, plain, images):
    model = adapters.apply(plain, "side", channels=CHANNELS)
    model.side.alpha[...] = jnp.asarray(alpha)
    share = 1 / (1 + np.exp(-alpha))
    side = compiled.run("__call__", model.side.network, images)[:, None]
    tokens = compiled.run("__call__", plain, images)
    wanted = share * tokens + (1 - share) * np.broadcast_to(side, tokens.shape)
    found = compiled.run("__call__", model, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    last, first = compiled.run("features", model, images, layers=(1, 0))
    np.testing.assert_allclose(last, wanted, rtol=1e-5, atol=1e-5)
    before = compiled.run("features", plain, images, layers=0)
    np.testing.assert_allclose(first, before, rtol=1e-5, atol=1e-5)


def test_no_gradient_of_a_side_network_goes_through_frozen_blocks(images):
    model = adapters.apply(
        Swin(depths=(1, 1), width=4, num_heads=(1, 1), window=2, rngs=nnx.Rngs(0)),
        "side",
        channels=CHANNELS,
    )
    parts = split(model)

    def loss(tree, images):
        return merge(parts.graph, tree, parts.frozen, parts.state)(images).sum()

    def dots(function):
        return str(jax.make_jaxpr(function)(parts.trainable, images)).count("dot_general")

    # Only the mean over cells and the linear layer are products beside the backbone's own.
    assert dots(jax.grad(loss)) - dots(loss) <= 4


@pytest.mark.parametrize("size", [(224, 224), (100, 63), (16, 24)])
def test_a_side_network_takes_images_of_any_size(size):
    network = nnx.eval_shape(lambda: SideNetwork(10, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(network)
    given = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    found = jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, given)
    assert found.shape == (2, 10)


def test_what_does_not_fit_a_side_network_is_refused(plain):
    with pytest.raises(ConfigError, match="side has 5 convolutions, and channels"):
        adapters.apply(plain, "side", channels=(4, 4))
    size = {**SIZE, "patch_size": 8, "global_blocks": (1,), "neck": 8}
    with pytest.raises(ConfigError, match="SAMEncoder has one width before its neck"):
        adapters.apply(SAMEncoder(**size, rngs=nnx.Rngs(0)), "side")
