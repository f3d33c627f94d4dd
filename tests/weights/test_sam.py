"""SAM's files: official names, the encoder alone, Hugging Face's models, other grids."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.test_sam import images, small
from tests.compiled import run
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.families.sam import SAM, SAM_HF
from vadapt.weights.load import load_weights
from vadapt.weights.tables import Table, revert

TABLES = pytest.mark.parametrize("table", [SAM, SAM_HF], ids=lambda table: table.family)
OTHERS = {
    SAM.family: ["prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"],
    SAM_HF.family: [
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight",
        "shared_image_embedding.positional_embedding",
    ],
}


def values_of(model):
    return {path: np.asarray(value[...]) for path, value in variables(model).items()}


def file_of(model, table: Table):
    """A model's arrays under a family's names, and what whole files have besides."""
    arrays, lost = revert(values_of(model), table)
    assert lost == []
    return {**arrays, **{name: np.ones((1, 4), np.float32) for name in OTHERS[table.family]}}


def blank(**options):
    """A model that no file has been loaded into."""
    model = small(**options)
    for value in variables(model).values():
        value[...] = jnp.asarray(np.zeros(value.shape, value.dtype))
    return model


def test_official_names_are_the_published_ones():
    arrays = file_of(small(), SAM)
    encoder = {name for name in arrays if name.startswith("image_encoder.")}
    assert {name: arrays[name].shape for name in encoder if "blocks" not in name} == {
        "image_encoder.pos_embed": (1, 5, 5, 16),
        "image_encoder.patch_embed.proj.weight": (16, 3, 4, 4),
        "image_encoder.patch_embed.proj.bias": (16,),
        "image_encoder.neck.0.weight": (8, 16, 1, 1),
        "image_encoder.neck.1.weight": (8,),
        "image_encoder.neck.1.bias": (8,),
        "image_encoder.neck.2.weight": (8, 8, 3, 3),
        "image_encoder.neck.3.weight": (8,),
        "image_encoder.neck.3.bias": (8,),
    }
    start = "image_encoder.blocks.1."
    assert {name.removeprefix(start) for name in encoder if name.startswith(start)} == {
        *(f"{layer}.weight" for layer in ("norm1", "norm2", "attn.qkv", "attn.proj")),
        *(f"{layer}.bias" for layer in ("norm1", "norm2", "attn.qkv", "attn.proj")),
        *(f"mlp.{layer}.{part}" for layer in ("lin1", "lin2") for part in ("weight", "bias")),
        "attn.rel_pos_h",
        "attn.rel_pos_w",
    }
    assert arrays["image_encoder.blocks.1.attn.rel_pos_h"].shape == (9, 8)
    assert arrays["image_encoder.blocks.0.attn.rel_pos_w"].shape == (5, 8)


@TABLES
def test_whole_files_load_and_encoders_are_written_back(table):
    model, source = blank(), small()
    arrays = file_of(source, table)
    report = load_weights(model, arrays)
    assert report.family == table.family
    assert report.unused == OTHERS[table.family]
    assert report.missing + report.unexpected + report.resized == []
    for path, value in values_of(source).items():
        np.testing.assert_array_equal(values_of(model)[path], value, err_msg=path)
    written, lost = revert(values_of(model), table)
    assert lost == []
    assert written.keys() == arrays.keys() - set(OTHERS[table.family])
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_encoders_alone_have_no_prefix_and_may_have_no_neck():
    source, model = small(neck=None), blank(neck=None)
    arrays = revert(values_of(source), SAM)[0]
    arrays = {name.removeprefix("image_encoder."): array for name, array in arrays.items()}
    assert load_weights(model, arrays).family == "sam"
    found, expected = (run("__call__", x, images()) for x in (model, source))
    np.testing.assert_array_equal(found, expected)


def call_and_last_map(models, images):
    return models.bare(images), models.whole.features(images, as_grid=True)


def test_a_neck_that_a_model_lacks_is_passed_over_only_if_allowed():
    arrays, model = file_of(small(), SAM), blank(neck=None)
    with pytest.raises(WeightsError, match="6 unexpected"):
        load_weights(model, arrays)
    load_weights(model, arrays, allow_unexpected=["neck/.*"])
    both = nnx.Dict({"bare": model, "whole": small()})
    np.testing.assert_array_equal(*run(call_and_last_map, both, images()))


@TABLES
def test_the_tables_of_a_model_for_another_size_are_those_it_would_make_itself(table):
    source, other = small(), blank(image_size=(12, 28))
    report = load_weights(other, file_of(source, table))
    assert set(report.resized) == {
        "pos_embed: 5x5 to 3x7",
        "blocks/1/attn/inner/rel_pos_h: 9 to 5",
        "blocks/1/attn/inner/rel_pos_w: 9 to 13",
    }
    pixels = images(12, 28)
    found, expected = (run("__call__", x, pixels) for x in (other, source))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_relative_tables_can_keep_the_length_of_the_file():
    model = blank(relative_size=40)
    arrays = file_of(small(relative_size=40), SAM)
    assert load_weights(model, arrays).resized == []
    assert arrays["image_encoder.blocks.1.attn.rel_pos_h"].shape == (19, 8)


def test_tables_of_other_heads_do_not_fit():
    with pytest.raises(WeightsError, match=r"rel_pos_h: file \(9, 8\), model \(9, 4\)"):
        load_weights(blank(num_heads=4), file_of(small(), SAM))


def test_a_model_of_a_grid_that_is_not_square_has_no_place_in_such_files():
    with pytest.raises(WeightsError, match="square grids, not of 21 places"):
        revert(values_of(small(image_size=(12, 28))), SAM)
