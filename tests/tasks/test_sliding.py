"""Inference in windows, at scales, mirrored: what is averaged, and that one shape compiles once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt import sharding
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import Swin
from vadapt.backbones.vig import ViG
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.nn.resize import resize_bilinear
from vadapt.system import System
from vadapt.tasks.inputs import blank_padding
from vadapt.tasks.sliding import Inference, check_windows, slide, window_starts


def placed(images):
    """Scores that differ by the place in the window."""
    rows = jnp.arange(float(images.shape[1])).reshape(1, -1, 1, 1)
    columns = jnp.arange(float(images.shape[2])).reshape(1, 1, -1, 1)
    return jnp.concatenate([images + 0.1 * rows, images * columns], -1)


def in_python(images, crop, stride):
    """The definition, window by window."""
    b, h, w, _ = images.shape
    sums = np.zeros((b, h, w, 2 * images.shape[-1]))
    count = np.zeros((1, h, w, 1))
    for top in window_starts(h, min(crop[0], h), stride[0]):
        for left in window_starts(w, min(crop[1], w), stride[1]):
            cut = np.s_[:, top : top + crop[0], left : left + crop[1]]
            sums[cut] += np.asarray(placed(images[cut]))
            count[cut] += 1
    return sums / count


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), crop=st.integers(1, 64), share=st.floats(0.1, 1))
def test_windows_cover_everything_and_stay_inside(size, crop, share):
    crop, stride = min(crop, size), max(1, int(crop * share))
    starts = window_starts(size, crop, min(stride, crop))
    assert starts[0] == 0
    assert starts[-1] + crop == size
    assert max(np.diff(starts), default=0) <= crop


@pytest.mark.parametrize("windows", [1, 2, 4, 50])
@pytest.mark.parametrize("crop", [(8, 8), (30, 8), (5, 6)])
def test_windows_are_averaged_however_many_are_taken_at_a_time(rng, windows, crop):
    images = rng.normal(size=(2, 13, 17, 3)).astype(np.float32)
    found = slide(placed, jnp.asarray(images), crop, (4, 5), windows=windows)
    np.testing.assert_allclose(found, in_python(images, crop, (4, 5)), rtol=1e-5, atol=1e-5)


def test_an_image_of_the_crops_size_is_scored_whole(rng):
    images = jnp.asarray(rng.normal(size=(1, 8, 9, 3)), jnp.float32)
    found = Inference((8, 9))(placed, images, (8, 9))
    np.testing.assert_array_equal(found, Inference()(placed, images, (8, 9)))


def test_one_shape_is_one_program_that_holds_the_model_once(rng):
    traced = []

    def score(images):
        traced.append(images.shape)
        return placed(images)

    infer = jax.jit(lambda images: Inference((8, 8), (4, 4), windows=2)(score, images, (40, 40)))
    for _ in range(2):
        infer(jnp.asarray(rng.normal(size=(1, 40, 40, 3)), jnp.float32))
    # Once for the number of classes, once for the scan's body, whatever the number of windows.
    assert traced == [(1, 8, 8, 3), (2, 8, 8, 3)]


def test_a_sharded_batch_stays_where_it_is_when_it_slides():
    mesh = sharding.make_mesh()
    images = jax.ShapeDtypeStruct(
        (8, 12, 12, 3), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )
    infer = jax.jit(lambda images: slide(placed, images, (8, 8), (4, 4), windows=2))
    program = infer.lower(images).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert f" {collective}(" not in program


def test_mirrored_scores_are_mirrored_back(rng):
    images = jnp.asarray(rng.normal(size=(1, 6, 8, 3)), jnp.float32)
    found = Inference(flip=True)(placed, images, (6, 8))
    mirrored = placed(images[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(found, (placed(images) + mirrored) / 2, rtol=1e-6)


def test_scales_are_averaged_at_the_images_size(rng):
    sizes = []

    def score(images):
        sizes.append(images.shape[1:3])
        return images

    images = jnp.asarray(rng.normal(size=(1, 20, 30, 2)), jnp.float32)
    found = Inference(scales=(0.5, 1.0, 1.75), multiple=4)(score, images, (10, 10))
    assert sizes == [(12, 16), (20, 32), (36, 52)]
    assert found.shape == (1, 10, 10, 2)
    flat = Inference(scales=(0.5, 1.5))(score, jnp.ones((1, 8, 8, 1)), (8, 8))
    np.testing.assert_allclose(flat, 1.0, rtol=1e-6)


def test_resizing_agrees_with_jax(rng):
    scores = jnp.asarray(rng.normal(size=(2, 9, 7, 3)), jnp.float32)
    for size in ((20, 31), (5, 4), (9, 11), (9, 7)):
        expected = jax.image.resize(scores, (2, *size, 3), "bilinear", antialias=False)
        np.testing.assert_allclose(resize_bilinear(scores, size), expected, atol=1e-5)


def test_padding_becomes_zero_after_normalisation():
    padded = blank_padding(jnp.ones((2, 4, 5, 3)), jnp.array([[4, 5], [2, 3]]))
    assert padded.sum((1, 2, 3)).tolist() == [60, 18]
    assert (padded[1, :2, :3] == 1).all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"crop": (0, 4)}, r"eval\.crop is \(0, 4\); give \(height, width\)"),
        ({"crop": (4, 4), "stride": (0, 4)}, r"eval\.stride is \(0, 4\); give"),
        ({"crop": (4, 4), "stride": (4, 5)}, "give a stride of at most the crop"),
        ({"stride": (4, 4)}, r"without a crop; give config\.eval\.crop"),
        ({"scales": ()}, r"eval\.scales is \(\); give one factor"),
        ({"scales": (0,)}, r"eval\.scales is \(0,\); give"),
        ({"scales": (1.0, math.nan)}, r"eval\.scales is .*nan\); give"),
        ({"scales": (math.inf,)}, r"eval\.scales is \(inf,\); give"),
        ({"windows": 0}, r"eval\.windows is 0; at least 1"),
        ({"multiple": 0}, "multiple is 0"),
        ({"crop": (20, 32), "multiple": 8}, r"give \(16, 32\) or \(24, 32\)"),
        ({"crop": (5, 8), "multiple": 8}, r"give \(8, 8\) or \(8, 8\)"),
    ],
)
def test_impossible_options_are_errors(options, why):
    with pytest.raises(ConfigError, match=why):
        Inference(**options)


def test_windows_that_leave_pixels_out_are_refused():
    with pytest.raises(ConfigError, match=r"eval\.crop is \(4,\); give \(height, width\)"):
        check_windows((4,), None, 1)
    with pytest.raises(ConfigError, match="at most the crop"):
        slide(placed, jnp.zeros((1, 20, 20, 1)), (4, 4), (5, 4))


BACKBONES = {
    "vit": lambda rngs: vit("micro", depth=1, patch_size=8, image_size=32, rngs=rngs),
    "sam": lambda rngs: SAMEncoder(
        width=8,
        depth=1,
        num_heads=2,
        patch_size=8,
        image_size=32,
        global_blocks=(0,),
        neck=None,
        rngs=rngs,
    ),
    "convnext": lambda rngs: ConvNeXt(
        depths=(1, 1), widths=(4, 8), layer_scale=1.0, normed=(1,), rngs=rngs
    ),
    "swin": lambda rngs: Swin(depths=(1, 1), width=4, num_heads=(1, 1), window=2, rngs=rngs),
    "resnet": lambda rngs: ResNet(18, base_width=4, rngs=rngs),
    "vig": lambda rngs: ViG(
        widths=(8, 8), depths=(1, 1), k=2, reductions=(1, 1), image_size=32, rngs=rngs
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_no_backbone_leaves_out_or_stretches_the_edge_of_an_image(name, rng):
    backbone = BACKBONES[name](nnx.Rngs(0))
    layer = len(backbone.strides) - 1 if hasattr(backbone, "strides") else 0
    model = System(backbone, None, layers=(layer,))
    grid = []

    def score(images):
        maps = model.features(images).maps[-1]
        grid.append((images.shape[1:3], maps.shape[1:3]))
        return resize_bilinear(maps, images.shape[1:3])

    inference = Inference(multiple=model.multiple)
    image = jnp.asarray(rng.normal(size=(1, 32, 31, 3)), jnp.float32)

    def at_edge(image):
        return (inference(score, image, (32, 31))[:, :, -4:] ** 2).sum()

    moved = jax.jit(jax.grad(at_edge))(image)
    assert (np.abs(moved[0, :, -1]).max(-1) > 0).any()  # the last column counts
    for seen, places in grid:
        assert seen == tuple(side * model.multiple for side in places)


def test_models_see_multiples_of_their_patches_only(rng):
    seen = []

    def score(images):
        seen.append(images.shape[1:3])
        return images

    images = jnp.asarray(rng.normal(size=(1, 50, 23, 2)), jnp.float32)
    # Nothing is stretched: every pixel keeps its place, and what was added is gone.
    np.testing.assert_array_equal(Inference(multiple=8)(score, images, (50, 23)), images)
    assert seen == [(56, 24)]
    seen.clear()
    Inference((32, 32), (16, 16), multiple=8)(score, images, (50, 23))
    assert set(seen) == {(32, 24)}
