"""ConvNeXt against transformers' models, in and out."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.interop.references import (
    RELATIVE,
    arrays_of,
    call,
    images,
    loaded,
    maps,
    randomised,
    relative_error,
)
from tests.weights.test_convnext import DEPTHS, WIDTHS, small, values_of
from vadapt.weights.convnext import CONVNEXT_HF
from vadapt.weights.files import write_arrays
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

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


def test_theirs_takes_what_is_written(tmp_path):
    theirs, model = reference(), small()
    load_weights(model, arrays_of(theirs))
    written, lost = revert(values_of(model), CONVNEXT_HF)
    assert lost == []
    write_arrays(tmp_path / "model.safetensors", written, {"format": "pt"})
    theirs.config.save_pretrained(tmp_path)
    copy, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pixels = images(SIZES[1])
    found, expected = (
        call(each.eval(), pixels, output_hidden_states=True).hidden_states
        for each in (copy, theirs)
    )
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())
