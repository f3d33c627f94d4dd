"""Where arrays lie on a mesh of eight virtual devices."""

import jax
import numpy as np
import pytest

from vadapt import sharding
from vadapt.errors import ConfigError


def test_batches_are_spread_over_all_devices():
    mesh = sharding.make_mesh(fsdp=2)
    images = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    placed = sharding.place_batch({"image": images}, mesh)["image"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    assert len(placed.addressable_shards) == 8
    np.testing.assert_array_equal(placed, images)


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (256, 512)), (4, (256, 128)), (-1, (256, 64))])
def test_large_leaves_are_split_along_their_largest_axis(fsdp, shape):
    mesh = sharding.make_mesh(fsdp)
    tree = {"large": np.ones((256, 512), np.float32), "small": np.ones(512, np.float32)}
    placed = sharding.place(tree, sharding.tree_sharding(tree, mesh))
    assert placed["large"].addressable_shards[0].data.shape == shape
    assert placed["small"].addressable_shards[0].data.shape == (512,)
    np.testing.assert_array_equal(placed["large"], tree["large"])


def test_axes_that_do_not_divide_are_left_whole():
    mesh = sharding.make_mesh(8)
    tree = {"odd": np.ones((257, 129), np.float32), "even": np.ones((257, 128), np.float32)}
    shardings = sharding.tree_sharding(tree, mesh)
    assert shardings["odd"].spec == jax.sharding.PartitionSpec()
    assert shardings["even"].spec == jax.sharding.PartitionSpec(None, "fsdp")


def test_a_mesh_that_does_not_divide_says_so():
    with pytest.raises(ConfigError, match="does not divide 8 devices"):
        sharding.make_mesh(3)
