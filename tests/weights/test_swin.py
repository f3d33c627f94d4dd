"""Swin's files: official names, timm's, Hugging Face's, both ways."""

import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from vadapt.backbones.swin import Swin
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.families.swin import SWIN, SWIN_HF, SWIN_TIMM
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

DEPTHS, WIDTH, HEADS_OF = (2, 1, 2, 1), 4, (1, 2, 2, 4)
HEADS = {"swin": "head.weight", "swin_timm": "head.fc.weight", "swin_hf": "classifier.weight"}
TABLES = [SWIN, SWIN_TIMM, SWIN_HF]
FAMILIES = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.family)


def small(seed=0, **options):
    options = {"depths": DEPTHS, "width": WIDTH, "num_heads": HEADS_OF, "window": 3, **options}
    return drawn(lambda: Swin(**options, rngs=nnx.Rngs(0)), seed)


def values_of(model):
    return {path: np.asarray(value[...]) for path, value in variables(model).items()}


def file_of(table, **options):
    arrays, lost = revert(values_of(small(**options)), table)
    assert lost == []
    return arrays


def published(family):
    """Every name of a trunk, with its shape."""
    shapes = {}

    def add(name, *shape):
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    add("patch_embed.proj", WIDTH, 3, 4, 4)
    add("patch_embed.norm", WIDTH)
    add("norm", 8 * WIDTH)
    for i, depth in enumerate(DEPTHS):
        width = WIDTH * 2**i
        if i < 3:
            name = f"layers.{i + (family == 'swin_timm')}.downsample."
            add(name + "norm", 4 * width)
            shapes[name + "reduction.weight"] = (2 * width, 4 * width)
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}."
            add(name + "norm1", width)
            add(name + "attn.qkv", 3 * width, width)
            add(name + "attn.proj", width, width)
            shapes[name + "attn.relative_position_bias_table"] = (25, HEADS_OF[i])
            add(name + "norm2", width)
            add(name + "mlp.fc1", 4 * width, width)
            add(name + "mlp.fc2", width, 4 * width)
    return shapes


@pytest.mark.parametrize("table", TABLES[:2], ids=lambda table: table.family)
def test_names_and_shapes_are_the_published_ones(table):
    shapes = {name: array.shape for name, array in file_of(table).items()}
    assert shapes == published(table.family)


@FAMILIES
def test_files_load_whole_and_are_written_back(table):
    arrays, head = file_of(table), HEADS[table.family]
    model = small(seed=1)
    report = load_weights(model, {**arrays, head: np.ones((2, 10))})
    assert report.family == table.family
    assert report.unused == [head]
    assert report.missing + report.unexpected + report.cast == []
    written, lost = revert(values_of(model), table)
    assert lost == []
    assert written.keys() == arrays.keys()
    for name, array in written.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_what_is_computed_is_passed_over():
    more = {
        "layers.0.blocks.0.attn.relative_position_index": np.zeros((9, 9), np.int64),
        "layers.0.blocks.1.attn_mask": np.zeros((4, 9, 9), np.float32),
    }
    assert load_weights(small(), {**file_of(SWIN), **more}).unused == sorted(more)


@pytest.mark.parametrize(
    ("table", "name"),
    [(SWIN, "norm1.weight"), (SWIN_HF, "hidden_states_norms.stage2.weight")],
    ids=lambda value: getattr(value, "family", ""),
)
def test_norms_of_the_other_stages_have_names_too(table, name):
    every = (0, 1, 2, 3)
    arrays = file_of(table, normed=every)
    model = small(normed=every, seed=1)
    assert load_weights(model, arrays).missing == []
    np.testing.assert_array_equal(model.norms["1"].scale[...], arrays[name])


def test_a_window_of_another_size_is_refused():
    with pytest.raises(WeightsError, match=r"stages/0/0/attn/inner/table"):
        load_weights(small(window=4), file_of(SWIN))
