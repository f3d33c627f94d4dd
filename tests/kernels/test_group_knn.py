"""Nearest neighbours in groups: plain JAX and the kernel for TPUs against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from vadapt import sharding
from vadapt.errors import ShapeError
from vadapt.kernels import group_knn as kernel
from vadapt.kernels import group_knn_tpu
from vadapt.kernels.position_bias import position_bias

CLOSE = 1e-5  # of distances up to 4
EXAMPLES = settings(max_examples=5, derandomize=True, deadline=None)
NAMES = ("messages", "ids", "winners")


def options_of(x, y, groups, k, dilation=1):
    return kernel.Options(groups, k, dilation, y.shape[1], x.shape[2] // groups, y.dtype)


class Plain:
    """What is used off TPUs."""

    nearest = staticmethod(jax.jit(kernel.nearest, static_argnums=3))
    largest = staticmethod(jax.jit(kernel.largest, static_argnums=3))
    spread = staticmethod(jax.jit(kernel.spread, static_argnums=3))


class Chip:
    """The kernel for TPUs, interpreted."""

    @staticmethod
    def nearest(x, y, bias, options):
        names = ("ids", "distances")
        return group_knn_tpu.search(x, y, bias, options=options, names=names, interpret=True)

    @staticmethod
    def largest(x, y, bias, options):
        return group_knn_tpu.search(x, y, bias, options=options, names=NAMES, interpret=True)

    @staticmethod
    def spread(x, ids, winners, options):
        return group_knn_tpu.spread(x, ids, winners, options=options, interpret=True)


BOTH = pytest.mark.parametrize("form", [Plain, Chip])


def literal(x, y, groups, k, dilation, bias):
    """All in float64; node after node where one is chosen."""
    b, n, c = x.shape
    x, y = (np.asarray(v, np.float64).reshape(b, -1, groups, c // groups) for v in (x, y))
    unit = [v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (x, y)]
    away = np.square(unit[0][:, :, None] - unit[1][:, None]).sum(-1)  # [b, n, m, g]
    away = np.moveaxis(away, -1, 1) + (0 if bias is None else np.asarray(bias, np.float64))
    order = np.argsort(away, axis=-1, kind="stable")
    ranked = np.take_along_axis(away, order, -1)[..., : k * dilation + 1]
    gaps = np.diff(ranked, axis=-1, append=np.inf)
    ids = order[..., : k * dilation : dilation]
    steps = np.empty((b, n, groups, c // groups))
    for image, group, node in np.ndindex(b, groups, n):
        chosen = y[image, ids[image, group, node], group]
        steps[image, node, group] = chosen.max(0) - x[image, node, group]
    return ids, np.take_along_axis(away, ids, -1), steps.reshape(b, n, c), gaps.min(-1)


def check(form, x, y, groups, k, dilation=1, bias=None):
    options = options_of(x, y, groups, k, dilation)
    dense = jax.jit(lambda bias: bias.dense())(bias) if hasattr(bias, "dense") else bias
    ids, distances, steps, gaps = literal(x, y, groups, k, dilation, dense)

    @jax.jit
    def both(x, y, bias):
        return form.nearest(x, y, bias, options), form.largest(x, y, bias, options)

    found, largest = jax.tree.map(np.asarray, both(x, y, bias))
    np.testing.assert_allclose(found[1], distances, atol=CLOSE)
    sure = gaps > 2 * CLOSE  # where rounding does not decide
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(found[0][sure], ids[sure])
    messages, ids, winners = largest
    np.testing.assert_array_equal(ids, found[0])
    sure = np.repeat(np.moveaxis(sure, 1, 2), x.shape[2] // groups, axis=2)
    close = 1e-6 if x.dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(messages.astype(np.float64)[sure], steps[sure], atol=close)
    assert messages.dtype == x.dtype
    assert winners.max() < k
    return messages, ids, winners


@st.composite
def cases(draw):
    groups, k, dilation = (draw(st.integers(1, high)) for high in (3, 5, 3))
    n, m = draw(st.integers(1, 300)), draw(st.integers(k * dilation, 300))
    b, width = draw(st.integers(1, 2)), draw(st.sampled_from([3, 8, 12, 24]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
    x, y = (jnp.asarray(rng.normal(size=(b, size, groups * width)), dtype) for size in (n, m))
    bias = jnp.asarray(rng.normal(size=(n, m)), jnp.float32) if draw(st.booleans()) else None
    return x, y, groups, k, dilation, bias


@BOTH
@EXAMPLES
@given(case=cases())
def test_neighbours_are_those_of_a_loop(form, case):
    check(form, *case)


@pytest.mark.parametrize(("size", "r"), [((16, 16), 4), ((12, 12), 1), ((14, 10), 2)])
def test_the_chip_makes_the_bias_from_its_table(rng, size, r):
    x = jnp.asarray(rng.normal(size=(2, size[0] * size[1], 16)), jnp.float32)
    bias = position_bias(16, size[0], size, reduction=r, geometric=size[0] != size[1])
    check(Chip, x, x[:, : bias.shape[1]], 2, 4, 2, bias)


# (nodes, sources, channels, dilation, grid) of the paper's smaller graphs at 448 px.
PAPER = [(784, 784, 400, 3, 28), (196, 196, 640, 3, 14), (80, 196, 640, 1, 0)]


@pytest.mark.parametrize(("n", "m", "c", "dilation", "grid"), PAPER)
def test_both_forms_agree_at_the_papers_sizes(rng, n, m, c, dilation, grid):
    x = jnp.asarray(rng.normal(size=(1, n, c)), jnp.float32)
    y = x if grid else jnp.asarray(rng.normal(size=(1, m, c)), jnp.float32)
    bias = position_bias(c, grid, (grid, grid)) if grid else None
    options = options_of(x, y, 2, 9, dilation)
    plain, chip = (form.nearest(x, y, bias, options) for form in (Plain, Chip))
    np.testing.assert_allclose(plain[1], chip[1], atol=CLOSE)
    assert (plain[0] == chip[0]).mean() > 0.9995  # rounding decides between some


@BOTH
def test_of_equal_distances_the_first_source_is_nearest(form):
    x = jnp.asarray(np.eye(8)[[0, 1]][None], jnp.float32)
    y = jnp.asarray(np.eye(8)[[3, 1, 0, 1, 1, 0, 5, 6]][None], jnp.float32)
    ids, distances = form.nearest(x, y, None, options_of(x, y, 1, 8))
    np.testing.assert_array_equal(ids[0, 0], [[2, 5, 0, 1, 3, 4, 6, 7], [1, 3, 4, 0, 2, 5, 6, 7]])
    np.testing.assert_array_equal(distances[0, 0, 0], [0, 0, 2, 2, 2, 2, 2, 2])
    # The same value in all neighbours: the nearest is the winner.
    _, _, winners = form.largest(x, jnp.ones_like(y), None, options_of(x, y, 1, 3))
    np.testing.assert_array_equal(winners, 0)


@BOTH
def test_a_graph_of_a_few_nodes_takes_them_all(form, rng):
    x = jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32)
    messages, ids, _ = check(form, x, x, 2, 5)
    np.testing.assert_array_equal(np.sort(ids), np.broadcast_to(np.arange(5), (1, 2, 5, 5)))
    x = np.asarray(x)
    np.testing.assert_allclose(messages, x.max(1, keepdims=True) - x, atol=1e-6)


@BOTH
def test_nodes_that_are_not_finite_come_last(form, rng):
    x, y = (rng.normal(size=(1, size, 8)).astype(np.float32) for size in (6, 7))
    y[0, 1, 2], y[0, 4, 0], y[0, 5, 3] = np.nan, np.inf, -np.inf
    x[0, 2, 1] = np.nan
    expected = y.max(1, keepdims=True) - x
    x, y = jnp.asarray(x), jnp.asarray(y)
    options = options_of(x, y, 1, 7)
    ids, distances = form.nearest(x, y, None, options)
    np.testing.assert_array_equal(np.sort(ids[0, 0, 0, :4]), [0, 2, 3, 6])
    np.testing.assert_array_equal(ids[0, 0, 0, 4:], [1, 4, 5])
    np.testing.assert_array_equal(np.isinf(distances[0, 0, 0]), np.arange(7) >= 4)
    np.testing.assert_array_equal(ids[0, 0, 2], np.arange(7))
    # Largest steps are those to all sources, which nobody else's non-finite channels touch.
    messages, _, winners = form.largest(x, y, None, options)
    np.testing.assert_array_equal(messages, expected)
    assert np.asarray(winners).max() < 7


def differentiable(x, y, ids):
    """The largest step to neighbours that are known, with autodiff's gradient."""
    b, groups = ids.shape[:2]
    split = y.reshape(b, y.shape[1], groups, -1)
    chosen = [
        jnp.stack([split[image, ids[image, group], group] for group in range(groups)], axis=1)
        for image in range(b)
    ]
    return jnp.stack(chosen).max(axis=3).reshape(x.shape) - x


