"""The optimizer's rules: schedule, decay, layer-wise rates, late starts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import vadapt
from vadapt.errors import ConfigError
from vadapt.partition import flatten, split
from vadapt.training.layer_decay import layer_factors
from vadapt.training.optimizers import (
    OptimizerSettings,
    learning_rate,
    make_optimizer,
    optimizer_table,
    treatments,
)
from vadapt.training.schedules import make_schedule, warmup_cosine, warmup_polynomial

SETTINGS = {
    "lr": 1e-2,
    "lr_batch": 256,
    "schedule": {"name": "cosine", "warmup": 0.25},
    "beta2": 0.95,
    "weight_decay": 0.1,
}


@pytest.fixture
def tree():
    ones = jnp.ones
    return {
        "backbone": {
            "cls_token": ones(3),
            "patch_embed": {"proj": {"kernel": ones((2, 3))}},
            "blocks": {i: {"w": ones((3, 3)), "bias": ones(3)} for i in range(3)},
            "norm": {"scale": ones(3)},
        },
        "decoder": {"mask_token": ones(3), "w": ones((3, 2))},
    }


def run(optimizer, tree, steps, gradient=1.0):
    """The tree after some steps of a constant gradient, and the optimizer's state."""
    state = optimizer.init(tree)
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), tree)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(steps):
            updates, state = optimizer.update(grads, state, tree)
            tree = optax.apply_updates(tree, updates)
    return flatten(tree), state


def make(tree, schedule=lambda step: 0.1, total=10, **changes):
    return make_optimizer({**SETTINGS, **changes}, tree, schedule, total_steps=total)


def test_schedule_rises_linearly_and_falls_to_its_end():
    settings = {**SETTINGS, "schedule": {"name": "cosine", "warmup": 0.25, "end": 1e-4}}
    schedule = learning_rate(settings, total_steps=100, batch_size=512)
    peak = 2e-2  # 512 / lr_batch times lr
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 5, 25, 100)], [0, peak / 5, peak, 1e-4], rtol=1e-5
    )
    rates = [float(schedule(step)) for step in range(25, 101)]
    assert rates == sorted(rates, reverse=True)


def test_schedule_is_exact_near_its_end():
    rate = warmup_cosine(99.9, peak=1.0, end=0.0, warmup=0.0, total=100.0)
    np.testing.assert_allclose(rate, 0.5 * (1 + np.cos(np.pi * 0.999)), rtol=1e-4)


def test_optimizer_state_holds_the_trainable_leaves_only(tree):
    optimizer = make(tree, rules=[(r"decoder/w", {"start": 0.5})])
    moments = [leaf for leaf in jax.tree.leaves(optimizer.init(tree)) if leaf.ndim]
    expected = sorted(2 * [leaf.shape for leaf in jax.tree.leaves(tree)])
    assert sorted(leaf.shape for leaf in moments) == expected


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_vectors_do_not_decay_but_tokens_do(tree, layer_decay):
    after, _ = run(make(tree, layer_decay=layer_decay), tree, 1, gradient=0.0)
    tokens = {"decoder/mask_token"} | ({"backbone/cls_token"} if layer_decay == 1.0 else set())
    moved = {path for path, leaf in after.items() if not jnp.array_equal(leaf, jnp.ones_like(leaf))}
    assert moved == {
        "backbone/patch_embed/proj/kernel",
        *(f"backbone/blocks/{i}/w" for i in range(3)),
        "decoder/w",
        *tokens,
    }


