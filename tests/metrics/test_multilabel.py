"""Scores of several labels an image against their definitions, one entry at a time."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import finish, lines_of, local
from vadapt.errors import ConfigError
from vadapt.metrics.multilabel import (
    Answers,
    answered,
    average_precision,
    choose,
    label_scores,
    precision_recall,
    top_accuracy,
)


def case(rng, n=30, labels=6, ties=False):
    scores = rng.uniform(size=(n, labels)).astype(np.float32)
    scores = (scores * 4).round() / 4 if ties else scores
    return scores, rng.choice([1, 0, 0, -1], size=(n, labels)).astype(np.int8)


def one_precision(scores, targets):
    """By the definition: images of one label in order, the stable one."""
    ranked = [t for _, t in sorted(zip(-scores, targets, strict=True), key=lambda p: p[0])]
    ranked = [t for t in ranked if t >= 0]
    at = [sum(ranked[: i + 1]) / (i + 1) for i, t in enumerate(ranked) if t]
    return sum(at) / len(at) if at else 0.0


def eleven(scores, targets):
    ranked = [t for _, t in sorted(zip(-scores, targets, strict=True), key=lambda p: p[0])]
    ranked = [t for t in ranked if t >= 0]
    points = []
    for step in range(11):
        best = 0.0
        for i in range(len(ranked)):
            found = sum(ranked[: i + 1])
            if sum(ranked) and 10 * found >= step * sum(ranked):
                best = max(best, found / (i + 1))
        points.append(best)
    return sum(points) / 11


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_its_definition(rng, ties):
    scores, targets = case(rng, ties=ties)
    targets[:, 2] = 0  # in no image
    for measure, options in ((one_precision, {}), (eleven, {"eleven_points": True})):
        expected = [measure(scores[:, i], targets[:, i]) for i in range(6)]
        found = average_precision(scores, targets, **options)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert found[2] == 0


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_rankings_do_not_see_the_scale_and_reward_better_ones(seed):
    scores, targets = case(np.random.default_rng(seed))
    found = average_precision(scores, targets)
    np.testing.assert_array_equal(average_precision(3 * scores - 7, targets), found)
    assert ((found >= 0) & (found <= 1)).all()
    best = average_precision(targets.astype(np.float32), targets)
    np.testing.assert_array_equal(best, (targets > 0).any(0))


@pytest.mark.parametrize("eleven_points", [False, True])
def test_a_score_that_is_nan_is_never_a_good_one(eleven_points):
    targets = np.array([[1, 1, -1], [0, 1, 1]], np.int8)
    scores = np.array([[np.nan, 0.9, np.nan], [0.1, 0.8, 0.7]])
    found = average_precision(scores, targets, eleven_points=eleven_points)
    np.testing.assert_array_equal(found, [np.nan, 1, 1])  # what is in doubt is not ranked
    everything = label_scores(np.full((2, 3), np.nan), targets)
    rankings = {name: value for name, value in everything.items() if name.startswith("mAP")}
    assert np.isnan([*rankings.values()]).all()
    assert {value for name, value in everything.items() if name not in rankings} == {0.0}
    assert top_accuracy(np.full((2, 3), np.nan), targets) == 0


def test_equal_scores_keep_their_order():
    scores, targets = np.ones((3, 1), np.float32), np.array([[0], [1], [0]])
    assert average_precision(scores, targets)[0] == 1 / 2
    np.testing.assert_array_equal(choose(np.ones((1, 4)), top=2), [[True, True, False, False]])


def test_entries_that_are_left_out_might_not_be_there(rng):
    scores, targets = case(rng)
    kept = rng.uniform(size=targets.shape) < 0.6
    found = average_precision(scores, targets, kept=kept)
    for i in range(6):
        alone = kept[:, i]
        expected = average_precision(scores[alone, i : i + 1], targets[alone, i : i + 1])
        np.testing.assert_allclose(found[i], expected[0], atol=1e-12)


def test_counts_with_a_label_never_predicted_and_one_in_no_image():
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, -1]])
    predicted = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]], bool)
    counts = precision_recall(predicted, targets)
    np.testing.assert_allclose(counts.CP, (1 / 2 + 0 + 0) / 3)
    np.testing.assert_allclose(counts.CR, (1 / 2 + 0 + 0) / 3)
    np.testing.assert_allclose([counts.OP, counts.OR], [1 / 4, 1 / 4])
    np.testing.assert_allclose(counts.CF1, 2 * counts.CP * counts.CR / (counts.CP + counts.CR))
    each = answered(predicted, targets)
    assert [array.tolist() for array in each] == [[1, 0, 0], [1, 0, 2], [1, 2, 0], [0, 1, 1]]
    np.testing.assert_array_equal(each.precision, [1 / 2, 0, 0])
    np.testing.assert_array_equal(each.recall, [1 / 2, 0, 0])
    nothing = precision_recall(np.zeros_like(predicted), targets)
    assert nothing == (0, 0, 0, 0, 0, 0)


def test_the_best_three_with_and_without_a_threshold(rng):
    scores, targets = case(rng)
    three = choose(scores, top=3)
    assert (three.sum(1) == 3).all()
    assert (choose(scores, threshold=0.5, top=3) == (three & (scores >= 0.5))).all()
    found = label_scores(scores, targets)
    assert found["OP_top3"] == pytest.approx(100 * (three & (targets > 0)).sum() / three.sum())
    assert found["OR_top3_thr"] <= found["OR_top3"]
    assert not any(name.startswith("mAP_s") for name in found)


def test_the_one_label_among_the_best():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    targets = np.array([[0, 1, 0], [0, 1, 0]])
    assert [top_accuracy(scores, targets, top) for top in (1, 2)] == [50, 100]


def test_areas_part_the_objects_by_size():
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    targets = np.array([[1], [0], [1], [1], [0]])
    areas = np.array([[32**2 - 1], [0], [32**2], [96**2], [0]])
    found = label_scores(scores, targets, areas)
    assert [found[f"mAP_{size}"] for size in "sml"] == [100, 50, 50]


def test_batches_and_what_fills_them_up_change_nothing(rng):
    scores, targets = case(rng, n=10)
    areas = rng.uniform(size=scores.shape).astype(np.float32)
    answers = Answers()
    for at in range(0, 12, 4):
        rows = np.minimum(np.arange(at, at + 4), 9)
        answers.add(scores[rows], targets[rows], areas[rows], np.arange(at, at + 4) < 10)
    for found, expected in zip(answers.rows(), (scores, targets, areas), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert answers.elements().tolist() == list(range(10))
    with pytest.raises(ConfigError, match="nothing to score"):
        Answers().rows()


def test_processes_that_share_the_images_score_them_as_one_does():
    code = (
        "import numpy as np, jax; from vadapt.runtime.distributed import start\n"
        "from vadapt.metrics.multilabel import Answers; start()\n"
        "from vadapt.data.stream import batches\n"
        "answers = Answers()\n"
        "source = [{'labels': np.full(2, i)} for i in range(5)]\n"
        "shared = {'process_index': jax.process_index(), 'process_count': 2, 'num_threads': 0}\n"
        "for batch in batches(source, [], 4, **shared):\n"
        "    labels = batch['labels']\n"
        "    answers.add(labels.astype(np.float32), labels % 2, valid=batch['valid'])\n"
        "print(jax.process_count(), answers.rows()[0][:, 0].tolist())\n"
        "from vadapt.metrics.gathering import of_all_processes\n"
        "mine = np.arange(3 - 2 * jax.process_index(), dtype=np.float32)\n"
        "print('elements', answers.elements().tolist(), of_all_processes(mine).tolist())"
    )
    said, _ = finish(local(2, [sys.executable, "-c", code]))
    for number in range(2):
        assert "2 [0.0, 1.0, 2.0, 3.0, 4.0]" in lines_of(number, said)
        assert "elements [0, 1, 2, 3, 4] [0.0, 1.0, 2.0, 0.0]" in lines_of(number, said)
