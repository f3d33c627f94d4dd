"""ViG: published counts, maps of any size, bias by relative position, norms in training."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests import compiled
from tests.backbones.drawn import drawn
from vadapt import models
from vadapt.backbones import graphs
from vadapt.backbones.graphs import GraphConv
from vadapt.backbones.vig import ViG, ViGBlock, cells, vig
from vadapt.errors import ConfigError, ShapeError
from vadapt.heads.vig_classifier import ViGClassifier
from vadapt.kernels.position_bias import PositionBias
from vadapt.nn.positions import resize_table
from vadapt.partition import count, flatten, merge, split
from vadapt.training.step import StepOptions, init_state, make_step, single

SMALL = {
    "widths": (8, 8),
    "depths": (1, 1),
    "reductions": (2, 1),
    "groups": 2,
    "k": 3,
    "image_size": 32,
}


def small(seed=0, **options):
    return drawn(lambda: ViG(**{**SMALL, **options}, rngs=nnx.Rngs(0)), seed)


@pytest.fixture(scope="module")
def model():
    return small()


def pixels(*shape):
    return jax.random.normal(jax.random.key(0), (*shape, 3))


def run(model, images, key=None):
    """The last map, in one program."""
    return compiled.run(forward, model, images, key)


def forward(model, images, key):
    return model(images, key=key)


def number(model):
    return count(split(model, "everything").trainable)


@pytest.mark.parametrize(("name", "total"), [("pvig_ti", 10_714_376), ("vig_ti", 7_184_744)])
def test_classifiers_have_the_published_counts(name, total):
    def make():
        rngs = nnx.Rngs(0)
        return ViGClassifier(vig(name, rngs=rngs), 1000, rngs=rngs)

    assert number(nnx.eval_shape(make)) == total


def test_parts_have_the_published_counts():
    made = nnx.eval_shape(lambda: vig("pvig_s", image_size=448, rngs=nnx.Rngs(0)))
    assert number(made.stem) == 88_080
    assert number(made.stages) + number(made.downsamples) == 25_229_520
    assert number(made.positions) == 80 * 112 * 112
    # Nothing of the bias by relative position is stored.
    norms = [x for _, x in nnx.iter_graph(made) if isinstance(x, nnx.BatchNorm)]
    assert count(split(made).state) == sum(2 * norm.scale.size for norm in norms)


def test_blocks_of_the_published_models_differ_as_published():
    made = nnx.eval_shape(lambda: vig("pvig_s", drop_path_rate=0.1, rngs=nnx.Rngs(0)))
    blocks = [block for stage in made.stages for block in stage]
    assert [b.conv.dilation for b in blocks] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert [b.reduction for b in blocks] == [4, 4, 2, 2] + [1] * 8
    assert {b.conv.k for b in blocks} == {9}
    np.testing.assert_allclose([b.drop_path_rate for b in blocks], np.linspace(0, 0.1, 12))
    made = nnx.eval_shape(lambda: vig("vig_ti", rngs=nnx.Rngs(0)))
    (blocks,) = made.stages
    assert [b.conv.k for b in blocks] == [9, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18]
    assert {b.relative for b in blocks} == {None}


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 40), (40, 24)])
def test_maps_of_any_size_whose_cells_are_whole(model, size):
    def maps():
        return model.features(pixels(1, *size), (0, 1), as_grid=True)

    for x, stride in zip(jax.eval_shape(maps), model.strides, strict=True):
        assert x.shape == (1, *(-(-side // stride) for side in size), 8)


def test_a_map_of_another_size_has_numbers(model):
    assert np.isfinite(run(model, pixels(1, 24, 40))).all()


def test_cells_that_are_not_whole_are_refused(model):
    with pytest.raises(ShapeError, match="a map of 9x8 places does not consist of cells of 2x2"):
        jax.eval_shape(lambda: model(pixels(1, 36, 32)))


def test_positions_are_resized_to_the_map(model):
    other = small(image_size=(48, 40))
    other.stem = nnx.clone(model.stem)
    table = resize_table(model.positions.pos_embed[...], (8, 8), (12, 10), num_extra=0)
    other.positions.pos_embed[...] = table
    images = pixels(1, 48, 40)
    np.testing.assert_allclose(other.enter(images, 0), model.enter(images, 0), atol=1e-6)


def test_cells_are_averages_and_what_does_not_fill_one_is_in_none():
    x = jnp.arange(8.0).reshape(1, 8, 1)  # a map of 2x4
    np.testing.assert_array_equal(cells(x, (2, 4), 2)[0, :, 0], [2.5, 4.5])
    x = jnp.arange(15.0).reshape(1, 15, 1)  # of 3x5
    np.testing.assert_array_equal(cells(x, (3, 5), 2)[0, :, 0], [3.0, 5.0])
    with pytest.raises(ShapeError, match="a map of 3x5 places has no cell of 4x4"):
        cells(x, (3, 5), 4)


def test_maps_of_any_size_do_without_a_bias():
    block = ViGBlock(8, grid=(4, 4), reduction=2, k=2, relative=None, rngs=nnx.Rngs(0))
    assert jax.eval_shape(lambda: block(jnp.zeros((1, 5, 7, 8)))).shape == (1, 5, 7, 8)


def test_parts_of_channels_that_alternate_are_one_product_on_tpus(rng):
    """Which is what they are as parts of interleaved channels, values and gradients."""
    x, others = (jnp.asarray(rng.normal(size=(2, 5, 12)), jnp.float32) for _ in range(2))
    layer = graphs.PartsLinear(24, 4, rngs=nnx.Rngs(0))
    kernel = layer.kernel[...]
    both = jnp.stack([x, others], axis=-1).reshape(2, 5, 24)
    np.testing.assert_array_equal(layer.alternating(x, others), layer(both))
    sides = []
    for form in (graphs._interleaved, graphs._side_by_side):
        y, pull = jax.vjp(form, x, others, kernel)
        sides.append((y, *pull(jnp.cos(y))))
    for one, other in zip(*sides, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_graphs_end_in_the_activation_they_are_given():
    nodes = jax.random.normal(jax.random.key(0), (1, 6, 8))
    plain, squared = (
        GraphConv(8, k=2, activation=activation, rngs=nnx.Rngs(0))(nodes, nodes)[0]
        for activation in (lambda x: x, jnp.square)
    )
    np.testing.assert_allclose(squared, plain**2, rtol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (4, 6)])
def test_the_bias_of_a_models_own_grid_is_a_table(grid):
    block = ViGBlock(8, grid=grid, reduction=2, relative="geometric", rngs=nnx.Rngs(0))
    bias = block.bias(grid)
    assert isinstance(bias, PositionBias)
    # Every node is drawn to the cell that it is in.
    nodes = np.arange(grid[0] * grid[1]).reshape(grid)
    own = nodes // grid[1] // 2 * (grid[1] // 2) + nodes % grid[1] // 2
    np.testing.assert_array_equal(bias.dense().argmin(axis=1), own.reshape(-1))


def test_the_released_bias_is_another_where_nodes_are_averaged():
    released, geometric = (
        ViGBlock(8, grid=(4, 4), reduction=2, relative=kind, rngs=nnx.Rngs(0)).bias((4, 4)).dense()
        for kind in ("released", "geometric")
    )
    assert np.abs(released - geometric).max() > 0.1


def test_groups_choose_neighbours_of_their_own(model):
    one = small(groups=1)
    assert number(one) == number(model)
    images = pixels(1, 32, 32)
    assert np.abs(run(one, images) - run(model, images)).max() > 1e-3


def test_drop_path_acts_with_a_key_and_grows():
    made = small(drop_path_rate=0.9)
    images = pixels(4, 32, 32)
    first, last = (stage[0] for stage in made.stages)
    assert (first.drop_path_rate, last.drop_path_rate) == (0.0, 0.9)

    @jax.jit
    def draw(images, keys):
        x = made.enter(made.enter(images, 0), 1)
        return x, jax.vmap(lambda key: last(x, key))(keys)

    x, dropped = draw(images, jax.random.split(jax.random.key(0), 8))
    # Of 32 maps about 0.9^2 lose both branches.
    same = (dropped == x[None]).all(axis=(2, 3, 4)).mean()
    assert 0.6 < same < 1.0


def test_half_precision_keeps_distances_and_norms_in_float32(model):
    parts = split(model, "everything")
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree))
    half = cast(parts.trainable)
    found = run(merge(parts.graph, half, parts.frozen, parts.state), pixels(1, 32, 32))
    assert found.dtype == jnp.bfloat16
    # A neighbour may be another one, so that single numbers differ.
    expected = run(model, pixels(1, 32, 32))
    away = np.abs(found.astype(jnp.float32) - expected)
    assert np.median(away) < 0.05 * float(jnp.abs(expected).max())


def stepped(model, trainable):
    """State before and after one step of a loss on all of the last map."""
    parts = split(model, trainable)
    optimizer = optax.sgd(0.1)

    def loss(model, batch, key):
        return jnp.mean(jnp.sin(3 * model(batch["image"], key=key))), {}

    learners = single(loss, optimizer, lambda _: 0.1)
    step = make_step(parts.graph, learners, StepOptions(), seed=0)
    state = init_state(parts, learners, StepOptions())
    after, _ = jax.jit(step)(parts.frozen, state, {"image": pixels(2, 32, 32)})
    return state, after


def test_a_backbone_that_trains_moves_its_statistics(model):
    made = nnx.clone(model)
    made.train()
    before, after = stepped(made, "everything")
    flat = flatten(after.variables)
    for path, value in flatten(before.variables).items():
        assert np.abs(flat[path] - value).max() > 1e-4, path
    flat = flatten(after.trainable)
    for path, value in flatten(before.trainable).items():
        if re.fullmatch(r".*/(conv|linear)/bias|stages/\d/\d/fc1/norm/bias", path):
            continue  # a norm follows, which takes away what all places have in common
        assert np.abs(flat[path] - value).max() > 0, path


def test_a_frozen_backbone_keeps_its_statistics(model):
    before, after = stepped(model, "positions/.*")
    flat = flatten(after.variables)
    for path, value in flatten(before.variables).items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)
    path = "positions/pos_embed"
    assert (flatten(after.trainable)[path] != flatten(before.trainable)[path]).any()


def test_the_micro_model_fits_small_images_without_a_warning():
    shape = jax.eval_shape(lambda: models.create("vig_micro")(jnp.zeros((1, 64, 64, 3)))).shape
    assert shape == (1, 2, 2, 128)


def test_wrong_settings_say_what_is_allowed():
    with pytest.raises(ConfigError, match="nearest: 'pvig_ti'"):
        vig("pvig_tii")
    with pytest.raises(ConfigError, match="not of as many stages"):
        small(depths=(1, 1, 1))
    with pytest.raises(ConfigError, match="unknown relative 'released_'; nearest: 'released'"):
        small(relative="released_")
    with pytest.raises(ShapeError, match="a graph of 8 channels in 3 groups"):
        small(groups=3)
