import jax.numpy as jnp
import numpy as np

from vadapt.metrics.knn import knn_accuracy, knn_votes


def test_votes_are_those_of_the_nearest_by_cosine_each_weighed(rng):
    train, test = rng.normal(size=(9, 4)), rng.normal(size=(3, 4))
    labels = rng.integers(0, 3, 9)
    found = knn_votes(
        jnp.asarray(train, jnp.float32), jnp.asarray(labels), jnp.asarray(test, jnp.float32),
        num_classes=3, k=4,
    )  # fmt: skip
    for row, one in zip(found, test, strict=True):
        cosines = train @ one / np.linalg.norm(train, axis=1) / np.linalg.norm(one)
        wanted = np.zeros(3)
        for i in np.argsort(-cosines)[:4]:
            wanted[labels[i]] += np.exp(cosines[i] / 0.07)
        np.testing.assert_allclose(row, wanted, rtol=2e-4)


def test_accuracy_heeds_directions_alone_and_takes_fewer_than_twenty():
    train = np.asarray([[1.0, 0], [0, 2.0]])
    test = np.asarray([[9.0, 1], [0.1, 0.3], [1, 1.1]])
    found = knn_accuracy(train, np.asarray([0, 1]), test, np.asarray([0, 1, 0]), num_classes=2)
    assert found == 2 / 3
