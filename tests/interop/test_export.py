"""Folders that `save_hugging_face` writes, as transformers reads them: every family."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from tests.backbones.test_sam import small as small_sam
from tests.interop.references import RELATIVE, call, images, maps, relative_error
from tests.weights.test_commands_of_runs import SIZE, runs  # noqa: F401  a fixture
from tests.weights.test_convnext import small as small_convnext
from tests.weights.test_resnet import small as small_resnet
from tests.weights.test_swin import small as small_swin
from vadapt import adapters, models
from vadapt.nn.activations import gelu_exact, gelu_quick, gelu_tanh
from vadapt.partition import Adapter, variables
from vadapt.trained import load_run
from vadapt.weights.__main__ import main
from vadapt.weights.export import save_hugging_face

TOY = {"width": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "image_size": 32}
REGISTERS = {"num_registers": 3, "position_resize": "cubic_antialias"}
# transformers samples DINOv2's table at the exact step, its official code does not.
EXACT = {"position_resize": "cubic"}


def vit(name, **options):
    return lambda: drawn(lambda: models.create(name, **{**TOY, **options}))


MODELS = {
    "vit": vit("vit_base", mlp_hidden=56),
    "vit without bias": vit("vit_base", qkv_bias=False, activation=gelu_tanh, norm_epsilon=1e-2),
    "vit_mae": vit("vit_base", positions="sincos"),
    "vit_mae without bias": vit("vit_base", qkv_bias=False, activation=gelu_quick),
    "clip": vit("clip_base", mlp_hidden=56),
    "clip exact": vit("clip_base", activation=gelu_exact, norm_epsilon=1e-2),
    "siglip": vit("siglip_base", mlp_hidden=56),
    "siglip quick": vit("siglip_base", activation=gelu_quick, norm_epsilon=1e-2),
    "dinov2": vit("dinov2_small", **EXACT),
    "dinov2 gated": vit("dinov2_small", **EXACT, swiglu=True, mlp_hidden=88),
    "dinov2 with registers": vit("dinov2_small_reg", mlp_ratio=3.0),
    "dinov2 gated with registers": vit("dinov2_small_reg", swiglu=True, mlp_hidden=88),
    "dinov2 without bias": vit(
        "dinov2_small", **EXACT, qkv_bias=False, activation=gelu_quick, norm_epsilon=1e-2
    ),
    "dinov3": vit("dinov3_base", mlp_hidden=56),
    "dinov3 gated": vit("dinov3_base", swiglu=True, mlp_hidden=56, norm_epsilon=1e-2),
    "dinov3 without": vit(
        "dinov3_base", num_registers=0, qkv_bias=False, proj_bias=False, mlp_bias=False
    ),
    "sam": small_sam,
    "sam without": lambda: small_sam(
        absolute_positions=False, relative_positions=False, qkv_bias=False, global_blocks=(0, 1, 2)
    ),
    "resnet basic": lambda: small_resnet(18),
    "resnet bottleneck": lambda: small_resnet(50, stem_width=6),
    "convnext": small_convnext,
    "swin": small_swin,
}
# What transformers' models have besides, of no effect on features; registers if there are none.
APART = {
    "vit": r"pooler\.dense\..*",
    "dinov2": r"embeddings\.mask_token",
    "dinov3": r"embeddings\.(mask_token|register_tokens)",
    "resnet": r".*\.num_batches_tracked",
}
# Its own and another; SAM's of transformers takes its own alone.
SIZES = {
    "sam": [(20, 20)],
    "resnet": [(64, 64), (75, 50)],
    "convnext": [(64, 64), (70, 101)],
    "swin": [(96, 96), (70, 101)],
}
ANY_SIZE = ("vit", "vit_mae", "clip", "siglip")  # if asked for


def read(folder, family):
    """The model that transformers makes of a folder; nothing may lack or be too many."""
    import transformers

    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    apart = APART.get(family, "")
    missing = [name for name in report["missing_keys"] if not re.fullmatch(apart, name)]
    assert [*missing, *report["unexpected_keys"], *report["mismatched_keys"]] == []
    return model.eval()


def theirs(model, pixels, family):
    """Their outputs."""
    import torch

    options = {"interpolate_pos_encoding": True} if family in ANY_SIZE else {}
    if family == "vit_mae":  # in order, not shuffled
        number = pixels.shape[1] * pixels.shape[2] // TOY["patch_size"] ** 2
        options["noise"] = torch.arange(number)[None].repeat(len(pixels), 1).float()
    return call(model, pixels, **options)


def ours(model, pixels, family):
    """What they call the last hidden state, which is that before the last norm in two of them."""

    def last(model, pixels):
        if family in ("clip", "convnext"):
            return model.features(pixels, norm=False, as_grid=family == "convnext")
        return model(pixels)

    return run(last, model, pixels)


def run(function, model, pixels):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: function(nnx.merge(graph, state), x))(state, pixels)


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_computes_the_same(kind, tmp_path):
    family, model = kind.split()[0], MODELS[kind]()
    copy = read(save_hugging_face(model, tmp_path, family), family)
    for size in SIZES.get(family, [(32, 32), (24, 56)]):
        pixels = images(size)
        expected = theirs(copy, pixels, family).last_hidden_state
        if expected.ndim == 4:
            expected = maps(expected)
        found = ours(model, pixels, family).reshape(expected.shape)  # Swin's are maps, as tokens
        assert relative_error(found, expected) < RELATIVE, size


@pytest.mark.parametrize("family", ["clip", "convnext"])
def test_the_last_norm_is_that_behind_their_pooling(family, tmp_path):
    model = MODELS[family]()
    copy = read(save_hugging_face(model, tmp_path, family), family)
    pixels = images((64, 64))
    last = ours(model, pixels, family)
    pooled = model.norm(last[:, 0]) if family == "clip" else model.norms["3"](last.mean((1, 2)))
    assert relative_error(pooled, theirs(copy, pixels, family).pooler_output) < RELATIVE


LAYERS = {"convnext": ("dwconv", "fc1"), "swin": ("q", "proj", "fc2")}
FOLDED = [
    *(("lora", kind) for kind in ("dinov2", "clip", "dinov3", "convnext", "swin")),
    *(("dora", kind) for kind in ("dinov2", "convnext", "swin")),
    # Where queries, keys and values had no bias, the folded model's config says that they have.
    *(("ssf", kind) for kind in ("vit without bias", "dinov2", "convnext", "swin")),
    *(("svf", kind) for kind in ("dinov2", "convnext", "swin")),
]


@pytest.mark.parametrize(("method", "kind"), FOLDED)
def test_a_folded_method_computes_the_same(method, kind, tmp_path):
    family, plain, options = kind.split()[0], MODELS[kind](), {}
    if method in ("lora", "dora"):
        targets = LAYERS.get(family, ("q", "v", "fc2"))
        options = {"rank": 2, "targets": targets, "dora": method == "dora"}
    adapted = adapters.apply(plain, method.replace("dora", "lora"), **options)
    rng = np.random.default_rng(3)
    for value in variables(adapted).values():
        if isinstance(value, Adapter):
            value[...] = value[...] + rng.normal(size=value.shape, scale=0.3)
    copy = read(save_hugging_face(adapters.fold(adapted), tmp_path, family), family)
    pixels = images(SIZES.get(family, [(32, 32)])[0])
    expected = theirs(copy, pixels, family).last_hidden_state
    expected = maps(expected) if expected.ndim == 4 else expected
    found = ours(adapted, pixels, family).reshape(expected.shape)
    assert relative_error(found, expected) < 1e-4
    assert relative_error(ours(plain, pixels, family).reshape(expected.shape), expected) > 1e-2


def test_a_run_of_lora_is_one_command_from_transformers(runs, tmp_path):  # noqa: F811
    assert main(["merge", f"--run={runs / 'lora'}", f"--out={tmp_path / 'merged'}"]) == 0
    copy, pixels = read(tmp_path / "merged", "dinov2"), images((28, 28))
    expected = theirs(copy, pixels, "dinov2").last_hidden_state
    adapted = load_run(runs / "lora").model.backbone
    assert relative_error(ours(adapted, pixels, "dinov2"), expected) < RELATIVE
    plain = models.create("dinov2_small", runs / "base.safetensors", image_size=28, **SIZE)
    assert relative_error(ours(plain, pixels, "dinov2"), expected) > 1e-2
