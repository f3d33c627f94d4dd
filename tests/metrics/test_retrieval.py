"""Recall at k: against a literal count, in blocks of any size."""

import jax
import numpy as np
import pytest

from vadapt.errors import DataError
from vadapt.metrics.retrieval import _nearest, recall_at


def literal(features, labels, k):
    """The definition, query by query in float64."""
    found = 0
    for i, query in enumerate(features.astype(np.float64)):
        cosines = features.astype(np.float64) @ query / np.linalg.norm(query)
        cosines /= np.linalg.norm(features.astype(np.float64), axis=1)
        others = [j for j in np.argsort(-cosines, kind="stable") if j != i]
        found += labels[i] in [labels[j] for j in others[:k]]
    return found / len(features)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 37)
    centers = rng.normal(size=(5, 6))
    lengths = rng.uniform(0.1, 10, (37, 1))  # which the cosine leaves out
    return ((centers[labels] + rng.normal(size=(37, 6))) * lengths).astype(np.float32), labels


@pytest.mark.parametrize("block", [1, 10, 37, 1024])
def test_it_is_the_literal_count_whatever_the_block(images, block):
    features, labels = images
    found = recall_at(features, labels, (1, 2, 4, 8), block=block)
    assert found == {k: pytest.approx(literal(features, labels, k)) for k in (1, 2, 4, 8)}
    assert 0 < found[1] < found[8] <= 1


def test_an_image_does_not_find_itself_and_lone_classes_find_nothing():
    features = np.eye(4, dtype=np.float32)
    assert recall_at(features, np.arange(4), (1, 3)) == {1: 0.0, 3: 0.0}
    same = np.concatenate([features, features])
    assert recall_at(same, np.arange(8) % 4, (1,)) == {1: 1.0}
    # All others, where there are fewer than k.
    assert recall_at(features, np.asarray([0, 0, 1, 2]), (50,)) == {50: 0.5}


def test_of_equally_near_ones_the_earlier_counts():
    features = np.ones((3, 2), np.float32)
    assert recall_at(features, np.asarray([0, 1, 0]), (1, 2)) == {1: pytest.approx(1 / 3), 2: 2 / 3}


def test_no_square_of_similarities_is_held():
    """60,000 images, as the largest retrieval sets have."""
    units = jax.ShapeDtypeStruct((60_000, 8), np.float32)
    text = _nearest.lower(units, 0, 256, 8).as_text()
    assert "256x60000" in text
    assert "60000x60000" not in text


@pytest.mark.parametrize(
    ("features", "labels", "numbers", "said"),
    [
        (np.ones((1, 2)), [0], (1,), "1 images with 1 labels"),
        (np.ones((3, 2)), [0, 1], (1,), "3 images with 2 labels"),
        (np.asarray([[1.0, 2.0], [1.0, np.nan]]), [0, 0], (1,), "image 1 are not finite"),
        (np.ones((3, 2)), [0, 1, 0], (0,), "all of them are at least 1"),
    ],
)
def test_what_has_no_recall_is_refused(features, labels, numbers, said):
    with pytest.raises(DataError, match=said):
        recall_at(features.astype(np.float32), np.asarray(labels), numbers)
