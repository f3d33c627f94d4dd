"""Parameter-efficient methods: published counts, where they take hold, what folding leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from tests.golden_modules.fields import Fields
from tests.golden_modules.pad_models import imported, nhwc
from tests.golden_modules.peft_ssf import plain_vit
from tests.parity import GOLDENS, Golden
from vadapt import adapters
from vadapt.adapters.conv_adapter import SCHEMES
from vadapt.backbones.convnext import ConvNeXt, convnext
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.swin import swin
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.partition import count, flatten, merge, split, variables
from vadapt.weights.adapter_file import save_model
from vadapt.weights.load import load_weights, match_weights

BACKBONES = {
    "vit": lambda: vit("base", rngs=nnx.Rngs(0)),
    "convnext": lambda: convnext("base", rngs=nnx.Rngs(0)),
    "resnet": lambda: ResNet(50, rngs=nnx.Rngs(0)),
    "swin": lambda: swin("base", rngs=nnx.Rngs(0)),
}
# Method, options, backbone, and what the papers and released codes count.
COUNTS = [
    *(
        ("adaptformer", {"hidden": hidden}, "vit", number)
        for hidden, number in [(1, 27_660), (4, 82_992), (8, 156_768), (32, 599_424)]
    ),
    *(
        ("adaptformer", {"hidden": hidden}, "vit", number)
        for hidden, number in [(64, 1_189_632), (128, 2_370_048), (256, 4_730_880)]
    ),
    ("conv_adapter", {"reduction": 4}, "resnet", 356_848),
    ("conv_adapter", {"reduction": 8}, "resnet", 199_192),
    ("conv_adapter", {"reduction": 4}, "convnext", 3_721_728),
    ("conv_adapter", {"reduction": 8}, "convnext", 2_324_672),
    ("frpt", {}, "resnet", 4_746),
    ("houlsby", {}, "vit", 2_379_264),
    ("pfeiffer", {"reduction": 8}, "vit", 1_779_840),
    ("pfeiffer", {"reduction": 64}, "vit", 230_544),
    ("pfeiffer", {"reduction": 256}, "vit", 64_548),
    ("lora", {"dora": True}, "vit", 313_344),
    ("cls_reinit", {}, "vit", 768),
    ("side", {}, "vit", 2_469_696 + (9216 + 1) * 768 + 1),
    ("ssf", {}, "vit", 205_824),
    ("ssf", {}, "convnext", 255_232),
    ("ssf", {}, "swin", 267_264),
    ("svf", {}, "resnet", 12_544),
]


@pytest.mark.parametrize(("method", "options", "backbone", "number"), COUNTS)
def test_counts_are_the_published_ones(method, options, backbone, number):
    shapes = nnx.eval_shape(lambda: adapters.apply(BACKBONES[backbone](), method, **options))
    assert count(split(shapes).trainable) == number


# Of each method, options, and the small backbone that it is tried on.
LEARNING = [
    ("adaptformer", {"hidden": 3}, "vit"),
    ("adaptformer", {"hidden": 3, "scale": "learnable", "option": "sequential"}, "vit"),
    ("adaptformer", {"hidden": 3, "norm": "out"}, "vit"),
    *(
        ("conv_adapter", {"reduction": 2, "scale": 0.0, "scheme": scheme}, backbone)
        for scheme, backbone in zip(SCHEMES, ("resnet", "convnext") * 2, strict=True)
    ),
    ("houlsby", {"hidden": 3}, "vit"),
    ("pfeiffer", {}, "vit"),
    ("lora", {"dora": True}, "vit"),
    ("pro_tuning", {}, "vit"),
    ("pro_tuning", {"se": True, "groups": 2}, "convnext"),
    ("pro_tuning", {"zero_init_scale": False}, "convnext"),
    ("ssf", {}, "vit"),
    ("svf", {}, "vit"),
]
SMALL = {
    "vit": lambda: vit("micro", width=16, depth=1, image_size=16, rngs=nnx.Rngs(0)),
    "resnet": lambda: ResNet(18, base_width=4, rngs=nnx.Rngs(0)),
    "convnext": lambda: ConvNeXt(
        depths=(1, 1), widths=(4, 8), normed=(1,), layer_scale=1.0, rngs=nnx.Rngs(0)
    ),
}


@pytest.mark.parametrize(("method", "options", "backbone"), LEARNING)
def test_every_weight_learns_within_two_steps_and_images_stay_apart(method, options, backbone):
    plain, images = SMALL[backbone](), jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    model = adapters.apply(plain, method, **options)
    parts = split(model)
    weights = jax.random.normal(jax.random.key(2), jax.eval_shape(model, images).shape)

    def forward(trainable, images):
        return merge(parts.graph, trainable, parts.frozen, parts.state)(images)

    @jax.jit
    def two_steps(trainable):
        step = jax.grad(lambda one: (weights * forward(one, images)).sum())
        first = step(trainable)
        moved = jax.tree.map(lambda x, gradient: x - 0.1 * gradient, trainable, first)
        alone, together = forward(moved, images[:1]), forward(moved, images)[:1]
        return (
            jax.tree.map(lambda x, y: jnp.abs(x) + jnp.abs(y), first, step(moved)),
            alone,
            together,
        )

    moves, alone, together = two_steps(parts.trainable)
    for path, size in flatten(moves).items():
        assert np.asarray(size).any(), path
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_ssf_folds_into_the_weights_that_a_golden_file_lists():
    golden = Golden.read(GOLDENS / "peft_zoo" / "ssf_vit.npz")
    plain, kept = plain_vit(Fields(golden.meta["config"])), lambda name: "head." not in name
    params = {name: value for name, value in golden["param"].items() if kept(name)}
    merged = {name: value for name, value in golden["merged"].items() if kept(name)}
    folded = adapters.fold(imported(adapters.apply(plain, "ssf"), params))
    expected, _ = match_weights(plain, merged)
    found = variables(folded)
    assert set(found) == set(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path][...], value, atol=1e-6, err_msg=path)
    images = nhwc(golden["in"]["x"])
    features = compiled.run("__call__", imported(plain, merged), images)
    np.testing.assert_allclose(features, golden["out"]["features"], atol=2e-5)


def test_ssf_folds_into_layers_of_every_kind_with_and_without_a_bias():
    class Layers(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.spread = nnx.LinearGeneral(3, (2, 4), rngs=rngs)
            self.mix = nnx.Einsum("bhw,cwh->bc", (6, 4, 2), (6,), rngs=rngs)
            self.last = nnx.Linear(6, 5, use_bias=False, rngs=rngs)
            self.norm = nnx.LayerNorm(5, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.last(self.mix(self.spread(x))))

    x = jax.random.normal(jax.random.key(1), (3, 3))
    model = adapters.apply(Layers(), "ssf", std=0.5)
    folded = adapters.fold(model, strict=True)
    assert not flatten(split(folded).trainable)
    np.testing.assert_allclose(folded(x), model(x), atol=1e-5)
    assert np.abs(model(x) - Layers()(x)).max() > 0.1


def test_a_layer_has_room_for_one_method():
    model = adapters.apply(vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0)), "lora", rank=2)
    with pytest.raises(ConfigError, match="already has lora where ssf is to take hold"):
        adapters.apply(model, "ssf")
    with pytest.raises(ConfigError, match="already has lora where lora is to take hold"):
        adapters.apply(model, "lora", rank=2)
    both = adapters.apply(model, "ssf", targets=("fc1", ".*/norm"))
    assert [dict(one)["name"] for one in both.applied] == ["lora", "ssf"]


@pytest.mark.parametrize(
    "pair", [("adaptformer", "patchwise_scale"), ("patchwise_scale", "adaptformer")]
)
def test_a_branch_has_room_for_one_bottleneck(pair):
    first, second = pair
    model = adapters.apply(SMALL["vit"](), first, hidden=2)
    with pytest.raises(ConfigError, match="MLP branches of the model have adapters already"):
        adapters.apply(model, second, hidden=2)


def test_norms_that_have_no_bias_are_refused_by_name():
    class Layers(nnx.Module):
        def __init__(self):
            self.norm = nnx.RMSNorm(4, rngs=nnx.Rngs(0))

    with pytest.raises(ConfigError, match="a RMSNorm here has not both; leave"):
        adapters.apply(Layers(), "ssf")


class Convolutions(nnx.Module):
    """A plain, a grouped and a depthwise convolution, of stride 2, dilated, without a bias."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.plain = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.grouped = nnx.Conv(4, 8, (3, 3), feature_group_count=2, use_bias=False, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), kernel_dilation=2, feature_group_count=8, rngs=rngs)

    def __call__(self, x):
        return self.depthwise(self.grouped(self.plain(x)))


