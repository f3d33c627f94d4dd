"""SPM: what is seen of a stage, what is carried and where matchers stand, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.adapters.spm_models import (
    CLASSES,
    SMALL,
    TAPS,
    TOLERANCE,
    call,
    draw,
    matched,
    randomised,
    run,
    seen,
    unnormed,
)
from vadapt.adapters import spm
from vadapt.errors import ConfigError, ShapeError
from vadapt.losses.segmentation import cross_entropy
from vadapt.nn.resize import resize_bilinear
from vadapt.nn.tokens import Tokens
from vadapt.partition import merge, split


def matched_again(model, maps):
    return [one(x).output for one, x in zip(model.between.matchers, maps, strict=False)]


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_raw_taps_are_the_stages_outputs_and_matched_ones_what_goes_on(name, trunks, images):
    models = [randomised(vadapt.adapt(trunks[name], "spm", **SMALL, tap=tap)) for tap in spm.TAPS]
    onward, raw = (run(unnormed, model, images) for model in models)
    outputs = run(matched_again, models[0], raw)
    for output, one, other in zip(outputs, onward, raw, strict=False):
        np.testing.assert_allclose(output, one, **TOLERANCE)
        assert jnp.abs(one - other).max() > 1e-2
    np.testing.assert_allclose(onward[-1], raw[-1], **TOLERANCE)
    taps = TAPS[name]
    plainly = run("features", models[0], images, layers=taps, as_grid=True, norm=False)
    for one, other in zip(onward, plainly, strict=True):
        np.testing.assert_allclose(one, other, **TOLERANCE)


def test_output_norms_act_on_what_is_seen_and_not_on_what_goes_on(trunks, images):
    model = randomised(vadapt.adapt(trunks["convnext"], "spm", **SMALL))

    def left(model, images):
        return [model.leave(x, i) for i, x in enumerate(unnormed(model, images))]

    found, expected = run(matched, model, images)[0], run(left, model, images)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **TOLERANCE)


def test_matchers_before_the_first_stage_and_after_the_last(trunks, images):
    for name, taps in TAPS.items():
        model = vadapt.adapt(trunks[name], "spm", **SMALL, after_stem=True, after_last=True)
        ends = model.ends if hasattr(model, "stages") else taps
        assert model.between.places == (-1, *ends)
        first, last = model.between.matchers[0], model.between.matchers[-1]
        assert first.reduce.in_features == {"resnet": 6, "convnext": 4}.get(name, 8)
        assert last.reduce.in_features == {"resnet": 32, "convnext": 6}.get(name, 8)


def test_a_matcher_before_the_first_stage_acts_on_what_enters_it(trunks, images):
    model = randomised(vadapt.adapt(trunks["sam"], "spm", **SMALL, after_stem=True))
    found = run("features", model, images, layers=0, as_grid=True)

    def by_hand(model, images):
        stem, first = model.between.matchers
        return first(model.blocks[0](stem(model.embed(images)).output)).output

    np.testing.assert_allclose(found, run(by_hand, model, images), **TOLERANCE)


def test_the_stages_of_plain_transformers():
    assert spm.stage_ends(24, 4) == (5, 11, 17, 23)
    assert spm.stage_ends(12, 4) == (2, 5, 8, 11)
    assert spm.stage_ends(7, 4) == (1, 3, 5, 6)


def test_raw_taps_still_show_what_comes_after_the_last_stage(trunks, images):
    options = {**SMALL, "after_last": True, "tap": "raw"}
    model = randomised(vadapt.adapt(trunks["sam"], "spm", **options))
    first, last = run(matched, model, images)[0]
    np.testing.assert_allclose(first, seen(trunks["sam"], images, "sam")[0], **TOLERANCE)

    def by_hand(model, first):
        matchers = model.between.matchers
        return matchers[1](model.blocks[1](matchers[0](first).output)).output

    np.testing.assert_allclose(last, run(by_hand, model, first), **TOLERANCE)


def test_a_carried_map_replaces_the_first_one(trunks, images):
    model = randomised(vadapt.adapt(trunks["convnext"], "spm", **SMALL, carry=True))
    maps = draw(2, 8, 12, 4), draw(2, 4, 6, 5)

    def passed(model, images, maps):
        spm, state = model.between, model.between.start(images)
        _, state = spm.after(model.ends[0], Tokens(maps[0]), state)
        return spm.after(model.ends[1], Tokens(maps[1]), state)[0].array

    def by_hand(model, maps):
        first, second = model.between.matchers[:2]
        carried = first(maps[0]).guide
        x = second.reduce(maps[1])
        embedded = second.embed(resize_bilinear(carried, (4, 6)), (4, 6))
        state = jax.nn.gelu(second.mix(jnp.concatenate([x, embedded], axis=-1)), approximate=False)
        prompt = second.step(x, second.update(state)).prompt
        return second(maps[1], carried).output, maps[1] + second.output(prompt)

    found = run(passed, model, images, maps)
    for expected in run(by_hand, model, maps):
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_attention_sees_the_matched_tokens(trunks, images):
    model = randomised(vadapt.adapt(trunks["vit"], "spm", **SMALL))
    tokens, _ = run("with_attention", model, images)
    np.testing.assert_allclose(tokens, run(call, model, images), **TOLERANCE)
    with pytest.raises(ShapeError, match="feed all patches"):
        model(images, keep_ids=jnp.zeros((2, 5), jnp.int32))


def test_bfloat16_stays_bfloat16(trunks, images):
    parts = split(randomised(vadapt.adapt(trunks["convnext"], "spm", **SMALL, sem_stride=2)))
    cast = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree))
    half = cast((parts.trainable, parts.frozen))
    found = run(matched, merge(parts.graph, *half, parts.state), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}


def test_the_semantic_loss_is_a_mean_over_matchers_and_steps():
    logits = [draw(1, 2, 3, CLASSES), draw(1, 4, 6, CLASSES, seed=1)]
    labels = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, (1, 8, 12)))
    each = [cross_entropy(resize_bilinear(one, (8, 12)), labels) for one in logits]
    np.testing.assert_allclose(spm.semantic_loss(logits, labels), sum(each) / 2, rtol=1e-6)
    assert spm.semantic_loss([], labels) == 0.0
    assert spm.semantic_loss(logits, jnp.full_like(labels, 255)) == 0.0


def test_it_works_beside_rein(trunks, images):
    rein = {"num_tokens": 2, "rank": 1, "query_width": None, "start": "zero"}
    model = vadapt.adapt(vadapt.adapt(trunks["vit"], "rein", **rein), "spm", **SMALL)
    for found, expected in zip(
        run(matched, model, images)[0], seen(trunks["vit"], images, "vit"), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": "sof"}, "nearest: 'soft'"),
        ({"tap": "raws"}, "nearest: 'raw'"),
        ({"steps": -1}, "-1 steps"),
        ({"sem_stride": 0}, "sem_stride of 0"),
        ({"num_stages": 6}, "6 stages of 3 blocks"),
    ],
)
def test_unknown_options_are_refused(options, message, trunks):
    with pytest.raises(ConfigError, match=message):
        vadapt.adapt(trunks["vit"], "spm", **{**SMALL, **options})


def test_what_cannot_be_grafted_is_refused_with_the_reason(trunks):
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        vadapt.adapt(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "spm", **SMALL)
    with pytest.raises(ConfigError, match="has this method already"):
        vadapt.adapt(vadapt.adapt(trunks["vit"], "spm", **SMALL), "spm", **SMALL)
