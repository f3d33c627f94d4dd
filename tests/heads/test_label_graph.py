"""Heads for labels of images: GKGNet's label branch on any maps, and the linear one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backbones.drawn import drawn
from tests.compiled import run
from vadapt import models
from vadapt.backbones import graphs
from vadapt.backbones.vig import vig
from vadapt.errors import ConfigError
from vadapt.heads import LABELS, label_head
from vadapt.heads.label_graph import LabelGraph
from vadapt.heads.linear import LinearLabels
from vadapt.kernels import group_knn_tpu
from vadapt.partition import Head, count, split, variables
from vadapt.runtime.flops import matmul_flops

WIDTHS, SIZES = (4, 8), ((4, 6), (2, 3))


def made(widths=WIDTHS, num_labels=3, **options):
    return drawn(lambda: LabelGraph(widths, num_labels, k=2, **options, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.normal(size=(2, *size, width)), jnp.float32)
        for size, width in zip(SIZES, WIDTHS, strict=True)
    ]


@pytest.fixture(scope="module")
def head():
    return made()


class GKGNet(nnx.Module):
    def __init__(self, variant, size):
        rngs = nnx.Rngs(0)
        self.backbone = vig(variant, groups=2, image_size=size, rngs=rngs)
        self.head = LabelGraph(self.backbone.widths, 80, rngs=rngs)

    def __call__(self, images):
        return self.head(self.backbone.features(images, range(4), as_grid=True))


@pytest.mark.parametrize(
    ("variant", "size", "total"),
    [
        ("pvig_s", 224, 33_265_200),
        ("pvig_s", 448, 34_017_840),
        ("pvig_s", 576, 34_673_200),
        ("pvig_ti", 448, 12_550_288),
    ],
)
def test_networks_have_the_published_counts(variant, size, total):
    model = nnx.eval_shape(lambda: GKGNet(variant, size))
    assert count(split(model, "everything").trainable) == total


def test_parts_have_the_published_counts():
    head = nnx.eval_shape(lambda: LabelGraph((80, 160, 400, 640), 80, rngs=nnx.Rngs(0)))

    def number(part):
        return count(split(part).trainable)

    assert [number(blocks) for blocks in head.blocks] == [78_960, 311_520, 1_930_800, 4_932_480]
    assert number(head.widen) == 334_000
    assert head.table.size == 6_400
    assert number(head.fc1) + number(head.fc2) == 102_560


def test_a_forward_pass_has_the_published_products(monkeypatch):
    # On TPUs there are others besides: the kernel selects and gathers by products, and graphs of
    # few channels are mixed by a matrix with zeros.
    monkeypatch.setattr(group_knn_tpu, "fits", lambda *sizes: False)
    monkeypatch.setattr(graphs, "LANES", 0)
    # Of the traced program: every convolution and matrix product at its full length.
    graph, state = nnx.split(nnx.eval_shape(lambda: GKGNet("pvig_s", 448)))
    images = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)
    program = jax.make_jaxpr(lambda state, images: nnx.merge(graph, state)(images))(state, images)
    assert round(matmul_flops(program.jaxpr) / 2e9, 2) == 21.86


def test_all_variables_are_the_heads(head):
    roles = {type(value) for value in variables(head).values()}
    assert roles == {
        Head,
        *(type(value) for value in variables(head.blocks[0][0].fc1.norm).values()),
    }
    assert count(split(head).frozen) == 0


def test_labels_take_from_places_that_there_are(head, maps):
    found = run("__call__", head, maps)
    assert found.logits.shape == (2, 3)
    for ids, (height, width) in zip(found.chosen, SIZES, strict=True):
        assert ids.shape == (2, 2, 3, 2)
        assert 0 <= ids.min() <= ids.max() < height * width


def test_a_logit_is_the_labels_own(head, maps):
    @jax.jit
    def parts(maps):
        labels, _ = head.nodes(maps)
        mean = maps[-1].mean(axis=(1, 2))
        return labels, head.fc2(mean), head.logits(labels, mean)

    labels, shared, found = parts(maps)
    own = np.einsum("bld,dm->blm", labels, head.fc1.kernel[...])
    own = np.diagonal(own, axis1=1, axis2=2) + np.asarray(head.fc1.bias[...])
    np.testing.assert_allclose(found, own + shared, rtol=1e-5)


def test_labels_know_nothing_of_each_other(head, maps):
    other = nnx.clone(head)
    other.table[...] = head.table[...].at[1].add(1.0)
    found, expected = (run("__call__", one, maps).logits for one in (other, head))
    np.testing.assert_array_equal(found[:, [0, 2]], expected[:, [0, 2]])
    assert np.abs(found[:, 1] - expected[:, 1]).min() > 0


def test_it_reads_blocks_of_a_frozen_vit():
    model = drawn(lambda: models.create("vit_micro", image_size=16, depth=4))
    head = made([model.width] * 4, depth=2)
    assert [len(blocks) for blocks in head.blocks] == [1, 1, 1, 2]

    @jax.jit
    def call(images):
        return head(model.features(images, (0, 1, 2, 3), as_grid=True))

    found = call(jnp.ones((1, 16, 16, 3)))
    assert [ids.shape for ids in found.chosen] == [(1, 2, 3, 2)] * 4
    assert np.isfinite(found.logits).all()


def test_everything_in_it_learns(maps):
    head = made()
    head.train()
    parts = split(head)

    @jax.jit
    def gradient(trainable, maps):
        def loss(trainable, maps):
            model = nnx.merge(parts.graph, trainable, parts.frozen, parts.state)
            return jnp.sum(jnp.sin(model(maps).logits))

        return jax.grad(loss, argnums=(0, 1))(trainable, maps)

    weights, features = gradient(parts.trainable, maps)
    assert all(np.abs(x).max() > 0 for x in features)
    for path, value in jax.tree_util.tree_leaves_with_path(weights):
        assert np.isfinite(value).all(), path
        # Not exactly zero where a norm follows a bias, but by rounding.
        assert np.abs(value).max() > 0 or path[-1].key == "bias", path


def test_drop_path_acts_with_a_key(maps):
    head = made(drop_path_rates=(0.0, 0.9))
    plain = run("__call__", head, maps).logits
    found = jax.jit(lambda key: head(maps, key).logits)(jax.random.key(0))
    assert np.abs(found - plain).max() > 1e-3
    never = made(drop_path_rates=(0.0, 0.0))
    np.testing.assert_array_equal(run("__call__", never, maps).logits, plain)


def test_the_linear_head_reads_the_last_maps_mean(maps):
    head = drawn(lambda: label_head("linear", WIDTHS, 3, rngs=nnx.Rngs(0)))
    assert isinstance(head, LinearLabels)
    shuffled = maps[-1][:, ::-1, ::-1]
    found = head(maps)
    assert found.chosen == ()
    np.testing.assert_allclose(found.logits, head([shuffled]).logits, atol=1e-5)
    assert count(split(head).trainable) == 2 * 8 + 3 * 9


def test_heads_are_made_by_name():
    head = nnx.eval_shape(lambda: label_head("label_graph", WIDTHS, 3, rngs=nnx.Rngs(0)))
    assert isinstance(head, LabelGraph)
    with pytest.raises(ConfigError, match="nearest: 'label_graph'"):
        label_head("label_graphs", WIDTHS, 3, rngs=nnx.Rngs(0))
    assert set(LABELS) == {"linear", "label_graph", "mlp", "retrieval", "vpt_classifier"}


@pytest.mark.parametrize("name", sorted(LABELS))
def test_half_precision_gives_logits_of_it(name, maps):
    options = {
        "label_graph": {"k": 2},
        "vpt_classifier": {"pool": "img_pool", "num_hidden": 1},
    }.get(name, {})
    head = label_head(name, WIDTHS, 3, **options, rngs=nnx.Rngs(0))
    parts = split(head)

    def logits(trees):
        half, images = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trees)
        return nnx.merge(parts.graph, half, parts.frozen, parts.state)(images).logits

    assert jax.eval_shape(logits, (parts.trainable, maps)).dtype == jnp.bfloat16
