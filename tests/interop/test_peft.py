"""Methods against PEFT's LoRA and DoRA, and against PyTorch modules written from the papers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tests.interop.references import call, images, loaded, randomised, relative_error
from vadapt import adapters, models
from vadapt.partition import variables

SIZE = {"width": 32, "depth": 3, "num_heads": 4, "mlp_hidden": 56, "patch_size": 8}
LABELS = 7
NEAR = 1e-4


@pytest.fixture
def both(tmp_path):
    """A classifier of transformers at random, and the plain backbone with its weights."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=56,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        num_labels=LABELS,
    )
    theirs = randomised(transformers.ViTForImageClassification(config), 0.3)
    ours = models.create("vit_base", image_size=32, **SIZE)
    assert loaded(ours, theirs, tmp_path).missing == []
    return theirs, ours


def drawn(shape, seed, scale=0.3):
    return np.random.default_rng(seed).normal(size=shape, scale=scale).astype(np.float32)


def tensor(array):
    import torch

    return torch.from_numpy(np.array(array, np.float32))


def logits(model, pixels, classifier):
    """The classifier of the class token, on our features."""
    kernel, bias = (parameter.detach().numpy() for parameter in classifier.parameters())
    tokens = compiled.run("__call__", model, jnp.asarray(pixels))
    return np.asarray(tokens)[:, 0] @ kernel.T + bias


def check(adapted, plain, theirs, pixels, expected):
    found = logits(adapted, pixels, theirs.classifier)
    assert relative_error(found, expected) < NEAR
    assert relative_error(logits(plain, pixels, theirs.classifier), expected) > 1e-2


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # which PEFT asks for
@pytest.mark.parametrize("dora", [False, True])
def test_lora_is_pefts(dora, both):
    import peft
    import torch

    theirs, plain = both
    rank, alpha = 3, 6.0
    names = {"q": "q_proj", "v": "v_proj", "fc2": "mlp.fc2"}
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=[*names.values()], use_dora=dora
    )
    wrapped = peft.get_peft_model(theirs, config).eval()
    options = {"rank": rank, "alpha": alpha, "targets": (*names,), "dora": dora}
    adapted = adapters.apply(plain, "lora", **options)
    layers = dict(wrapped.named_modules())
    for i, block in enumerate(adapted.blocks):
        ours = {"q": (block.attn.inner.qkv, 0), "v": (block.attn.inner.qkv, 1)}
        for name, (layer, part) in {**ours, "fc2": (block.mlp.inner.fc2, 0)}.items():
            (path,) = (
                path
                for path in layers
                if f"layers.{i}." in path and path.endswith(f".{names[name]}")
            )
            down, up = layer.lora.down, layer.lora.up
            for number, (matrix, side) in enumerate(((down, "lora_A"), (up, "lora_B"))):
                value = drawn(matrix.shape[1:], 10 * i + number + ord(name[0]))
                matrix[...] = matrix[...].at[part].set(value)
                with torch.no_grad():
                    getattr(layers[path], side)["default"].weight.copy_(tensor(value.T))
            if dora:
                length = np.abs(drawn(layer.magnitude.shape[1:], i, 1.0)) + 0.5
                layer.magnitude[...] = layer.magnitude[...].at[part].set(length)
                with torch.no_grad():
                    layers[path].lora_magnitude_vector["default"].weight.copy_(tensor(length))
    pixels = images((32, 32))
    check(adapted, plain, theirs, pixels, call(wrapped, pixels).logits)


def encoder(theirs):
    """The blocks of their ViT."""
    return theirs.vit.layers


