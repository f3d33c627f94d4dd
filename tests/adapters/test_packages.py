"""Packages of tasks: a file that adapts a plain model, and batches that mix tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vadapt
from tests.adapters.spm_models import (
    CLASSES,
    SMALL,
    Segmenter,
    call,
    run,
    two_tasks,
    with_logits,
)
from vadapt import packages
from vadapt.errors import ConfigError
from vadapt.partition import split


@pytest.fixture(scope="module")
def tasks():
    return two_tasks()


def test_a_package_alone_adapts_a_plain_model_under_its_head(tasks, trunks, images, tmp_path):
    vadapt.save_adapter(tmp_path / "task.safetensors", tasks[1])
    plain = Segmenter(trunks["resnet"], trunks["resnet"].widths, CLASSES)
    restored = vadapt.adapt_from(plain, tmp_path / "task.safetensors")
    assert not plain.backbone.hooks
    outputs = [run(call, model, images) for model in (restored, tasks[1])]
    np.testing.assert_array_equal(*outputs)


def test_a_batch_may_mix_tasks(tasks, images):
    parts = split(tasks[0])
    stacked = packages.stack([split(model).trainable for model in tasks])
    batch = jnp.concatenate([images, images])
    numbers = jnp.array([0, 1, 1, 0])

    @jax.jit
    def mixed(stacked, numbers, batch):
        return packages.call_each(with_logits, parts, stacked, numbers, batch)

    found = mixed(stacked, numbers, batch)
    for i, task in enumerate(numbers.tolist()):
        expected = run(with_logits, tasks[task], batch[i : i + 1])
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            scale = float(jnp.abs(other).max())
            np.testing.assert_allclose(one[i], other[0], atol=1e-5 * scale)
    mixed(stacked, numbers[::-1], batch)
    assert mixed._cache_size() == 1


def test_packages_of_unequal_shapes_are_refused(trunks):
    trees = [
        split(vadapt.adapt(trunks["vit"], "spm", **{**SMALL, "num_classes": k})).trainable
        for k in (2, 3)
    ]
    with pytest.raises(ConfigError, match="number of classes"):
        packages.stack(trees)
