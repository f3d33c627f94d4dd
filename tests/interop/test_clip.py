"""CLIP's visual tower against transformers' model, in and out."""

import jax.numpy as jnp
import numpy as np

from tests.interop.references import (
    RELATIVE,
    arrays_of,
    call,
    images,
    loaded,
    randomised,
    relative_error,
)
from tests.weights.test_clip import clip_tower
from vadapt.partition import variables
from vadapt.weights.families.clip import CLIP_HF
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert


def reference():
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=5,
    )
    return randomised(transformers.CLIPVisionModelWithProjection(config))


def test_features_are_theirs(tmp_path):
    theirs, tower = reference(), clip_tower()
    assert loaded(tower, theirs, tmp_path).family == "clip_hf"
    for size in [(32, 32), (40, 24)]:
        pixels = images(size)
        outputs = call(theirs, pixels, interpolate_pos_encoding=True)
        tokens = tower.backbone.features(jnp.asarray(pixels), norm=False)
        features, _ = tower(jnp.asarray(pixels))
        assert relative_error(tokens, outputs.last_hidden_state) < RELATIVE
        assert relative_error(features[:, 0], outputs.image_embeds) < RELATIVE


def test_theirs_takes_what_is_written():
    theirs, tower = reference(), clip_tower()
    arrays = arrays_of(theirs)
    load_weights(tower, arrays)
    values = {path: np.asarray(value[...]) for path, value in variables(tower).items()}
    written, lost = revert(values, CLIP_HF, backbone="backbone/")
    assert lost == []
    assert written.keys() == arrays.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
