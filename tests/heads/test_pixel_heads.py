"""Heads that classify pixels from maps: UPerNet with its FCN, and the linear ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.compiled import run
from vadapt.errors import ConfigError
from vadapt.heads import SEGMENTATION, segmentation_head
from vadapt.heads.linear import LinearHead
from vadapt.heads.upernet import UPerNet
from vadapt.nn.resize import average_pool
from vadapt.partition import Head, count, flatten, merge, split, variables
from vadapt.weights.adapter_file import load_adapter, save_adapter
from vadapt.weights.families.upernet import PAD_SEGMENTER
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

WIDTHS = (4, 5, 6, 7)
SIZES = ((13, 11), (7, 6), (4, 3), (2, 2))  # odd ones, as strides that do not divide an image give
MAKE = {
    "upernet": lambda **options: UPerNet(WIDTHS, 3, channels=4, auxiliary_channels=4, **options),
    "linear": lambda **options: LinearHead(WIDTHS, 3, **options),
}
HEADS = pytest.mark.parametrize("name", MAKE)


class Headed(nnx.Module):
    """A model of a head."""

    def __init__(self, head):
        self.head = head


@functools.cache
def made(name):
    return MAKE[name](rngs=nnx.Rngs(0))


@pytest.fixture
def maps(rng):
    shapes = [(2, *size, width) for size, width in zip(SIZES, WIDTHS, strict=True)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.fixture
def labels(rng):
    return rng.integers(0, 3, size=(2, 26, 22)).astype(np.int32)


def without_the_upper_half(labels):
    return np.where(np.arange(26)[:, None] < 13, np.int32(255), labels)


def losses(head, found, labels):
    return head.loss(found, labels)


@HEADS
def test_scores_come_at_any_size_and_the_loss_reaches_every_weight(name, maps, labels):
    parts = split(made(name))
    labels = jnp.asarray(labels)

    def total(trainable):
        head = merge(parts.graph, trainable, parts.frozen, parts.state)
        found = head(maps)
        return sum(head.loss(found, labels).values()), head.scores(found, (26, 22))

    (_, scores), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(parts.trainable)
    assert scores.shape == (2, 26, 22, 3)
    assert {type(v) for v in variables(made(name)).values()} >= {Head}
    for path, grad in flatten(grads).items():
        assert np.abs(grad).max() > 0, path


@HEADS
def test_ignored_pixels_teach_nothing(name, maps, labels):
    head = made(name)
    found = run("__call__", head, maps)
    other = without_the_upper_half(labels)
    again = without_the_upper_half((labels + 1) % 3)
    again = np.where(other == 255, again, labels)
    expected = run(losses, head, found, again)
    for key, value in run(losses, head, found, other).items():
        np.testing.assert_array_equal(value, expected[key])
    everything = np.full_like(labels, 255)
    assert all(float(value) == 0 for value in run(losses, head, found, everything).values())


def test_the_mean_is_over_all_pixels_where_released_systems_take_it(maps, labels):
    half = without_the_upper_half(labels)
    counted = MAKE["upernet"](average_all=False, auxiliary=None, rngs=nnx.Rngs(0))
    found = run("__call__", made("upernet"), maps)
    released = run(losses, made("upernet"), found, half)["loss_seg"]
    np.testing.assert_allclose(
        run(losses, counted, found, half)["loss_seg"], 2 * released, rtol=1e-6
    )


def test_all_resizing_goes_by_the_heads_corners_and_its_loss_by_its_label_to_ignore(maps, labels):
    aligned = MAKE["upernet"](align_corners=True, ignore=2, rngs=nnx.Rngs(0))
    found, plain = (run("__call__", head, maps) for head in (aligned, made("upernet")))
    assert np.abs(found.logits - plain.logits).max() > 1e-3
    scores = run("scores", aligned, found, size=(26, 22))
    np.testing.assert_allclose(scores[:, ::25, ::21], found.logits[:, ::12, ::10], atol=1e-6)
    marked = np.where(labels == 2, np.int32(255), labels)
    resized = found._replace(logits=scores, auxiliary=None)
    expected = run(losses, made("upernet"), resized, marked)
    loss = run(losses, aligned, found, labels)
    np.testing.assert_allclose(loss["loss_seg"], expected["loss_seg"], rtol=1e-6)


def test_a_key_drops_whole_channels_before_the_classifiers(maps):
    head = made("upernet")
    call = jax.jit(lambda key: head(maps, None, key).logits)
    first, second = call(jax.random.key(0)), call(jax.random.key(1))
    assert np.abs(first - second).max() > 0
    still, again = (run("__call__", head, maps).logits for _ in range(2))
    np.testing.assert_array_equal(still, again)


def trained(head, maps):
    """The state after a call in training."""
    head.train()
    head(maps)
    head.eval()
    return nnx.state(head)


@HEADS
def test_in_training_norms_take_the_batchs_statistics_and_keep_them(name, maps, tmp_path):
    head = MAKE[name](rngs=nnx.Rngs(0))
    before = run("__call__", head, maps)
    nnx.update(head, run(trained, head, maps))
    after = run("__call__", head, maps)
    assert np.abs(jax.tree.leaves(after)[0] - jax.tree.leaves(before)[0]).max() > 0
    # What was learned of them goes with the weights.
    save_adapter(tmp_path / "head.safetensors", Headed(head))
    fresh = MAKE[name](rngs=nnx.Rngs(1))
    load_adapter(Headed(fresh), tmp_path / "head.safetensors")
    for found, expected in zip(
        *map(jax.tree.leaves, (run("__call__", fresh, maps), after)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_windows_of_pooling_overlap_where_they_must():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    x = jnp.broadcast_to(x, (1, 5, 5, 1))
    np.testing.assert_allclose(average_pool(x, 3)[0, :, 0, 0], [0.5, 2.0, 3.5])
    np.testing.assert_allclose(average_pool(x, 1), x.mean(axis=(1, 2), keepdims=True))
    np.testing.assert_array_equal(average_pool(x, 5), x)


@pytest.mark.parametrize(
    ("widths", "channels", "number"),
    [
        ((128, 256, 512, 1024), 512, 33_315_990),
        ((256, 512, 1024, 2048), 512, 40_590_486),
        ((768,) * 4, 768, 67_963_542),
    ],
)
def test_parameters_are_as_many_as_published(widths, channels, number):
    def make():
        return UPerNet(widths, 150, channels=channels, auxiliary=None, rngs=nnx.Rngs(0))

    assert count(split(nnx.eval_shape(make)).trainable) == number


def test_mmsegmentations_names_are_read_and_written():
    head = made("upernet")
    values = {f"head/{p}": np.asarray(v[...]) for p, v in variables(head).items()}
    written, lost = revert(values, PAD_SEGMENTER)
    assert lost == []
    assert written["decode_head.conv_seg.weight"].shape == (3, 4, 1, 1)
    assert "auxiliary_head.convs.0.bn.running_var" in written
    counted = {**written, "decode_head.bottleneck.bn.num_batches_tracked": np.asarray(3)}
    model = Headed(MAKE["upernet"](rngs=nnx.Rngs(1)))
    report = load_weights(model, counted)
    assert (report.family, len(report.unused)) == ("pad_segmenter", 1)
    for path, value in variables(model).items():
        np.testing.assert_array_equal(value[...], values[path], err_msg=path)


def test_heads_are_made_by_name():
    head = segmentation_head("linear", (4,), 2, rngs=nnx.Rngs(0))
    assert isinstance(head, LinearHead)
    with pytest.raises(ConfigError, match="nearest: 'upernet'"):
        segmentation_head("upernets", (4,), 2, rngs=nnx.Rngs(0))
    assert set(SEGMENTATION) == {"linear", "upernet", "mask2former"}