def test_svf_takes_groups_apart_each_by_itself_and_keeps_its_factors_with_the_model(tmp_path):
    x = jax.random.normal(jax.random.key(1), (2, 6, 7, 3))
    plain = Convolutions()
    model = adapters.apply(plain, "svf")
    np.testing.assert_allclose(model(x), plain(x), atol=1e-5)
    learned = flatten(split(model).trainable)
    assert {path: value.size for path, value in learned.items()} == {
        "plain/vector_s": 4, "grouped/vector_s": 2 * 4, "depthwise/vector_s": 8
    }  # fmt: skip
    for layer in (model.plain, model.grouped, model.depthwise):
        layer.vector_s[...] = layer.vector_s[...] * jnp.linspace(0.5, 2, layer.vector_s.size)
    changed = model(x)
    assert np.abs(changed - plain(x)).max() > 1e-2
    folded = adapters.fold(model, strict=True)
    assert set(variables(folded)) == set(variables(plain))
    np.testing.assert_allclose(folded(x), changed, atol=1e-5)
    save_model(tmp_path / "model.safetensors", model)
    other = adapters.apply(Convolutions(1), "svf")  # with factors of other kernels
    load_weights(other, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(other(x), changed)


def test_svf_refuses_what_is_no_plain_matrix_in_words():
    class Layers(nnx.Module):
        def __init__(self):
            self.spread = nnx.LinearGeneral(3, (2, 4), rngs=nnx.Rngs(0))

    with pytest.raises(ConfigError, match="convolutions apart, and spread is a LinearGeneral"):
        adapters.apply(Layers(), "svf")


def test_pro_tuning_stands_behind_the_chosen_stages_and_refuses_channels_that_do_not_divide():
    plain, images = SMALL["convnext"](), jnp.ones((1, 32, 32, 3))
    model = adapters.apply(plain, "pro_tuning", layers=[-1], zero_init_scale=False)
    assert (model.features(images, 0) == plain.features(images, 0)).all()
    expected = plain.features(images, 1, norm=False)
    found = model.features(images, 1, norm=False)
    prompt = model.pro_tuning.prompts[0](expected.reshape(1, 4, 4, 8))
    np.testing.assert_allclose(found, expected + prompt.reshape(expected.shape), atol=1e-5)
    assert np.abs(prompt).max() > 1e-3
    with pytest.raises(ConfigError, match="4 channels are no multiple of groups=3"):
        adapters.apply(plain, "pro_tuning", groups=3)
