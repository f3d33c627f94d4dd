"""ViT, MAE, SigLIP and DINOv3 against transformers' models."""

import jax
import jax.numpy as jnp
import pytest

from tests.interop.references import RELATIVE, call, images, loaded, randomised, relative_error
from vadapt import models
from vadapt.weights.families.dinov3 import DINOV3_HF, DINOV3_HF_GATED
from vadapt.weights.families.siglip import SIGLIP_HF
from vadapt.weights.families.vit import VIT_HF

OURS = {"width": 32, "depth": 3, "num_heads": 4, "mlp_hidden": 56, "patch_size": 8}
THEIRS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "image_size": 32,
    "patch_size": 8,
}
SIZES = [(32, 32), (24, 56)]
ANY_SIZE = {"interpolate_pos_encoding": True}


def vit_reference(transformers):
    config = transformers.ViTConfig(**THEIRS, layer_norm_eps=1e-6)
    return transformers.ViTModel(config, add_pooling_layer=False)


def mae_reference(transformers):
    config = transformers.ViTMAEConfig(**THEIRS, layer_norm_eps=1e-6, mask_ratio=0.0)
    return transformers.ViTMAEModel(config)


def siglip_reference(transformers):
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**THEIRS))


def dinov3_reference(transformers, **options):
    config = transformers.DINOv3ViTConfig(**THEIRS, num_register_tokens=4, **options)
    return transformers.DINOv3ViTModel(config)


def gated_reference(transformers):
    return dinov3_reference(transformers, use_gated_mlp=True, hidden_act="silu")


# Name: reference, our backbone and its options, table, and what the reference's call takes.
CASES = {
    "vit": (vit_reference, "vit_base", {}, VIT_HF, ANY_SIZE),
    "mae": (mae_reference, "vit_base", {"positions": "sincos"}, VIT_HF, ANY_SIZE),
    "siglip": (siglip_reference, "siglip_base", {}, SIGLIP_HF, ANY_SIZE),
    "dinov3": (dinov3_reference, "dinov3_base", {}, DINOV3_HF, {}),
    "dinov3 gated": (
        gated_reference,
        "dinov3_base",
        {"swiglu": True},
        DINOV3_HF_GATED,
        {},
    ),
}


@pytest.fixture(params=sorted(CASES))
def case(request, tmp_path):
    """A reference, ours with its weights, and what the reference's call takes."""
    import transformers

    make, name, options, table, call_options = CASES[request.param]
    reference = randomised(make(transformers), 0.3)
    model = models.create(name, image_size=32, **OURS, **options)
    report = loaded(model, reference, tmp_path)
    assert report.family == table.family
    assert report.missing + report.unexpected + report.resized == []
    return reference, model, call_options


def features(reference, pixels, options):
    """Theirs, after the last norm and after the second block."""
    import torch

    if reference.config.model_type == "vit_mae":  # in order, not shuffled
        number = (pixels.shape[1] // 8) * (pixels.shape[2] // 8)
        options = {**options, "noise": torch.arange(number)[None].repeat(2, 1).float()}
    outputs = call(reference, pixels, output_hidden_states=True, **options)
    return outputs.last_hidden_state, outputs.hidden_states[2]


def test_features_are_theirs(case):
    reference, model, options = case
    for size in SIZES:
        pixels = images(size)
        last, middle = features(reference, pixels, options)
        ours = jax.jit(lambda x: (model(x), model.features(x, 1, norm=False)))(jnp.asarray(pixels))
        assert relative_error(ours[0], last) < RELATIVE, size
        assert relative_error(ours[1], middle) < RELATIVE, size
