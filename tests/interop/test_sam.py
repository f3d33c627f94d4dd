"""SAM's encoder against transformers' models."""

import jax.numpy as jnp
import pytest

from tests.backbones.test_sam import HEADS, small
from tests.interop.references import (
    RELATIVE,
    call,
    images,
    loaded,
    maps,
    randomised,
    relative_error,
)


def config(side=20, **options):
    import transformers

    return transformers.SamVisionConfig(
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        image_size=side,
        patch_size=4,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=64,
        **options,
    )


def reference(side=20, **options):
    import transformers

    return randomised(transformers.SamVisionModel(config(side, **options)), 0.3)


def assert_alike(model, theirs, size):
    pixels = images(size)
    outputs = call(theirs, pixels, output_hidden_states=True)
    pixels = jnp.asarray(pixels)
    assert relative_error(model(pixels), maps(outputs.last_hidden_state)) < RELATIVE
    blocks = model.features(pixels, (0, 1, 2), as_grid=True)
    for ours, expected in zip(blocks, outputs.hidden_states[1:], strict=True):
        assert relative_error(ours, expected.numpy()) < RELATIVE


@pytest.mark.parametrize("side", [20, 36])
def test_features_are_theirs(side, tmp_path):
    theirs, model = reference(side), small(image_size=side)
    report = loaded(model, theirs, tmp_path)
    assert report.family == "sam_hf"
    assert report.resized + report.unused == []
    assert_alike(model, theirs, (side, side))


def test_features_without_tables_are_theirs(tmp_path):
    theirs = reference(use_abs_pos=False, use_rel_pos=False, qkv_bias=False)
    model = small(absolute_positions=False, relative_positions=False, qkv_bias=False)
    loaded(model, theirs, tmp_path)
    assert_alike(model, theirs, (20, 20))


@pytest.mark.parametrize("size", [(12, 28), (24, 20)])
def test_features_of_other_sizes_are_theirs(size, tmp_path):
    """Theirs takes squares of one size; told another, it resamples the relative tables alone."""
    theirs, model = reference(use_abs_pos=False), small(absolute_positions=False)
    loaded(model, theirs, tmp_path)
    theirs.vision_encoder.patch_embed.image_size = size
    assert_alike(model, theirs, size)


def test_the_encoder_of_whole_models_is_taken(tmp_path):
    import transformers

    whole = transformers.SamModel(transformers.SamConfig(vision_config=config().to_dict()))
    model = small()
    report = loaded(model, randomised(whole, 0.3), tmp_path)
    assert report.family == "sam_hf"
    others = {"shared_image_embedding", "prompt_encoder", "mask_decoder"}
    assert {name.split(".")[0] for name in report.unused} == others
    pixels = images((20, 20))
    expected = call(whole.vision_encoder, pixels).last_hidden_state
    assert relative_error(model(jnp.asarray(pixels)), maps(expected)) < RELATIVE
