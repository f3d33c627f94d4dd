"""Swin against transformers' models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.references import (
    RELATIVE,
    call,
    images,
    loaded,
    maps,
    randomised,
    relative_error,
)
from tests.weights.test_swin import DEPTHS, HEADS_OF, WIDTH, small

STAGES = (0, 1, 2, 3)
# Maps of whole windows and others, larger and smaller than a window, and one of odd sides.
SIZES = [(96, 96), (70, 101)]


def config():
    import transformers

    return transformers.SwinConfig(
        embed_dim=WIDTH,
        depths=list(DEPTHS),
        num_heads=list(HEADS_OF),
        window_size=3,
        image_size=96,
        out_features=[f"stage{i + 1}" for i in STAGES],
    )


def features(model, pixels, norm):
    return jax.jit(lambda x: model.features(x, STAGES, as_grid=True, norm=norm))(
        jnp.asarray(pixels)
    )


@pytest.mark.parametrize("size", SIZES)
def test_features_are_theirs(size, tmp_path):
    import transformers

    # Its blocks remember that a map was of one window: a model for each size.
    theirs, model = randomised(transformers.SwinModel(config())), small()
    assert loaded(model, theirs, tmp_path).family == "swin_hf"
    pixels = images(size)
    asked = {"output_hidden_states": True, "output_hidden_states_before_downsampling": True}
    outputs = call(theirs, pixels, **asked)
    found = features(model, pixels, norm=False)
    for x, tensor in zip(found, outputs.reshaped_hidden_states[1:], strict=True):
        assert relative_error(x, maps(tensor)) < RELATIVE
    last = model.norms["3"](found[3])
    assert relative_error(last.reshape(2, -1, 8 * WIDTH), outputs.last_hidden_state) < RELATIVE


def test_maps_that_leave_are_theirs(tmp_path):
    import transformers

    theirs = randomised(transformers.SwinBackbone(config()))
    model = small(normed=STAGES, always_partition=True)
    report = loaded(model, theirs, tmp_path, allow_unexpected=["(swin.)?layernorm.*"])
    assert report.family == "swin_hf"
    for size in [(64, 96), *SIZES]:
        pixels = images(size)
        expected = call(theirs, pixels).feature_maps
        for x, tensor in zip(features(model, pixels, norm=True), expected, strict=True):
            assert relative_error(x, maps(tensor)) < RELATIVE, size


def test_a_classifiers_trunk_loads_too(tmp_path):
    import transformers

    theirs, model = randomised(transformers.SwinForImageClassification(config())), small()
    report = loaded(model, theirs, tmp_path)
    assert report.unused == ["classifier.bias", "classifier.weight"]
    assert report.missing == []
    pixels = images((96, 96))
    pooled = features(model, pixels, norm=True)[3].mean((1, 2))
    kernel, bias = (tensor.detach().numpy() for tensor in theirs.classifier.parameters())
    logits = np.asarray(pooled) @ kernel.T + bias
    assert relative_error(logits, call(theirs, pixels).logits) < RELATIVE
