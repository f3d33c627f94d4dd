"""DINOv2 against transformers' models, with registers and without."""

import jax.numpy as jnp
import pytest

from tests.interop.references import (
    RELATIVE,
    call,
    images,
    loaded,
    randomised,
    relative_error,
)
from tests.weights.test_dinov2 import DEPTH, SIDE, WIDTH, small

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
