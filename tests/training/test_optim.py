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
from vadapt.training.optim import (
    layer_decay_scales,
    learning_rate,
    make_optimizer,
    warmup_cosine,
    warmup_polynomial,
)

SETTINGS = {
    "base_lr": 1e-2,
    "end_lr": 0.0,
    "warmup_share": 0.25,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "layer_decay": 1.0,
    "clip_norm": 0.0,
    "late": (),
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
    schedule = learning_rate({**SETTINGS, "end_lr": 1e-4}, total_steps=100, batch_size=512)
    peak = 2e-2  # base_lr * 512 / 256
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 5, 25, 100)], [0, peak / 5, peak, 1e-4], rtol=1e-5
    )
    rates = [float(schedule(step)) for step in range(25, 101)]
    assert rates == sorted(rates, reverse=True)


def test_schedule_is_exact_near_its_end():
    rate = warmup_cosine(99.9, peak=1.0, end=0.0, warmup=0.0, total=100.0)
    np.testing.assert_allclose(rate, 0.5 * (1 + np.cos(np.pi * 0.999)), rtol=1e-4)


def test_optimizer_state_holds_the_trainable_leaves_only(tree):
    optimizer = make(tree, late=[(r"decoder/w", 0.5)])
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
    scales = flatten(layer_decay_scales(tree, 0.5))
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
        for path, scale in flatten(layer_decay_scales(tree, 0.5)).items()
    }
    for prefix, distance in expected.items():
        assert {d for path, d in distances.items() if path.startswith(prefix)} == {distance}
    outside = [path for path, d in distances.items() if not d]
    assert all(re.match("norm|neck", path) for path in outside)
    assert set(distances.values()) - {0} == set(range(1, depth + 2))


def test_layer_decay_without_a_trained_block_is_refused(tree):
    del tree["backbone"]["blocks"]
    with pytest.raises(ConfigError, match="no block of a backbone trains"):
        layer_decay_scales(tree, 0.5)


def test_late_leaves_start_as_if_they_had_just_been_added(tree):
    optimizer = make(tree, late=[("decoder/w", 0.4)], total=10)
    before, _ = run(optimizer, tree, 4)
    np.testing.assert_array_equal(before["decoder/w"], 1.0)
    # Two steps after the start it stands where a leaf stands after its first two steps.
    after, _ = run(optimizer, tree, 6)
    fresh, _ = run(make(tree), tree, 2)
    np.testing.assert_allclose(after["decoder/w"], fresh["decoder/w"], rtol=1e-6)
    assert not np.allclose(after["backbone/norm/scale"], fresh["backbone/norm/scale"])


def test_late_patterns_must_match(tree):
    with pytest.raises(ConfigError, match="gate"):
        make(tree, late=[("backbone/.*/gate", 0.5)])


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
    changes = {
        "undecayed": ".*(norm/.*|cls_token)",
        "rates": ((".*/w", 0.5), (".*", 2.0)),
    }
    after, _ = run(make(tree, schedule=lambda step: 1.0, **changes), tree, 1, gradient=0.0)
    for path, value in after.items():
        decay = 0.0 if "norm/" in path or "cls_token" in path else 0.1
        factor = 0.5 if path.endswith("/w") else 2.0
        np.testing.assert_allclose(value, 1 - decay * factor, rtol=1e-6, err_msg=path)
    with pytest.raises(ConfigError, match="no trainable parameter matches"):
        make(tree, rates=(("nowhere", 0.1),))


def test_a_staircase_falls_to_a_tenth_at_every_drop():
    settings = {**SETTINGS, "warmup_share": 0.1, "drops": (0.25, 0.5)}
    schedule = learning_rate(settings, total_steps=80, batch_size=256)
    found = [float(schedule(step)) for step in (0, 4, 8, 19, 20, 39, 40, 79)]
    half = 1e-2 * (1e-3 + 0.5 * (1 - 1e-3))
    np.testing.assert_allclose(found, [1e-5, half, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-5)
