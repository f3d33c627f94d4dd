"""Sites and surgery: methods take hold of any model, by name, role or path."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.compiled import run
from vadapt.adapters.lora import Lora
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.swin import Swin
from vadapt.backbones.vig import ViG
from vadapt.backbones.vit import ViT
from vadapt.errors import ConfigError
from vadapt.nn.blocks import Branch
from vadapt.nn.sites import sites
from vadapt.partition import Adapter, flatten, split, variables

SIZE = {"width": 8, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": (16, 24)}


def plain(**options):
    return ViT(**{**SIZE, **options}, rngs=nnx.Rngs(0))


class Own(nnx.Module):
    """A user's model: every kind of layer, in containers of every kind."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        grouped = nnx.Conv(4, 8, (3, 3), strides=2, feature_group_count=2, rngs=rngs)
        self.stem = nnx.Sequential(conv, nnx.relu, grouped)
        self.heads = nnx.Dict(
            spread=nnx.LinearGeneral(8, (2, 4), rngs=rngs),
            gather=nnx.LinearGeneral((2, 4), 6, axis=(-2, -1), rngs=rngs),
        )
        self.last = nnx.List([nnx.Einsum("nhwa,ba->nhwb", (5, 6), (5,), rngs=rngs)])

    def __call__(self, images):
        x = self.heads["gather"](self.heads["spread"](self.stem(images)))
        return self.last[0](x)


MODELS = {
    "gated": (lambda: plain(swiglu=True), ("fc1", "mlp_out", "q")),
    "convnext": (
        lambda: ConvNeXt(
            depths=(1, 1), widths=(4, 8), normed=(1,), layer_scale=1.0, rngs=nnx.Rngs(0)
        ),
        ("dwconv", "mlp_in"),
    ),
    "resnet": (lambda: ResNet(18, base_width=4, rngs=nnx.Rngs(0)), ("stages/[01]/.*/conv",)),
    "swin": (
        lambda: Swin(depths=(2, 2), width=4, num_heads=(1, 2), window=2, rngs=nnx.Rngs(0)),
        ("fc1", "q"),
    ),
    "vig": (
        lambda: ViG(
            widths=(8, 16), depths=(1, 1), reductions=(1, 1), image_size=(16, 24), k=2,
            rngs=nnx.Rngs(0),
        ),
        (".*/fc1/linear",),
    ),
    "own": (Own, (r"stem/.*", "spread", "gather", r"last/\d")),
}  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 24, 3)), jnp.float32)


def call(model, images):
    return model(images)


def trained(model):
    """The model with random numbers where LoRA starts at zero."""
    rng = np.random.default_rng(2)
    for _, node in nnx.iter_graph(model):
        if isinstance(node, Lora):
            up = rng.normal(size=node.lora.up.shape, scale=0.3)
            node.lora.up[...] = jnp.asarray(up, jnp.float32)
    return model


def test_sites_say_what_they_are_wherever_they_stand():
    found = {site.path: (site.kind, site.roles) for site in plain().sites()}
    assert found["blocks/1"] == ("block", ())
    assert found["blocks/1/attn"] == ("branch", ("attention",))
    assert found["blocks/0/attn/inner/qkv"] == ("linear", ("q", "k", "v"))
    assert found["blocks/0/mlp/inner/fc2"] == ("linear", ("mlp_out",))
    assert found["blocks/0/mlp/norm"] == ("norm", ())
    assert found["patch_embed/proj"] == ("conv", ("input",))
    gated = {site.path: site.roles for site in sites(plain(swiglu=True), "linear")}
    assert gated["blocks/0/mlp/inner/w12"] == ("mlp_in",)
    own = {site.path: site.kind for site in sites(Own())}
    assert sorted(own.values()) == ["conv", "conv", "linear", "linear", "linear"]
    assert "last/0" in own


@pytest.mark.parametrize("name", ["gated", "own"])  # test_matrix.py has the backbones
def test_lora_goes_onto_any_model_and_folds_into_it(name, images):
    build, targets = MODELS[name]
    model = build()
    before = {path: value.shape for path, value in variables(model).items()}
    adapted = vadapt.adapt(model, "lora", rank=2, targets=targets)
    assert set(flatten(split(adapted).frozen)) == set(flatten(split(model).frozen))
    assert all(isinstance(v, Adapter) for p, v in variables(adapted).items() if p not in before)
    expected = run(call, model, images)
    np.testing.assert_array_equal(run(call, adapted, images), expected)
    changed = run(call, trained(adapted), images)
    assert np.abs(changed - expected).max() > 1e-3
    folded = vadapt.fold(adapted)
    assert {path: value.shape for path, value in variables(folded).items()} == before
    scale = max(1.0, float(np.abs(changed).max()))
    np.testing.assert_allclose(run(call, folded, images), changed, atol=1e-5 * scale)


def test_dropout_of_lora_acts_on_rotary_models_and_beside_other_adapters(images):
    rotary = plain(rotary="pairs", rotary_extent=None)
    model = vadapt.adapt(rotary, "lora", rank=2, targets=("q", "fc1"), dropout=0.5)
    model = trained(vadapt.adapt(model, "patchwise_scale", hidden=2, dropout=0.5))

    def three(model, images):
        keys = jax.random.split(jax.random.key(0), 2)
        return model(images), *(model(images, key=key) for key in keys)

    still, one, other = run(three, model, images)
    assert np.abs(still - one).max() > 1e-3 < np.abs(one - other).max()
    with pytest.raises(ConfigError, match="Own is none; set dropout=0"):
        vadapt.adapt(Own(), "lora", targets=("spread",), dropout=0.1)


def test_kernels_with_axes_of_a_batch_are_refused_by_name():
    class Batched(nnx.Module):
        def __init__(self):
            self.each = nnx.Einsum("bi,bio->bo", (2, 3, 4), rngs=nnx.Rngs(0))

    with pytest.raises(ConfigError, match=r"kernel \(2, 3, 4\) of a Einsum has axes of its batch"):
        vadapt.adapt(Batched(), "lora", targets=("each",))


def test_what_is_nowhere_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"lora: \['fc11'\] .* in this ViT; nearest: 'fc1'"):
        vadapt.adapt(plain(), "lora", targets=("q", "fc11"))
    with pytest.raises(ConfigError, match=r"\['q', 'v'\] .* in this ResNet; allowed: 'conv'"):
        vadapt.adapt(ResNet(18, base_width=4, rngs=nnx.Rngs(0)), "lora")


def test_every_branch_passes_on_what_its_inner_module_needs():
    kinds, found = [Branch], []
    while kinds:
        found.append(kinds.pop())
        kinds += found[-1].__subclasses__()
    assert len(found) > 1
    for kind in found:
        parameters = list(inspect.signature(kind.__call__).parameters.values())
        assert parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL, kind