def run_blocks(theirs, pixels, before=lambda number, x: x, blocks=None):
    """Their logits, block by block: what `before` makes of tokens goes into each."""
    import torch

    with torch.no_grad():
        x = theirs.vit.embeddings(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
        for number, block in enumerate(encoder(theirs) if blocks is None else blocks):
            x = block(before(number, x))
            x = x[0] if isinstance(x, tuple) else x
        return theirs.classifier(theirs.vit.layernorm(x)[:, 0])


@pytest.mark.parametrize("deep", [False, True])
def test_vpt_is_the_papers_rows_of_prompts(deep, both):
    import torch

    theirs, plain = both
    adapted = adapters.apply(plain, "vpt", num_tokens=4, deep=deep)
    prompts = drawn((3, 4, 32), 0)
    adapted.vpt.prompts[...] = prompts[0]
    if deep:
        adapted.vpt.deep["0"][...] = prompts[1:]

    def before(number, x):
        if number and not deep:
            return x
        rows = tensor(prompts[number]).expand(len(x), -1, -1)
        return torch.cat([x[:, :1], rows, x[:, 1 if number == 0 else 5 :]], dim=1)

    pixels = images((32, 32))
    check(adapted, plain, theirs, pixels, run_blocks(theirs, pixels, before))


def test_ssf_is_a_scale_and_a_shift_behind_every_layer(both):
    import torch
    from torch import nn

    class Scaled(nn.Module):
        """scale * layer(x) + shift, of each channel; those of an image are its second axis."""

        def __init__(self, layer, scale, shift):
            super().__init__()
            self.layer, self.scale, self.shift = layer, tensor(scale), tensor(shift)

        def forward(self, x):
            y = self.layer(x)
            shape = (-1, 1, 1) if y.ndim == 4 else (-1,)
            return y * self.scale.reshape(shape) + self.shift.reshape(shape)

    theirs, plain = both
    adapted = adapters.apply(plain, "ssf")
    pairs = {}
    for number, (path, value) in enumerate(variables(adapted).items()):
        if path.endswith(("ssf_scale", "ssf_shift")):
            value[...] = drawn(value.shape, number) + float(path.endswith("scale"))
            layer, _, name = path.rpartition("/")
            pairs.setdefault(layer, {})[name] = np.asarray(value[...])

    def wrap(owner, name, path, third=None):
        scale, shift = (pairs[path][key] for key in ("ssf_scale", "ssf_shift"))
        if third is not None:
            scale, shift = (np.split(row, 3)[third] for row in (scale, shift))
        setattr(owner, name, Scaled(getattr(owner, name), scale, shift))

    wrap(theirs.vit.embeddings.patch_embeddings, "projection", "patch_embed/proj")
    wrap(theirs.vit, "layernorm", "norm")
    for i, block in enumerate(encoder(theirs)):
        path = f"blocks/{i}/"
        wrap(block, "layernorm_before", path + "attn/norm")
        wrap(block, "layernorm_after", path + "mlp/norm")
        for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
            wrap(block.attention, name, path + "attn/inner/qkv", third)
        wrap(block.attention, "o_proj", path + "attn/inner/proj")
        for name in ("fc1", "fc2"):
            wrap(block.mlp, name, f"{path}mlp/inner/{name}")
    pixels = images((32, 32))
    with torch.no_grad():
        found = logits(adapted, pixels, theirs.classifier)
        assert relative_error(found, run_blocks(theirs, pixels)) < NEAR


@pytest.mark.parametrize("option", ["parallel", "sequential"])
def test_adaptformer_is_a_scaled_bottleneck_beside_the_mlp(option, both):
    theirs, plain = both
    adapted = adapters.apply(plain, "adaptformer", hidden=5, scale=0.7, option=option)
    weights = []
    for i, block in enumerate(adapted.blocks):
        adapter, given = block.mlp.adapter, {}
        for number, (path, value) in enumerate(variables(adapter).items()):
            value[...] = drawn(value.shape, 10 * i + number)
            given[path] = tensor(value[...])
        weights.append(given)

    def bottleneck(x, given):
        thin = (x @ given["down/kernel"] + given["down/bias"]).relu()
        return 0.7 * (thin @ given["up/kernel"] + given["up/bias"])

    def block_of(block, given):
        def forward(x):
            attended = block.attention(block.layernorm_before(x))
            x = x + (attended[0] if isinstance(attended, tuple) else attended)
            term = block.mlp(block.layernorm_after(x))
            return x + term + bottleneck(x if option == "parallel" else term, given)

        return forward

    blocks = [block_of(*pair) for pair in zip(encoder(theirs), weights, strict=True)]
    pixels = images((32, 32))
    check(adapted, plain, theirs, pixels, run_blocks(theirs, pixels, blocks=blocks))
