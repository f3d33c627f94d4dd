import jax
import numpy as np
import pytest

from vadapt.metrics.layers import Groups, groups, layer_similarity, normalised


def test_similarity_is_the_mean_of_pairs_of_cosines():
    states = jax.random.normal(jax.random.key(0), (4, 3, 5, 6)) + 0.3
    found = layer_similarity(states)
    flat = np.asarray(states.reshape(4, 3, -1), np.float64)
    for i in range(4):
        for j in range(4):
            cosines = [
                a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                for a, b in zip(flat[i], flat[j], strict=True)
            ]
            assert found[i, j] == pytest.approx(np.mean(cosines), abs=1e-5)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-5)


def test_tokens_without_their_mean_are_not_outweighed_by_one_large_channel():
    states = jax.random.normal(jax.random.key(0), (2, 8, 5, 6)).at[..., 0].add(1000.0)
    assert layer_similarity(states)[0, 1] > 0.99
    mean = states.mean(axis=(1, 2))
    assert abs(float(layer_similarity(states, mean)[0, 1])) < 0.4


def test_groups_are_the_ends_that_are_unlike_the_middle():
    row = np.array([0.1, 0.2, 0.9, 0.95, 1.0, 0.9, 0.9, 0.9, 0.3])
    matrix = np.tile(row, (9, 1))
    assert groups(matrix, 0.5) == Groups(beginning=1, ending=1, threshold=0.5)
    assert groups(matrix).threshold == pytest.approx((0.1 + 0.9) / 2)


def test_scores_are_zero_at_chance_and_one_at_the_whole_model():
    found = normalised(np.asarray([[0.1, 0.5], [0.9, 0.75]]), [0.1, 0.25], [0.9, 0.75])
    np.testing.assert_allclose(found, [[0, 0.5], [1, 1]], atol=1e-6)