@pytest.mark.parametrize("width", [8, 5])
@BOTH
def test_gradients_are_those_of_autodiff(form, width, rng):
    x, y, way = (
        jnp.asarray(rng.normal(size=(2, size, 2 * width)), jnp.float32) for size in (150, 9, 150)
    )
    options = options_of(x, y, 2, 3, 2)
    _, ids, winners = form.largest(x, y, None, options)

    @jax.jit
    def gradients(x, y, ids, way):
        return jax.vjp(lambda x, y: differentiable(x, y, ids), x, y)[1](way)

    expected = gradients(x, y, ids, way)
    np.testing.assert_allclose(form.spread(way, ids, winners, options), expected[1], atol=2e-5)
    if form is Plain:
        run = functools.partial(kernel.group_max_relative, groups=2, k=3, dilation=2)
        pull = jax.jit(lambda x, y, way: jax.vjp(lambda x, y: run(x, y)[0], x, y)[1](way))
        for found, one in zip(pull(x, y, way), expected, strict=True):
            np.testing.assert_allclose(found, one, atol=2e-5)


def test_a_bias_has_no_gradient(rng):
    x = jnp.asarray(rng.normal(size=(1, 6, 8)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)

    def loss(bias):
        messages, _ = kernel.group_max_relative(x, x, groups=1, k=2, bias=bias)
        return messages.sum() + kernel.group_knn(x, x, groups=1, k=2, bias=bias)[1].sum()

    assert not np.asarray(jax.jit(jax.grad(loss))(bias)).any()


def test_too_many_neighbours_are_reduced_with_a_warning(rng):
    x = jnp.asarray(rng.normal(size=(1, 7, 8)), jnp.float32)

    def neighbours(k, dilation):
        find = functools.partial(kernel.group_knn, groups=1, k=k, dilation=dilation)
        return jax.jit(find)(x, x)[0]

    for k, dilation, expected in ((3, 3, (3, 2)), (4, 2, (4, 1)), (9, 3, (7, 1))):
        with pytest.warns(UserWarning, match="too few"):
            ids = neighbours(k, dilation)
        same = neighbours(*expected)
        np.testing.assert_array_equal(ids, same)


def test_sizes_that_do_not_go_together_are_refused():
    x = jnp.zeros((1, 4, 9))
    with pytest.raises(ShapeError, match="2 groups"):
        kernel.group_knn(x, x, groups=2, k=1)
    with pytest.raises(ShapeError, match="bias"):
        kernel.group_knn(x, x, groups=1, k=1, bias=position_bias(8, 3, (3, 3)))
    with pytest.raises(ShapeError, match="must be positive"):
        kernel.group_knn(x, x, groups=1, k=0)


def test_blocks_of_targets_change_nothing(rng, monkeypatch):
    x = jnp.asarray(rng.normal(size=(3, 50, 8)), jnp.float32)
    options, bias = options_of(x, x, 2, 3), position_bias(8, 7, (5, 10))

    def largest():
        return jax.jit(lambda x: kernel.largest(x, x, bias, options))(x)

    whole = largest()
    monkeypatch.setattr(kernel, "CANDIDATES", 2**10)
    for one, other in zip(whole, largest(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_tiles_of_a_chip_do_not_race(rng, capfd):
    x = jnp.asarray(rng.normal(size=(1, 160, 16)), jnp.float32)
    way = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    options, watched = options_of(x, x, 2, 2), pltpu.InterpretParams(detect_races=True)
    found = group_knn_tpu.search(x, x, None, options=options, names=NAMES, interpret=watched)
    grads = group_knn_tpu.spread(way, *found[1:], options=options, interpret=watched)
    jax.block_until_ready(grads)
    assert "RACE DETECTED" not in "".join(capfd.readouterr())
    plain = Plain.largest(x, x, None, options)
    plain = (*plain, Plain.spread(way, *plain[1:], options))
    for one, other in zip((*found, grads), plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("batch", [8, 3])
def test_every_device_works_on_its_share_of_the_batch(batch, rng):
    x = jnp.asarray(rng.normal(size=(batch, 20, 8)), jnp.float32)
    bias = position_bias(8, 5, (4, 5), geometric=True)

    @jax.jit
    def run(x):
        messages, ids = kernel.group_max_relative(x, x, groups=2, k=3, bias=bias)
        return jnp.square(messages).sum(), ids

    grads = jax.jit(jax.value_and_grad(run, has_aux=True))
    expected = grads(x)
    mesh = sharding.make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        where = sharding.batch_sharding(mesh) if batch == 8 else sharding.replicated(mesh)
        placed = jax.device_put(x, where)
        found = grads(placed)
        text = grads.lower(placed).compile().as_text()
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert "all-gather" not in text


def test_the_stage_of_most_nodes_stays_small_on_a_cpu():
    nodes = jax.ShapeDtypeStruct((1, 12544, 80), jnp.float32)
    cells = jax.ShapeDtypeStruct((1, 784, 80), jnp.float32)
    bias = position_bias(80, 112, (112, 112), reduction=4)

    def loss(x, y):
        return kernel.group_max_relative(x, y, groups=2, k=9, bias=bias)[0].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(nodes, cells).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 150e6
