"""Mask2Former's head: its size, what trains, hard masks, any sizes, and its names in files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.equations import equations, shapes
from vadapt import models
from vadapt.adapters import rein
from vadapt.errors import ConfigError, ShapeError, WeightsError
from vadapt.heads.mask2former import Mask2FormerHead, semantic_scores
from vadapt.heads.pixel_decoder import PixelDecoder
from vadapt.partition import Head, count, flatten, merge, split, variables
from vadapt.weights.families.rein import REIN
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

CLASSES, QUERIES, WIDTH = 3, 4, 16
SMALL = {
    "num_queries": QUERIES,
    "width": WIDTH,
    "outputs": WIDTH,
    "depth": 3,
    "num_heads": 2,
    "hidden": 8,
    "encoder_depth": 1,
    "encoder_hidden": 8,
    "num_points": 2,
    "num_groups": 4,
}
KINDS = {
    "replaced": {},
    "positions": {"replace_query_feat": False},
    "own": {"linked": False},
}


def build(kind="replaced", **options):
    options = {**SMALL, **KINDS[kind], **options}
    return Mask2FormerHead([5, 6, 7, 8], CLASSES, **options, rngs=nnx.Rngs(0))


def draw_maps(height=8, width=12):
    sizes = [(height, width), (height // 2, width // 2), (height // 4, width // 4), (1, 1)]
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        jax.random.normal(key, (2, *size, d))
        for key, size, d in zip(keys, sizes, [5, 6, 7, 8], strict=True)
    ]


def queries_for(kind):
    return None if kind == "own" else jax.random.normal(jax.random.key(1), (QUERIES, WIDTH))


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 20_579_796), ({"linked": False}, 20_565_204)]
)
def test_parameters_are_as_many_as_published(options, expected):
    head = nnx.eval_shape(lambda: Mask2FormerHead([1024] * 4, 19, **options, rngs=nnx.Rngs(0)))
    assert count(split(head, Head).trainable) == expected
    assert count(split(head, Head).frozen) == 0


@pytest.mark.parametrize(("kind", "depth"), [("replaced", 1), ("own", 3)])
def test_every_parameter_has_a_gradient_and_none_is_nan(kind, depth):
    parts, maps, queries = split(build(kind, depth=depth)), draw_maps(), queries_for(kind)
    # Away from the first values, where all places weigh the same.
    rng = np.random.default_rng(2)
    noise = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(size=x.shape, scale=0.1).astype(np.float32),
        parts.trainable,
    )

    def loss(trainable, maps, queries):
        head = merge(parts.graph, trainable, parts.frozen, parts.state)
        return sum(jnp.square(each).sum() for each in head(maps, queries))

    grads = jax.jit(jax.grad(loss, (0, 1) if queries is None else (0, 1, 2)))(noise, maps, queries)
    for path, gradient in flatten(
        {str(i): x for i, x in enumerate(jax.tree.leaves(grads))}
    ).items():
        assert np.isfinite(gradient).all(), path
    for path, gradient in flatten(grads[0]).items():
        # A layer looks at one level.
        reached = gradient[:depth] if path == "level_embed" else gradient
        assert np.asarray(reached).any(), path
    for gradient in grads[1:]:
        assert all(np.asarray(x).any() for x in jax.tree.leaves(gradient))


def test_masks_of_all_layers_are_two_products():
    parts, maps, queries = split(build()), draw_maps(), queries_for("replaced")

    def predictions(trainable, maps, queries):
        return merge(parts.graph, trainable, parts.frozen, parts.state)(maps, queries)

    traced = jax.make_jaxpr(predictions)(parts.trainable, maps, queries).jaxpr
    products = [one for one in equations(traced) if one.primitive.name == "dot_general"]
    made = [shape for one in products for shape in shapes(one) if len(shape) == 5]
    assert sorted(np.prod(shape) // (2 * QUERIES * 8 * 12) for shape in made) == [1, 3]


def test_predictions_are_float32_whatever_the_compute_type():
    parts = split(build())
    small = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parts.trainable)
    maps = [x.astype(jnp.bfloat16) for x in draw_maps()]

    @jax.jit
    def run(small, maps, queries):
        head = merge(parts.graph, small, parts.frozen, parts.state)
        predictions = head(maps, queries)
        return predictions, head.scores(predictions, (32, 48))

    predictions, scores = run(small, maps, queries_for("replaced").astype(jnp.bfloat16))
    assert {x.dtype for x in (*predictions, scores)} == {jnp.dtype("float32")}
    assert predictions.classes.shape == (4, 2, QUERIES, CLASSES + 1)
    assert predictions.masks.shape == (4, 2, QUERIES, 8, 12)
    assert scores.shape == (2, 32, 48, CLASSES)
    assert all(np.isfinite(x).all() for x in (*predictions, scores))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_an_image_do_not_depend_on_its_batch(kind):
    head, queries = build(kind), queries_for(kind)
    run = nnx.jit(lambda head, maps: head.scores(head(maps, queries), (16, 16)))
    maps = draw_maps()
    both, twice = run(head, maps), run(head, [x[jnp.array([0, 0])] for x in maps])
    np.testing.assert_allclose(both[:1], twice[:1], atol=2e-5)
    assert np.abs(both[1] - twice[1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["replaced", "positions"])
def test_every_image_may_have_queries_of_its_own(kind):
    head, maps = build(kind), draw_maps()
    run = nnx.jit(lambda head, maps, queries: head(maps, queries))
    own = jax.random.normal(jax.random.key(1), (2, QUERIES, WIDTH))
    found = run(head, maps, own)
    for i in range(2):
        shared = run(head, maps, own[jnp.array([i, i])])
        np.testing.assert_allclose(found.masks[:, i], shared.masks[:, i], atol=1e-4)
        np.testing.assert_allclose(found.classes[:, i], shared.classes[:, i], atol=1e-4)


def test_the_pixel_decoder_may_have_heads_of_its_own():
    shared, own = (nnx.eval_shape(lambda n=n: build(encoder_heads=n)) for n in (None, 4))
    heads = [
        (head.pixel_decoder.layers[0].attn.heads[0], head.layers[0].self_attn.num_heads)
        for head in (shared, own)
    ]
    assert heads == [(2, 2), (4, 2)]


def test_a_mask_that_is_empty_everywhere_blocks_nothing():
    head = build()
    features, x = -jnp.ones((1, 2, 3, WIDTH)), jnp.ones((1, QUERIES, WIDTH))
    last = head.mask_embed[2]
    last.kernel[...] = jnp.zeros_like(last.kernel[...])
    last.bias[...] = jnp.ones_like(last.bias[...])  # all masks are negative, on all pixels
    assert not np.asarray(head._blocked(x, features)).any()
    partly = features.at[:, 0, 0].set(1.0)
    blocked = np.asarray(head._blocked(x, partly))
    assert blocked.sum(-1).tolist() == [[5] * QUERIES]
    assert not blocked[..., 0].any()


def test_scores_of_a_certain_query_are_its_mask():
    classes = jnp.full((1, 2, CLASSES + 1), -50.0).at[0, 0, 1].set(50.0).at[0, 1, -1].set(50.0)
    masks = jnp.where(jnp.arange(8) < 4, 9.0, -9.0)
    masks = jnp.broadcast_to(masks, (1, 2, 8, 8))
    scores = semantic_scores(classes, masks, (8, 8))
    np.testing.assert_allclose(scores[0, ..., 1], jax.nn.sigmoid(masks[0, 0]), atol=1e-6)
    assert not np.asarray(scores[..., [0, 2]]).any()


def test_the_loss_draws_its_points_from_a_key():
    head, labels = build("own"), jnp.zeros((2, 16, 16), jnp.int32)
    predictions = nnx.eval_shape(head, draw_maps())
    terms = jax.eval_shape(head.loss, predictions, labels, jax.random.key(0))
    assert set(terms) == {
        f"{i}loss_{kind}" for i in ("", "d0.", "d1.", "d2.") for kind in ("cls", "mask", "dice")
    }


def test_wrong_queries_and_maps_are_refused():
    with pytest.raises(ConfigError, match="linked=False"):
        build()(draw_maps())
    with pytest.raises(ConfigError, match="its own queries"):
        build("own")(draw_maps(), queries_for("replaced"))
    with pytest.raises(ConfigError, match="1 queries for a head of 4"):
        build("positions")(draw_maps(), jnp.zeros((1, WIDTH)))
    with pytest.raises(ShapeError, match="got 3"):
        PixelDecoder([4, 4, 4], rngs=nnx.Rngs(0))


def test_first_values_are_the_published_ones():
    head = Mask2FormerHead([8] * 4, 19, linked=False, rngs=nnx.Rngs(0))
    attention = head.pixel_decoder.layers[0].attn
    assert not np.asarray(attention.sampling_offsets.kernel[...]).any()
    offsets = np.asarray(attention.sampling_offsets.bias[...]).reshape(8, 3, 4, 2)
    np.testing.assert_allclose(offsets[0, 1], [[1, 0], [2, 0], [3, 0], [4, 0]], atol=1e-6)
    np.testing.assert_allclose(offsets[3, 2, 1], [-2, 2], atol=1e-6)
    for values, deviation in (
        (head.layers[0].self_attn.in_proj.kernel, (2 / (256 + 768)) ** 0.5),
        (head.layers[0].mlp.fc1.kernel, (2 / (256 + 2048)) ** 0.5),
        (attention.value_proj.kernel, (2 / 512) ** 0.5),
        (head.pixel_decoder.output.conv.kernel, (256 * 9) ** -0.5),
        (head.cls_embed.kernel, (3 * 256) ** -0.5),
        (head.query_feat, 1.0),
        (head.pixel_decoder.level_encoding, 1.0),
    ):
        np.testing.assert_allclose(np.std(values[...]), deviation, rtol=0.1)


class Segmenter(nnx.Module):
    """A grafted trunk with a head beside it."""

    def __init__(self, kind="replaced"):
        size = {"width": 16, "depth": 2, "num_heads": 2, "image_size": 28}
        trunk = models.create("dinov2_small", **size)
        self.backbone = vadapt.adapt(trunk, "rein", num_tokens=QUERIES, rank=3, query_width=WIDTH)
        self.head = build(kind)


def official(model):
    """Random arrays for what trains, as the released files name them."""
    rng = np.random.default_rng(0)
    tree = flatten(split(model).trainable)
    values = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in tree.items()}
    arrays, lost = revert(values, REIN, backbone="backbone/")
    assert lost == []
    return arrays


def test_a_released_file_of_rein_and_head_loads():
    model = Segmenter()
    arrays = official(model)
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes["decode_head.pixel_decoder.input_convs.0.conv.weight"] == (16, 8, 1, 1)
    assert shapes[
        "decode_head.pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight"
    ] == (
        2 * 2 * 3 * 2,
        16,
    )
    assert shapes["decode_head.transformer_decoder.layers.2.cross_attn.attn.in_proj_weight"] == (
        48,
        16,
    )
    assert shapes["decode_head.mask_embed.4.weight"] == (16, 16)
    assert {name.partition(".")[0] for name in arrays} == {"backbone", "decode_head"}
    with pytest.raises(WeightsError, match=r"nothing was loaded.*missing \(.*blocks/0/attn"):
        load_weights(model, arrays)
    report = load_weights(model, arrays, allow_missing=["backbone/(?!adapter/).*"])
    assert (report.family, report.unexpected, report.unused) == ("rein", [], [])
    assert len(report.loaded) == len(arrays)
    kernel = arrays["decode_head.querys2feat.weight"].T
    np.testing.assert_array_equal(model.head.queries_to_feat.kernel[...], kernel)
    assert rein.queries(model.backbone).shape == (QUERIES, WIDTH)


@pytest.mark.parametrize("kind", ["own", "positions"])
def test_names_of_learned_queries(kind):
    names = {name.removeprefix("decode_head.") for name in official(Segmenter(kind))}
    assert "query_feat.weight" in names
    assert ("query_embed.weight" in names) == (kind == "own")
    assert "querys2feat.weight" not in names


def test_paths_of_the_head_are_all_named():
    model = Segmenter()
    paths = {path for path in variables(model) if path.startswith("head/")}
    assert len(paths) == sum(name.startswith("decode_head.") for name in official(model))
