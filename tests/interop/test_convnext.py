"""ConvNeXt against transformers' models."""

import jax
import jax.numpy as jnp

from tests.interop.references import (
    RELATIVE,
    call,
    images,
    loaded,
    maps,
    randomised,
    relative_error,
)
from tests.weights.test_convnext import DEPTHS, WIDTHS, small

STAGES = (0, 1, 2, 3)
SIZES = [(64, 64), (70, 101)]


def config():
    import transformers

    return transformers.ConvNextConfig(
        hidden_sizes=list(WIDTHS),
        depths=list(DEPTHS),
        layer_norm_eps=1e-6,  # that of the norm behind the pooling; the published files say 1e-12
        out_features=[f"stage{i + 1}" for i in STAGES],
    )


def reference():
    import transformers

    return randomised(transformers.ConvNextModel(config()))


def features(model, pixels, norm):
    return jax.jit(lambda x: model.features(x, STAGES, as_grid=True, norm=norm))(
        jnp.asarray(pixels)
    )


def test_features_are_theirs(tmp_path):
    theirs, model = reference(), small()
    assert loaded(model, theirs, tmp_path).family == "convnext_hf"
    for size in SIZES:
        pixels = images(size)
        outputs = call(theirs, pixels, output_hidden_states=True)
        found = features(model, pixels, norm=False)
        for x, tensor in zip(found, outputs.hidden_states[1:], strict=True):
            assert relative_error(x, maps(tensor)) < RELATIVE, size
        pooled = model.norms["3"](found[3].mean((1, 2)))
        assert relative_error(pooled, outputs.pooler_output) < RELATIVE, size


def test_maps_that_leave_are_theirs(tmp_path):
    import transformers

    theirs, model = randomised(transformers.ConvNextBackbone(config())), small(normed=STAGES)
    assert loaded(model, theirs, tmp_path).family == "convnext_hf"
    for size in SIZES:
        pixels = images(size)
        expected = call(theirs, pixels).feature_maps
        for x, tensor in zip(features(model, pixels, norm=True), expected, strict=True):
            assert relative_error(x, maps(tensor)) < RELATIVE, size
