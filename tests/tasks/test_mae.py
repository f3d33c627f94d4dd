"""Masked autoencoding: masking, explicit randomness, and the published counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt.configs import pad_msip
from vadapt.partition import count, flatten, split
from vadapt.tasks import make_task
from vadapt.tasks.mae import MAETask, random_masking

# All parameters that PAD updates with MAE's decoder, ViT-B/16.
UPDATED = 26_841_088


def small_config(**changes):
    return shrunk_for_tests(pad_msip.get_config("scenes"), **changes)


def shrunk_for_tests(config, **changes):
    """A config with little data, random weights, and these other settings."""
    config.model.weights = ""
    config.data.image_size = (32, 32)
    config.data.num_scenes = 16
    config.batch_size = 8
    config.eval.probe_scenes = 0
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def task():
    return make_task(small_config())


@pytest.fixture(scope="module")
def model(task):
    return task.build()


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 49), (0.6, 78), (0.0, 196), (0.9, 19)])
def test_masking_keeps_the_floor_of_the_share(ratio, kept):
    masking = random_masking(jax.random.uniform(jax.random.key(0), (3, 196)), ratio)
    assert masking.keep_ids.shape == (3, kept)
    np.testing.assert_array_equal(masking.mask.sum(1), 196 - kept)


def test_kept_patches_have_the_smallest_noise():
    noise = jnp.array([[0.5, 0.1, 0.9, 0.3]])
    masking = random_masking(noise, 0.5)
    np.testing.assert_array_equal(masking.keep_ids, [[1, 3]])
    np.testing.assert_array_equal(masking.mask, [[1, 0, 1, 0]])
    np.testing.assert_array_equal(masking.restore_ids, [[2, 0, 3, 1]])


def test_pad_updates_the_published_number_of_parameters():
    config = pad_msip.get_config("base")
    config.model.weights = ""
    model = nnx.eval_shape(lambda: MAETask(config).build())
    graph_parts = split(model, config.trainable)
    assert count(graph_parts.trainable) == UPDATED
    frozen = set(flatten(graph_parts.frozen))
    assert {"decoder/embed/kernel", "decoder/embed/bias"} <= frozen
    assert set(flatten(graph_parts.state)) == {"backbone/pos_embed", "decoder/pos_embed"}


def test_same_key_same_loss_other_key_other_masks(task, model):
    batch = {
        "image": jnp.asarray(np.random.default_rng(0).integers(0, 255, (4, 32, 32, 1)), jnp.uint8)
    }
    graph, state = nnx.split(model)
    loss = jax.jit(lambda key: task.loss(nnx.merge(graph, state), batch, key)[0])
    first = loss(jax.random.key(0))
    assert first == loss(jax.random.key(0))
    assert first != loss(jax.random.key(1))


def test_full_training_includes_what_pad_freezes():
    config = pad_msip.get_config("scenes,full")
    config.model.weights = ""
    parts = split(make_task(config).build(), config.trainable)
    assert parts.frozen == {}
    assert "decoder/embed/kernel" in flatten(parts.trainable)


def test_pictures_show_input_masked_and_filled(task, model):
    batch = {"image": np.full((3, 32, 32, 1), 120, np.uint8)}
    picture = task.pictures(model, batch)["reconstruction"]
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3