def test_layer_decay_counts_from_the_last_block(tree):
    scales = layer_factors(list(flatten(tree)), 0.5)
    assert [scales[f"backbone/blocks/{i}/w"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scales["backbone/cls_token"] == scales["backbone/patch_embed/proj/kernel"] == 0.5**4
    assert scales["backbone/norm/scale"] == scales["decoder/w"] == 1.0
    plain, _ = run(make(tree, weight_decay=0.0), tree, 1)
    scaled, _ = run(make(tree, weight_decay=0.0, layer_decay=0.5), tree, 1)
    for path in plain:
        np.testing.assert_allclose(1 - scaled[path], (1 - plain[path]) * scales[path], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("convnext_tiny", 18, {"stages/0/0/": 18, "stages/1/0/": 15, "downsamples/1/": 15,
                               "stages/3/2/": 1, "downsamples/0/": 19, "norms/": 0}),
        ("resnet50", 16, {"stages/0/2/": 14, "stages/3/0/": 3, "stem/": 17}),
        ("vig_micro", 5, {"stages/1/0/": 4, "downsamples/0/": 4, "downsamples/2/": 1,
                          "stages/3/0/": 1, "stem/": 6, "positions/": 6}),
        ("sam_base", 12, {"blocks/11/": 1, "patch_embed/": 13, "pos_embed": 13, "neck/": 0}),
        ("dinov2_small_reg", 12, {"blocks/0/": 12, "registers": 13, "norm/": 0}),
    ],
)  # fmt: skip
def test_every_backbone_has_layers(name, depth, expected):
    model = nnx.eval_shape(lambda: vadapt.create(name))
    tree = {"backbone": split(model, "everything").trainable}
    distances = {
        path.removeprefix("backbone/"): round(-np.log2(scale))
        for path, scale in layer_factors(list(flatten(tree)), 0.5).items()
    }
    for prefix, distance in expected.items():
        assert {d for path, d in distances.items() if path.startswith(prefix)} == {distance}
    outside = [path for path, d in distances.items() if not d]
    assert all(re.match("norm|neck", path) for path in outside)
    assert set(distances.values()) - {0} == set(range(1, depth + 2))


def test_layer_decay_without_a_trained_block_is_refused(tree):
    del tree["backbone"]["blocks"]
    with pytest.raises(ConfigError, match="no block of a backbone trains"):
        layer_factors(list(flatten(tree)), 0.5)


def test_late_leaves_start_as_if_they_had_just_been_added(tree):
    optimizer = make(tree, rules=[("decoder/w", {"start": 0.4})], total=10)
    before, _ = run(optimizer, tree, 4)
    np.testing.assert_array_equal(before["decoder/w"], 1.0)
    # Two steps after the start it stands where a leaf stands after its first two steps.
    after, _ = run(optimizer, tree, 6)
    fresh, _ = run(make(tree), tree, 2)
    np.testing.assert_allclose(after["decoder/w"], fresh["decoder/w"], rtol=1e-6)
    assert not np.allclose(after["backbone/norm/scale"], fresh["backbone/norm/scale"])


def test_late_patterns_must_match(tree):
    with pytest.raises(ConfigError, match="gate"):
        make(tree, rules=[("backbone/.*/gate", {"start": 0.5})])


def test_clipping_bounds_the_gradient(tree):
    plain, _ = run(make(tree, clip_norm=0.0, weight_decay=0.0, epsilon=1.0), tree, 1, 100.0)
    clipped, _ = run(make(tree, clip_norm=0.1, weight_decay=0.0, epsilon=1.0), tree, 1, 100.0)
    assert abs(1 - clipped["decoder/w"]).max() < abs(1 - plain["decoder/w"]).min() / 5


def test_the_polynomial_rises_from_its_start_and_ends_with_the_last_step():
    rate = functools.partial(
        warmup_polynomial, peak=2.0, end=0.5, warmup=5, total=25, power=1.0, start=0.1
    )
    np.testing.assert_allclose(rate(0.0), 0.2)
    np.testing.assert_allclose([rate(4.0), rate(5.0)], 2.0)
    np.testing.assert_allclose(rate(24.0), 0.5)
    steps = rate(jnp.arange(5.0, 25.0))
    np.testing.assert_allclose(jnp.diff(steps), -1.5 / 19, rtol=1e-5)


def test_undecayed_leaves_and_rates_go_by_pattern(tree):
    rules = (
        (".*(norm/.*|cls_token)", {"decay": 0.0}),
        (".*/w", {"rate": 0.5, "decay": 1.0}),
        (".*", {"rate": 2.0, "decay": 1.0}),
    )
    after, _ = run(make(tree, schedule=lambda step: 1.0, rules=rules), tree, 1, gradient=0.0)
    for path, value in after.items():
        decay = 0.0 if "norm/" in path or "cls_token" in path else 0.1
        factor = 0.5 if path.endswith("/w") else 2.0
        np.testing.assert_allclose(value, 1 - decay * factor, rtol=1e-6, err_msg=path)
    with pytest.raises(ConfigError, match="no trainable parameter matches"):
        make(tree, rules=(("nowhere", {"rate": 0.1}),))


def test_a_staircase_falls_to_a_tenth_at_every_drop():
    drops = {"name": "staircase", "warmup": 0.1, "drops": (0.25, 0.5)}
    settings = {**SETTINGS, "schedule": drops}
    schedule = learning_rate(settings, total_steps=80, batch_size=256)
    found = [float(schedule(step)) for step in (0, 4, 8, 19, 20, 39, 40, 79)]
    half = 1e-2 * (1e-3 + 0.5 * (1 - 1e-3))
    np.testing.assert_allclose(found, [1e-5, half, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)


def test_a_staircase_without_warm_up_starts_at_its_peak():
    stairs = {"name": "staircase", "drops": (0.5,)}
    schedule = learning_rate({**SETTINGS, "schedule": stairs}, total_steps=4, batch_size=256)
    found = [float(schedule(step)) for step in range(4)]
    np.testing.assert_allclose(found, [1e-2, 1e-2, 1e-3, 1e-3], rtol=1e-6)


def test_the_first_rule_that_gives_something_counts_and_a_part_may_decay(tree):
    rules = (
        ("backbone/blocks/0/.*", {"decay": 0.5}),
        ("backbone/blocks/.*", {"rate": 3.0, "decay": 0.0, "start": 0.5}),
        (".*/w", {"decay": 2.0}),
    )
    settings = OptimizerSettings(lr=1.0, schedule={}, rules=rules, layer_decay=0.5)
    found = treatments(settings, tree)
    assert found["backbone/blocks/0/w"] == (0.375, 0.5, 0.5)
    assert found["backbone/blocks/2/bias"] == (1.5, 0.0, 0.5)
    assert found["decoder/w"] == (1.0, 2.0, 0.0)
    after, _ = run(make(tree, schedule=lambda step: 1.0, rules=rules), tree, 1, gradient=0.0)
    np.testing.assert_allclose(after["decoder/w"], 1 - 2.0 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(after["backbone/blocks/0/w"], 1.0)  # not yet


def descent(steps, *, momentum, nesterov=False, lr=0.1, decay=0.1, trust=None):
    """A matrix of ones, nine of them, after steps of a constant gradient of one."""
    weight, velocity = 1.0, 0.0
    for _ in range(steps):
        gradient = 1.0 + decay * weight
        if trust is not None:  # of the norms of nine equal numbers
            gradient = trust * abs(weight) / abs(gradient) * gradient
        velocity = momentum * velocity + gradient
        weight -= lr * (gradient + momentum * velocity if nesterov else velocity)
    return weight


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.0}],
    ids=["momentum", "nesterov", "plain"],
)
def test_sgd_is_that_of_pytorch(tree, options):
    settings = {"name": "sgd", "lr": 1.0, "schedule": {}, "weight_decay": 0.1, **options}
    after, _ = run(make_optimizer(settings, tree, lambda _: 0.1, total_steps=9), tree, 3)
    np.testing.assert_allclose(after["decoder/w"], descent(3, **options), rtol=1e-6)
    bias = descent(3, decay=0.0, **options)
    np.testing.assert_allclose(after["backbone/blocks/1/bias"], bias, rtol=1e-6)


