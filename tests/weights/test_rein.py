"""Rein's files: their names, both ways, and that they do not pass for a whole model."""

import numpy as np
import pytest
from flax import nnx

import vadapt
from vadapt import models
from vadapt.errors import WeightsError
from vadapt.necks.learned import Deconvolutions, MultiLevelNeck
from vadapt.partition import flatten, split, variables
from vadapt.weights.families.dinov2 import DINOV2
from vadapt.weights.families.rein import REIN
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

DEPTH, WIDTH = 2, 16


def grafted(**options):
    size = {"width": WIDTH, "depth": DEPTH, "num_heads": 2, "image_size": 28}
    trunk = models.create("dinov2_small", **size)
    return vadapt.adapt(trunk, "rein", **{"num_tokens": 5, "rank": 3, "query_width": 4, **options})


class Parts(nnx.Module):
    """A backbone with a neck beside it."""

    def __init__(self, backbone, neck):
        self.backbone, self.neck = backbone, neck


def random_values(tree):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in tree.items()}


def official(model):
    """Random arrays for what trains, as the released files name them."""
    arrays, lost = revert(random_values(flatten(split(model).trainable)), REIN)
    assert lost == []
    return arrays


def test_names_and_shapes_are_the_published_ones():
    shapes = {name: array.shape for name, array in official(grafted()).items()}
    assert shapes == {
        "backbone.reins.scale": (),
        "backbone.reins.learnable_tokens_a": (DEPTH, 5, 3),
        "backbone.reins.learnable_tokens_b": (DEPTH, 3, WIDTH),
        "backbone.reins.mlp_token2feat.weight": (WIDTH, WIDTH),
        "backbone.reins.mlp_token2feat.bias": (WIDTH,),
        "backbone.reins.mlp_delta_f.weight": (WIDTH, WIDTH),
        "backbone.reins.mlp_delta_f.bias": (WIDTH,),
        "backbone.reins.transform.weight": (4, WIDTH),
        "backbone.reins.transform.bias": (4,),
        "backbone.reins.merge.weight": (4, 12),
        "backbone.reins.merge.bias": (4,),
    }
    assert "backbone.reins.learnable_tokens" in official(grafted(rank=None))


def test_stages_are_numbered():
    names, lost = revert({"adapter/2/tokens_a": np.ones((1, 2, 3))}, REIN)
    assert (list(names), lost) == (["backbone.reins.2.learnable_tokens_a"], [])


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_a_file_of_rein_needs_a_trunk_or_leave_to_go_without(prefix):
    model = grafted()
    arrays = {prefix + name.removeprefix("backbone."): a for name, a in official(model).items()}
    with pytest.raises(WeightsError, match=r"nothing was loaded.*missing \(.*blocks/0/attn"):
        load_weights(model, arrays)
    report = load_weights(model, arrays, allow_missing=["(?!adapter/).*"])
    assert (report.family, len(report.loaded), report.unexpected) == ("rein", 11, [])
    kernel = arrays[prefix + "reins.mlp_delta_f.weight"].T
    np.testing.assert_array_equal(model.adapter.delta.kernel[...], kernel)


def test_trunk_and_rein_load_from_one_file_or_two():
    model, twin = grafted(), grafted()
    trunk, _ = revert(random_values(flatten(split(model).frozen)), DINOV2)
    trunk["mask_token"] = np.ones((1, WIDTH), np.float32)
    report = load_weights(model, {**trunk, **official(model)})
    assert (report.family, report.missing, report.unexpected) == ("dinov2", [], [])
    load_weights(twin, trunk, allow_missing=["adapter/.*"])
    load_weights(twin, official(model), allow_missing=["(?!adapter/).*"])
    for path, value in variables(model).items():
        np.testing.assert_array_equal(variables(twin)[path][...], value[...], err_msg=path)


def test_the_pyramid_trained_with_rein_is_read_and_written():
    model = Parts(None, Deconvolutions(4, rngs=nnx.Rngs(0)))
    arrays, lost = revert(random_values(variables(model)), REIN)
    assert lost == []
    assert arrays["backbone.fpn1.4.weight"].shape == (4, 4, 2, 2)
    assert {name.split(".")[1] for name in arrays} == {"fpn1", "fpn2", "fpn3", "fpn4"}
    counted = {**arrays, "backbone.fpn1.2.num_batches_tracked": np.asarray(7)}
    report = load_weights(model, counted)
    assert report.unused == ["fpn1.2.num_batches_tracked"]
    np.testing.assert_array_equal(model.neck.between.mean, arrays["backbone.fpn1.2.running_mean"])


def test_the_frozen_baselines_neck_is_read_and_written():
    model = Parts(None, MultiLevelNeck([4, 4], 6, factors=(2, 1), rngs=nnx.Rngs(0)))
    arrays, lost = revert(random_values(variables(model)), REIN)
    assert lost == []
    assert arrays["neck.lateral_convs.1.conv.weight"].shape == (6, 4, 1, 1)
    assert arrays["neck.convs.0.conv.weight"].shape == (6, 6, 3, 3)
    assert len(load_weights(model, arrays).loaded) == 8
