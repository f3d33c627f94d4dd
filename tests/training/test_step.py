"""The step: only what trains changes, whatever the options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vadapt import adapters, remat
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError
from vadapt.losses import mask2former
from vadapt.losses.segmentation import cross_entropy
from vadapt.partition import EVERYTHING, Head, Partition, Statistic, flatten, mark, merge, split
from vadapt.remat import rematerialise
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.step import State, StepOptions, init_state, make_step, single
from vadapt.training.stored_tree import as_dict


class Classifier(nnx.Module):
    """A ViT under a linear head."""

    def __init__(self, variant="micro", hidden=4, **options):
        rngs = nnx.Rngs(0)
        backbone = vit(variant, positions="sincos", rngs=rngs, **options)
        self.backbone = (
            adapters.apply(backbone, "patchwise_scale", hidden=hidden, dropout=0.0)
            if hidden
            else backbone
        )
        self.head = mark(nnx.Linear(backbone.width, 10, rngs=rngs), Head)

    def loss(self, batch, key):
        logits = self.head(self.backbone(batch["image"], key=key)[:, 0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def loss_fn(model, batch, key):
    return model.loss(batch, key)


@functools.cache
def small() -> Partition:
    return split(Classifier(depth=1, image_size=16))


@functools.cache
def batch():
    image, label = jax.random.key(0), jax.random.key(1)
    return {
        "image": jax.random.normal(image, (8, 16, 16, 3)),
        "label": jax.random.randint(label, (8,), 0, 10),
    }


def train(options=None, steps=3, seed=0):
    """The state and the last metrics after some steps of SGD."""
    options = options or StepOptions()
    parts, learners = small(), single(loss_fn, optax.sgd(0.1), lambda _: 0.1)
    step = jax.jit(make_step(parts.graph, learners, options, seed=seed))
    state = init_state(parts, learners, options)
    metrics = {}
    with jax.numpy_dtype_promotion("standard"):  # bfloat16 attention promotes its softmax
        for _ in range(steps):
            state, metrics = step(parts.frozen, state, batch())
    return state, metrics


@functools.cache
def plain():
    return train()


def close(found, expected, tolerance):
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(found)[path], leaf, atol=tolerance, err_msg=path)


def test_training_lowers_the_loss_and_counts_steps():
    first, (state, last) = train(steps=1)[1], train(steps=10)
    assert last["loss"] < first["loss"]
    assert int(state.step) == 10
    assert set(last) == {"loss", "grad_norm", "learning_rate", "accuracy"}


def test_frozen_leaves_do_not_change():
    parts = small()
    before = jax.tree.map(np.array, parts.frozen)
    state, _ = plain()
    model = merge(parts.graph, state.trainable, parts.frozen, state.variables)
    after = split(model).frozen
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_optimizer_state_holds_exactly_the_trainable_leaves():
    parts = small()
    learners = single(loss_fn, optax.adam(0.1), lambda _: 0.1)
    state = init_state(parts, learners, StepOptions())
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(parts.trainable))
    assert sum(leaf.size for leaf in moments) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(parts.trainable)
    )


def test_accumulated_steps_are_the_same_steps():
    state, metrics = train(StepOptions(accumulate=4))
    close(state.trainable, plain()[0].trainable, 1e-5)
    assert metrics["loss"] == pytest.approx(float(plain()[1]["loss"]), rel=1e-5)


def pixels_loss(model, batch, key):
    del key
    scores = jnp.einsum("bhwc,ck->bhwk", batch["image"], model.head.kernel[:3])
    masks = jnp.einsum("bhwc,ck->bkhw", batch["image"], model.head.kernel[3:6])[None]
    classes = jnp.einsum("bhwc,cqk->bqk", batch["image"], model.head.kernel[6:].reshape(3, 10, -1))
    few = mask2former.SETTINGS._replace(num_points=8)
    points = mask2former.draw_points(jax.random.key(0), 1, 10, few)
    points = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, len(scores), *x.shape[1:])), points)
    terms = mask2former.mask2former_loss(
        classes[None], masks, batch["mask"], points=points, settings=few
    )
    terms["loss_pixels"] = cross_entropy(scores, batch["mask"])
    return sum(terms.values()), terms


def test_micro_batches_weigh_what_is_labelled_in_them():
    """One image is labelled whole, of the others a few pixels are, of one none."""
    model = nnx.Dict(head=mark(nnx.Linear(39, 10, rngs=nnx.Rngs(0)), Head))
    parts, learners = split(model), single(pixels_loss, optax.sgd(0.1), lambda _: 0.1)
    rng = np.random.default_rng(0)
    mask = np.full((4, 8, 8), 255, np.int32)
    mask[0] = rng.integers(0, 10, (8, 8))
    mask[1, 0, :3], mask[2, 1, :5] = 1, (2, 2, 3, 4, 4)
    batch = {"image": rng.normal(size=(4, 8, 8, 3)).astype(np.float32), "mask": mask}
    found = []
    for accumulate in (1, 4):
        options = StepOptions(accumulate=accumulate)
        step = jax.jit(make_step(parts.graph, learners, options, seed=0))
        state, metrics = step(parts.frozen, init_state(parts, learners, options), batch)
        found.append((state.trainable, metrics))
    for trainable, metrics in found[1:]:
        close(trainable, found[0][0], 1e-6)
        for name, value in found[0][1].items():
            assert metrics[name] == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("policy", ["dots", "blocks"])
def test_rematerialised_steps_are_the_same_steps(policy):
    close(train(StepOptions(remat=policy))[0].trainable, plain()[0].trainable, 1e-6)


def test_rematerialisation_trades_work_for_memory():
    """Matrix products and what a backward pass keeps, of three blocks; nothing is computed."""
    flops, kept = {}, {}
    parts = split(nnx.eval_shape(lambda: Classifier(depth=3, image_size=32)))
    for policy in ("none", "dots", "blocks"):

        def loss(trainable, frozen, variables, batch, policy=policy):
            with rematerialise(policy):
                return loss_fn(merge(parts.graph, trainable, frozen, variables), batch, None)[0]

        images = {
            "image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32),
            "label": jax.ShapeDtypeStruct((8,), jnp.int32),
        }
        arguments = (parts.trainable, parts.frozen, parts.state, images)
        compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
        flops[policy] = compiled.cost_analysis()["flops"]
        residuals = jax.eval_shape(
            lambda trainable, *rest, loss=loss: jax.vjp(lambda t: loss(t, *rest), trainable)[1],
            *arguments,
        )
        kept[policy] = sum(leaf.size for leaf in jax.tree.leaves(residuals))
    assert flops["none"] < flops["dots"] < flops["blocks"]
    assert kept["none"] > kept["dots"] > kept["blocks"]


def test_statistics_of_a_rematerialised_block_are_kept():
    class Counting(nnx.Module):
        def __init__(self):
            self.calls = Statistic(jnp.zeros(()))

        def __call__(self, x):
            self.calls[...] += x.sum()
            return jnp.sin(x)

    block = Counting()
    with rematerialise("blocks"):
        remat.call(block, jnp.ones(3))
    assert float(block.calls[...]) == 3.0


def test_an_unknown_policy_is_named():
    with pytest.raises(ConfigError, match=r"unknown remat policy 'block'.*blocks"):
        train(StepOptions(remat="block"))


def test_bfloat16_compute_keeps_float32_weights_near_the_float32_run():
    state, _ = train(StepOptions(compute_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    close(state.trainable, plain()[0].trainable, 2e-2)


def test_moving_average_follows_what_trains():
    one, _ = train(StepOptions(ema=0.9), steps=1)
    start = small().trainable
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, start, one.trainable)
    close(one.ema, expected, 1e-6)


def test_a_state_is_stored_by_the_names_of_its_fields(tmp_path):
    parts, learners = small(), single(loss_fn, optax.adam(0.1), lambda _: 0.1)
    parts = parts._replace(state={"head": {"calls": jnp.ones(3)}})
    state = init_state(parts, learners, StepOptions(ema=0.9))
    keys = {"trainable", "optimizer", "variables", "step", "ema"}
    assert as_dict(state).keys() == keys
    assert as_dict(state._replace(ema=None)).keys() == keys - {"ema"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {key: getattr(state, key) for key in keys})
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    assert isinstance(restored, State)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_randomness_follows_seed_and_step_only():
    class Layer(nnx.Module):
        def __init__(self):
            self.head = mark(nnx.Linear(3, 10, rngs=nnx.Rngs(0)), Head)

    parts = split(Layer())

    def noisy(model, batch, key):
        return model.head(batch["image"]).mean(), {"draw": jax.random.uniform(key)}

    learners = single(noisy, optax.sgd(0.1), lambda _: 0.1)

    def draws(seed):
        step = jax.jit(make_step(parts.graph, learners, StepOptions(), seed=seed))
        state, found = init_state(parts, learners, StepOptions()), []
        for _ in range(3):
            state, metrics = step(parts.frozen, state, batch())
            found.append(float(metrics["draw"]))
        return found

    assert len(set(draws(0))) == 3
    assert draws(0) == draws(0)
    assert draws(0) != draws(1)


# --- what a step costs, by the compiler's own count ---------------------------------------------


def compiled_flops(*args, **kwargs):
    """FLOPs of one compiled AdamW step; nothing of the model is ever allocated."""
    return lowered_step(*args, **kwargs).compile().cost_analysis()["flops"]


def lowered_step(build, loss, trainable, batch, *, log_norms=True):
    parts = split(nnx.eval_shape(build), trainable)
    optimizer = optax.adamw(1e-3)
    options = StepOptions()
    learners = single(loss, optimizer, lambda _: 1e-3)
    step = make_step(parts.graph, learners, options, seed=0)
    if not log_norms:
        whole = step

        def step(frozen, state, batch):
            state, metrics = whole(frozen, state, batch)
            return state, {"loss": metrics["loss"]}

    def start(trainable, variables):
        fresh = Partition(parts.graph, trainable, {}, variables)
        return init_state(fresh, learners, options)

    state = jax.eval_shape(start, parts.trainable, parts.state)
    return jax.jit(step).lower(parts.frozen, state, batch)


@functools.cache
def classifier_flops(hidden, log_norms=True):
    images = {
        "image": jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    return compiled_flops(
        lambda: Classifier("base", hidden=hidden, depth=3),
        loss_fn,
        "default" if hidden else EVERYTHING,
        images,
        log_norms=log_norms,
    )


def test_adapters_cost_at_most_two_thirds_of_full_training():
    assert classifier_flops(64) <= 0.67 * classifier_flops(0)


def test_logging_gradient_norms_adds_no_work():
    # The norm itself is a few operations a trained number; a gradient of the frozen part would be
    # half as much again as the whole step.
    assert classifier_flops(64) <= 1.001 * classifier_flops(64, log_norms=False)
