"""DINOv2 against transformers' models, with registers and without, in and out."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.references import (
    RELATIVE,
    arrays_of,
    call,
    images,
    loaded,
    randomised,
    relative_error,
)
from tests.weights.test_dinov2 import DEPTH, SIDE, WIDTH, small
from vadapt.partition import variables
from vadapt.weights.dinov2 import DINOV2_HF
from vadapt.weights.files import write_arrays
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

SIZES = [(70, 70), (98, 98), (56, 98), (42, 28)]  # the table's own, growing, mixed, shrinking
KINDS = pytest.mark.parametrize(
    ("registers", "swiglu"),
    [(0, False), (0, True), (4, False), (4, True)],
    ids=["plain", "swiglu", "registers", "registers and swiglu"],
)


def reference(registers, swiglu):
    import transformers

    options = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "image_size": 14 * SIDE,
        "patch_size": 14,
        "use_swiglu_ffn": swiglu,
    }
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **options)
        return randomised(transformers.Dinov2WithRegistersModel(config), 0.3)
    return randomised(transformers.Dinov2Model(transformers.Dinov2Config(**options)), 0.3)


@KINDS
def test_features_are_theirs(registers, swiglu, tmp_path):
    theirs = reference(registers, swiglu)
    # Theirs samples the table at the exact step; the official code, and ours by default, does not.
    way = {} if registers else {"position_resize": "cubic"}
    model = small(registers, swiglu, **way)
    report = loaded(model, theirs, tmp_path)
    assert report.family == "dinov2_hf"
    assert report.unused == ["embeddings.mask_token"]
    for size in SIZES:
        pixels = images(size)
        outputs = call(theirs, pixels, output_hidden_states=True)
        last, middle = outputs.last_hidden_state.numpy(), outputs.hidden_states[2].numpy()
        pixels = jnp.asarray(pixels)
        assert relative_error(model(pixels), last) < RELATIVE, size
        assert relative_error(model.features(pixels, 1, norm=False), middle) < RELATIVE, size


@KINDS
def test_theirs_takes_what_is_written(registers, swiglu, tmp_path):
    theirs, model = reference(registers, swiglu), small(registers, swiglu)
    load_weights(model, arrays_of(theirs))
    values = {path: np.asarray(value[...]) for path, value in variables(model).items()}
    written, lost = revert(values, DINOV2_HF)
    assert lost == []
    write_arrays(tmp_path / "model.safetensors", written, {"format": "pt"})
    theirs.config.save_pretrained(tmp_path)
    copy, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"embeddings.mask_token"}
    assert not report["unexpected_keys"]
    found = arrays_of(copy)
    for name, array in arrays_of(theirs).items():
        if name != "embeddings.mask_token":
            np.testing.assert_array_equal(found[name], array, err_msg=name)