def test_lars_keeps_updates_in_proportion_to_the_weights(tree):
    settings = {"name": "lars", "lr": 1.0, "schedule": {}, "weight_decay": 0.1}
    settings |= {"momentum": 0.9, "trust_coefficient": 0.02}
    after, _ = run(make_optimizer(settings, tree, lambda _: 0.1, total_steps=9), tree, 3)
    expected = descent(3, momentum=0.9, trust=0.02)
    np.testing.assert_allclose(after["decoder/w"], expected, rtol=1e-6)
    bias = descent(3, momentum=0.9, decay=0.0)
    np.testing.assert_allclose(after["backbone/blocks/1/bias"], bias, rtol=1e-6)


def rates(schedule, steps):
    with jax.numpy_dtype_promotion("standard"):
        return jax.vmap(schedule)(jnp.arange(steps, dtype=jnp.float32))


def test_optax_has_schedules_by_its_own_names():
    settings = {"name": "optax:cosine_onecycle_schedule", "pct_start": 0.5}
    ours, theirs = make_schedule(settings, 1e-3, 40), optax.cosine_onecycle_schedule(40, 1e-3, 0.5)
    np.testing.assert_array_equal(*(rates(each, 40) for each in (ours, theirs)))
    constant = make_schedule({"name": "constant", "warmup": 0.1}, 1e-3, 40)
    np.testing.assert_allclose([constant(s) for s in (0, 2, 4, 39)], [0, 5e-4, 1e-3, 1e-3])
    with pytest.raises(ConfigError, match=r"unknown config\.optimizer\.schedule\.name 'cosin'"):
        make_schedule({"name": "cosin"}, 1.0, 1)


