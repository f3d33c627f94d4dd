"""Dense detection heads: sizes, padding, empty images, precision, micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from tests.heads.tiny_boxes import NAMES, SIZE, SLOTS, STRIDES, made, maps, new, truths, whole
from vadapt.boxes.geometry import ImageSizes
from vadapt.errors import ConfigError, ShapeError
from vadapt.heads import box_head
from vadapt.micro_batches import counted, counting
from vadapt.partition import Head, variables
from vadapt.weights.load import with_arrays


def losses(head, maps, *truth):
    return head.loss(head(maps), *truth)


def gradients(head, maps, *truth):
    """Terms, and the gradients of their sum by the maps."""

    def total(maps):
        terms = losses(head, maps, *truth)
        return sum(terms.values()), terms

    slopes, terms = jax.grad(total, has_aux=True)(maps)
    return terms, slopes


def test_retinanet_has_the_published_number_of_parameters():
    head = nnx.eval_shape(lambda: box_head("retinanet", [256] * 5, 10, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(head))) == 5_011_070
    assert all(isinstance(x, Head) for x in variables(head).values())


@pytest.mark.parametrize("name", NAMES)
def test_a_new_head_scores_one_percent_everywhere(name):
    head = new(name, depth=2)
    predictions = compiled.run("__call__", head, maps())
    for level, x in enumerate(predictions.classes):
        assert x.shape[1:3] == (SIZE[0] // STRIDES[level], SIZE[1] // STRIDES[level])
        np.testing.assert_allclose(jax.nn.sigmoid(x), 0.01, rtol=0.4)


@pytest.mark.parametrize(
    ("name", "slots"), [*((name, SLOTS) for name in NAMES), ("gfl", 0), ("fsaf", 0)]
)
def test_without_ground_truth_losses_and_gradients_are_finite(name, slots):
    truth = (
        jnp.zeros((4, slots, 4)),
        jnp.zeros((4, slots), jnp.int32),
        jnp.zeros((4, slots), bool),
    )
    terms, slopes = compiled.run(gradients, made(name), maps(), *truth, whole())
    assert float(terms["loss_cls"]) > 0
    assert all(float(terms[name]) == 0 for name in terms if name != "loss_cls")
    assert all(jnp.isfinite(x).all() for x in slopes)
    assert all(jnp.abs(x).max() > 0 for x in slopes)


@pytest.mark.parametrize("name", ["retinanet", "gfl", "fsaf"])
def test_slots_without_ground_truth_change_nothing_to_the_bit(name):
    boxes, classes, valid = truths()
    few = compiled.run(gradients, made(name), maps(), boxes, classes, valid, whole())
    pad = ((0, 0), (0, 13))
    more = (
        jnp.concatenate([boxes, jnp.tile(boxes[1:2, :1], (4, 13, 1))], axis=1),
        jnp.pad(classes, pad, constant_values=2),
        jnp.pad(valid, pad),
    )
    many = compiled.run(gradients, made(name), maps(), *more, whole())
    jax.tree.map(np.testing.assert_array_equal, few, many)


@pytest.mark.parametrize("name", ["retinanet", "fsaf"])
def test_what_a_batch_pads_beyond_an_image_does_not_count(name):
    head, (boxes, classes, valid) = made(name), truths()
    boxes = jnp.minimum(boxes, 63.0)
    sizes = ImageSizes.whole(4, (64, 64))
    predictions = compiled.run("__call__", head, maps())
    cut = jax.tree.map(lambda x: x[:, :, : x.shape[2] * 2 // 3], predictions)
    wide, narrow = (
        compiled.run(lambda head, *a: head.loss(*a), head, x, boxes, classes, valid, sizes)
        for x in (predictions, cut)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), wide, narrow)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_weigh_what_they_hold(name):
    """Four images at once, or in two parts, by what a step does with counts."""
    head, arguments = made(name), (maps(), *truths(), whole())
    parts = [jax.tree.map(lambda x, i=i: x[i::2], arguments) for i in range(2)]

    def step(head):
        counts = []
        for part in parts:
            with counting() as found:
                losses(head, *part)
            counts.append(found)
        total = [sum(x) for x in zip(*counts, strict=True)]
        results = []
        for part in parts:
            with counted(total, len(parts)):
                results.append(losses(head, *part))
        return results

    terms, _ = compiled.run(gradients, head, *arguments)
    found = compiled.run(step, head)
    for name, value in terms.items():
        np.testing.assert_allclose(sum(x[name] for x in found) / 2, value, rtol=1e-5)


def lowered(head):
    return with_arrays(head, {k: x[...].astype(jnp.bfloat16) for k, x in variables(head).items()})


def low_maps():
    return tuple(x.astype(jnp.bfloat16) for x in maps())


@pytest.mark.parametrize("name", ["atss", "fsaf"])
def test_weights_in_bfloat16_give_float32_and_nearly_the_same(name):
    head = made(name)
    found = compiled.run("__call__", lowered(head), low_maps())
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    expected = compiled.run("__call__", head, maps())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.abs(a - b).max() < 0.03 * (1 + jnp.abs(b).max())


def test_losses_are_in_float32_whatever_the_weights():
    head = made("gfl")
    terms, _ = compiled.run(gradients, lowered(head), low_maps(), *truths(), whole())
    expected, _ = compiled.run(gradients, head, maps(), *truths(), whole())
    for key, value in expected.items():
        assert terms[key].dtype == jnp.float32
        np.testing.assert_allclose(terms[key], value, rtol=0.1)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"widths \(8, 16\) for strides"):
        box_head("gfl", [8, 16], 3, strides=(8, 16), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="no option 'nearset'"):
        box_head("gfl", [8, 8], 3, nearset=3, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="18 channels do not make 4 equal groups"):
        new("gfl", width=18)
    with pytest.raises(ShapeError, match="1 maps for a head of strides"):
        made("retinanet")(maps()[:1])
