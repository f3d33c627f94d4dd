"""Methods that fold, after training: a plain backbone with the folded weights computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from vadapt import adapters
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.partition import flatten, merge, split, variables
from vadapt.weights.load import load_weights


def swin(depths, seed):
    heads = (2,) * len(depths)
    return Swin(depths=depths, width=8, num_heads=heads, window=2, rngs=nnx.Rngs(seed))


PLAIN = {
    "vit": lambda seed: vit("micro", width=16, depth=1, image_size=16, rngs=nnx.Rngs(seed)),
    "convnext": lambda seed: ConvNeXt(
        depths=(1, 1), widths=(4, 8), normed=(1,), layer_scale=1.0, rngs=nnx.Rngs(seed)
    ),
    "swin": lambda seed: swin((1,), seed),
}
# Of each method that folds, options; of LoRA also the layers of each backbone.
METHODS = {"ssf": {}, "svf": {}, "lora": {"rank": 2}, "dora": {"rank": 2, "dora": True}}
TARGETS = {"vit": ("q", "v", "fc2"), "convnext": ("dwconv", "fc1"), "swin": ("q", "proj", "fc1")}


def adapted(method, backbone):
    options = dict(METHODS[method])
    if "rank" in options:
        options["targets"] = TARGETS[backbone]
    name = "lora" if method == "dora" else method
    return adapters.apply(PLAIN[backbone](0), name, **options)


def trained(model, images):
    """Outputs after two steps of descent, and the folded weights."""
    parts = split(model)

    def at(trainable):
        return merge(parts.graph, trainable, parts.frozen, parts.state)

    @jax.jit
    def everything(trainable):
        goal = jax.random.normal(jax.random.key(1), jax.eval_shape(model, images).shape)

        def step(_, tree):
            gradient = jax.grad(lambda tree: ((at(tree)(images) - goal) ** 2).sum())(tree)
            return jax.tree.map(lambda x, slope: x - 0.05 * jnp.sign(slope), tree, gradient)

        tree = jax.lax.fori_loop(0, 2, step, trainable)
        folded = nnx.to_pure_dict(nnx.state(adapters.fold(at(tree), strict=True)))
        return at(tree)(images), folded

    return everything(parts.trainable)


@pytest.mark.parametrize("backbone", PLAIN)
@pytest.mark.parametrize("method", METHODS)
def test_what_two_steps_have_learned_folds_into_a_plain_backbone(method, backbone):
    images = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    wanted, folded = trained(adapted(method, backbone), images)
    plain = PLAIN[backbone](1)  # of other weights
    report = load_weights(plain, flatten(folded))
    assert set(report.loaded) == set(variables(plain))
    found = compiled.run("__call__", plain, images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.abs(found - compiled.run("__call__", PLAIN[backbone](0), images)).max() > 1e-2


def test_a_bias_that_a_fold_adds_is_refused_by_name_where_the_plain_layer_has_none():
    folded = adapters.fold(adapters.apply(swin((1, 1), 0), "ssf", targets=(".*",)))
    arrays = {path: np.asarray(value[...]) for path, value in variables(folded).items()}
    with pytest.raises(WeightsError, match=r"1 unexpected \(merges/0/reduction/bias\)"):
        load_weights(swin((1, 1), 1), arrays)