def test_a_covered_cosine_jumps_after_the_warm_up_and_cools_down_at_its_end():
    settings = {"name": "covered_cosine", "warmup": 0.1, "start": 0.1, "end": 0.2, "cooldown": 0.2}
    found = [
        float(make_schedule(settings, 1.0, 100)(step)) for step in (0, 5, 9.99, 10, 40, 80, 99)
    ]
    at_ten = 0.2 + 0.8 * np.cos(0.5 * np.pi * 10 / 80) ** 2
    np.testing.assert_allclose(found, [0.1, 0.55, 0.9991, at_ten, 0.6, 0.2, 0.2], atol=1e-6)


def test_our_schedules_are_optaxs_but_for_rounding():
    peak = 1e-3
    joined = optax.warmup_cosine_decay_schedule(0.0, peak, 100, 1000, 1e-5)
    ours = make_schedule({"name": "cosine", "warmup": 0.1, "end": 1e-5}, peak, 1000)
    np.testing.assert_allclose(rates(ours, 1000), rates(joined, 1000), rtol=0, atol=3e-7 * peak)
    power = optax.polynomial_schedule(peak, 1e-5, 0.9, 999)
    ours = make_schedule({"name": "polynomial", "power": 0.9, "end": 1e-5}, peak, 1000)
    np.testing.assert_allclose(rates(ours, 1000), rates(power, 1000), rtol=0, atol=3e-7 * peak)


def test_the_table_says_how_everything_is_trained(tree):
    rules = (("decoder/.*", {"rate": 0.1}), ("backbone/norm/.*", {"start": 0.5}))
    config = {**SETTINGS, "rules": rules}
    table = optimizer_table(config, tree, total_steps=100, batch_size=512)
    rows = [line.split(maxsplit=4) for line in table.splitlines()[2:]]
    assert table.splitlines()[0] == "optimizer adamw, schedule cosine:"
    names = "backbone/cls_token, backbone/patch_embed/.../kernel, backbone/blocks/.../w"
    assert ["0.02", "0.1", "0", "36", names] in rows
    assert ["0.02", "0", "50", "3", "backbone/norm/scale"] in rows
    assert ["0.002", "0.1", "0", "9", "decoder/mask_token, decoder/w"] in rows
    assert sum(int(row[3]) for row in rows) == sum(x.size for x in jax.tree.leaves(tree))
