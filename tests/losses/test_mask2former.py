"""Mask2Former's losses: the optimal matching, hard cases without NaN, and what points do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tests.equations import equations, shapes
from vadapt.losses import mask2former as losses

CLASSES, QUERIES = 5, 7
SMALL = losses.Settings(num_points=24)


@jax.jit
def matched(costs, present):
    return losses.match(costs, present)


@st.composite
def problems(draw):
    """Costs of all kinds: random, with ties, all equal, far apart; and which classes are there."""
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["random", "ties", "equal", "wide"]))
    rng = np.random.default_rng(seed)
    costs = {
        "random": rng.normal(size=(QUERIES, CLASSES)),
        "ties": rng.integers(0, 3, size=(QUERIES, CLASSES)),
        "equal": np.full((QUERIES, CLASSES), rng.normal()),
        "wide": rng.normal(size=(QUERIES, CLASSES)) * 10.0 ** rng.integers(-3, 4),
    }[kind].astype(np.float32)
    return costs, rng.random(CLASSES) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans())
def test_the_matching_is_as_good_as_scipys(problem, more_classes_than_queries):
    costs, present = problem
    if more_classes_than_queries:
        costs = costs[: CLASSES - 2]
    queries = np.asarray(matched(costs[None], present[None])[0])
    rows, columns = linear_sum_assignment(costs[:, present])
    found = present & (queries >= 0)
    assert found.sum() == len(rows)
    assert len(set(queries[queries >= 0])) == (queries >= 0).sum()
    ours = costs.astype(np.float64)[queries[found], np.flatnonzero(found)].sum()
    best = costs[:, present].astype(np.float64)[rows, columns].sum()
    np.testing.assert_allclose(ours, best, rtol=1e-5, atol=1e-5 * np.abs(costs).max())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_costs_that_are_no_numbers_do_not_hang(value):
    costs = np.full((1, QUERIES, CLASSES), value, np.float32)
    assert matched(costs, np.ones((1, CLASSES), bool)).shape == (1, CLASSES)


def draw_case(rng, labels):
    batch = len(labels)
    classes = rng.normal(size=(3, batch, QUERIES, CLASSES + 1)).astype(np.float32)
    masks = rng.normal(size=(3, batch, QUERIES, 6, 8)).astype(np.float32)
    return classes, masks, jnp.asarray(labels, jnp.int32)


@jax.jit
def value_and_grads(classes, masks, labels, key):
    def total(classes, masks):
        terms = losses.mask2former_loss(classes, masks, labels, key, settings=SMALL)
        return sum(terms.values()), terms

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(classes, masks)


@pytest.fixture
def labels(rng):
    """Some classes and some ignored pixels, twice; one class; nothing at all."""
    mixed = rng.choice([0, 1, 4, 255], size=(2, 24, 32))
    return np.concatenate([mixed, np.full((1, 24, 32), 3), np.full((1, 24, 32), 255)])


def test_terms_are_named_and_finite_whatever_the_labels(rng, labels):
    classes, masks, labels = draw_case(rng, labels)
    (_, terms), grads = value_and_grads(classes, masks, labels, jax.random.key(0))
    kinds = ("loss_cls", "loss_mask", "loss_dice")
    assert set(terms) == {f"{name}{kind}" for name in ("", "d0.", "d1.") for kind in kinds}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((terms, grads)))
    assert not np.asarray(grads[1][:, 3]).any()  # an image without masks
    # As many queries have a mask as there are classes.
    assert (np.abs(np.asarray(grads[1])).sum((3, 4)) > 0).sum(-1).tolist() == [[3, 3, 1, 0]] * 3


def test_no_loop_gives_masks_or_their_gradients(rng, labels):
    case = (*draw_case(rng, labels), jax.random.key(0))
    traced = value_and_grads.trace(*case).jaxpr.jaxpr
    loops = [one for one in equations(traced) if one.primitive.name == "scan"]
    # Costs of the matching, and points; neither has a gradient.
    assert sum(one.params["length"] == 3 for one in loops) == 2
    assert not [shape for one in loops for shape in shapes(one) if shape[-2:] == (6, 8)]


def test_without_any_label_masks_cost_nothing(rng, labels):
    classes, masks, labels = draw_case(rng, labels[[3, 3, 3, 3]])
    (_, terms), _ = value_and_grads(classes, masks, labels, jax.random.key(0))
    assert (terms["loss_mask"], terms["loss_dice"]) == (0.0, 0.0)
    assert terms["loss_cls"] > 0


def test_huge_logits_stay_finite(rng, labels):
    classes, masks, labels = draw_case(rng, labels)
    (_, terms), grads = value_and_grads(1e4 * classes, 1e4 * masks, labels, jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((terms, grads)))


def test_perfect_masks_cost_next_to_nothing(labels):
    hot = labels[:1, 2::4, 2::4][:, None] == np.arange(CLASSES)[None, :, None, None]
    labels = jnp.repeat(jnp.repeat(jnp.asarray(labels[:1, 2::4, 2::4]), 4, 1), 4, 2)
    masks = jnp.where(jnp.asarray(hot), 40.0, -40.0)[None]
    classes = jnp.full((1, 1, CLASSES, CLASSES + 1), -40.0)
    there = jnp.asarray([0, 1, CLASSES, CLASSES, 4])
    classes = classes.at[0, 0, jnp.arange(CLASSES), there].set(40.0)

    @jax.jit
    def loss(masks):
        key = jax.random.key(1)
        return losses.mask2former_loss(classes, masks, labels, key, settings=SMALL)

    terms, other = loss(masks), loss(-masks)
    assert float(terms["loss_cls"]) < 1e-6
    assert float(terms["loss_mask"]) < 0.5 * float(other["loss_mask"])


def test_two_copies_of_a_batch_cost_what_one_does(rng, labels):
    classes, masks, labels = draw_case(rng, labels[1:3])
    points = jax.vmap(lambda key: losses.draw_points(key, 2, CLASSES, SMALL))(
        jax.random.split(jax.random.key(0), 3)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def terms(twice):
        def copies(x, axis):
            return jnp.concatenate([x, x], axis) if twice else jnp.asarray(x)

        return losses.mask2former_loss(
            copies(classes, 1),
            copies(masks, 1),
            copies(labels, 0),
            points=jax.tree.map(lambda x: copies(x, 1), points),
            settings=SMALL,
        )

    once, both = terms(False), terms(True)
    for name, value in once.items():
        np.testing.assert_allclose(both[name], value, rtol=1e-5, err_msg=name)


def test_costs_of_the_matching_weigh_what_terms_do_unless_they_are_set(rng, labels):
    *predictions, labels = draw_case(rng, labels[:1])
    classes, masks = (jnp.asarray(x[0]) for x in predictions)
    points = losses.draw_points(jax.random.key(0), 1, CLASSES, SMALL).matching

    def cost(**options):
        settings = SMALL._replace(**options)
        return losses.matching_cost(classes, masks, points, labels, settings)

    apart = {"class_cost": 3.0, "mask_cost": 0.0, "dice_cost": 0.5}
    as_terms = {name.replace("cost", "weight"): value for name, value in apart.items()}
    np.testing.assert_array_equal(cost(**apart), cost(**as_terms))
    assert np.abs(cost(**apart) - cost()).max() > 0.1


def test_a_sharded_batch_costs_what_a_whole_one_does(rng, labels):
    classes, masks, labels = draw_case(rng, labels)
    (whole, _), grads = value_and_grads(classes, masks, labels, jax.random.key(0))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(x, *axes):
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

    (split, _), split_grads = value_and_grads(
        put(classes, None, "data"), put(masks, None, "data"), put(labels, "data"), jax.random.key(0)
    )
    np.testing.assert_allclose(split, whole, rtol=1e-5)
    for one, other in zip(grads, split_grads, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_uncertain_points_are_those_near_a_masks_edge():
    masks = jnp.broadcast_to(jnp.linspace(-4.0, 4.0, 32)[None, None, None], (1, 1, 32, 32))
    points = losses.draw_points(jax.random.key(0), 1, 1, SMALL)
    taken = losses.uncertain_points(masks, points, SMALL)
    assert taken.shape == (1, 1, 24, 2)
    edge = np.abs(np.asarray(taken[0, 0, :18, 0]) - 0.5)
    every = np.sort(np.abs(np.asarray(points.candidates[0, 0, :, 0]) - 0.5))
    np.testing.assert_allclose(np.sort(edge), every[:18], atol=1e-6)
    np.testing.assert_array_equal(taken[:, :, 18:], points.others)
