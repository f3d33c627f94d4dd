"""Where arrays live: the mesh of a run, and how batches, frozen and trained trees lie on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vadapt.errors import ConfigError

BATCH_AXES = ("data", "fsdp")
# Smaller leaves are cheaper to repeat on every device than to gather.
MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices: list[Any] | None = None) -> Mesh:
    """A mesh with axes `data` and `fsdp` over all devices; batches are split over both.

    Args:
        fsdp: over how many devices the frozen weights and the optimizer state are split; 1 keeps
            a copy on each, -1 splits over all (of a slice, if there are several TPU slices).

    Raises:
        ConfigError: the number of devices is not a multiple of `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", None) for device in devices})
    fsdp = len(devices) // slices if fsdp == -1 else fsdp
    if fsdp < 1 or len(devices) % fsdp:
        raise ConfigError(
            f"config.parallel.fsdp={fsdp} does not divide {len(devices)} devices; "
            "allowed are its divisors, or -1 for all"
        )
    types = (AxisType.Auto,) * 2
    if slices > 1:  # of TPUs: only `data` crosses the slower network between them
        if len(devices) // slices % fsdp:
            raise ConfigError(
                f"config.parallel.fsdp={fsdp} does not divide the {len(devices) // slices} "
                f"chips of each of {slices} slices"
            )
        inner = (len(devices) // slices // fsdp, fsdp)
        grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1), devices)
        return Mesh(grid, BATCH_AXES, axis_types=types)
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, BATCH_AXES, axis_types=types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_sharding(tree: Any, mesh: Mesh) -> Any:
    """For every leaf, its largest axis that the `fsdp` axis divides; small leaves are replicated.

    With an `fsdp` axis of one this is a whole copy on every device.
    """
    parts = mesh.shape["fsdp"]

    def leaf_sharding(leaf: Any) -> NamedSharding:
        shape = leaf.shape
        if parts > 1 and np.prod(shape) >= MIN_SHARDED_SIZE:
            for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
                if shape[axis] % parts == 0:
                    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))
        return replicated(mesh)

    return jax.tree.map(leaf_sharding, tree)


def in_set_mesh(tree: Any) -> Any:
    """For every leaf, where it lies under `jax.set_mesh`; None, the default device, without one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.tree.map(lambda _: None, tree)
    if "fsdp" not in mesh.shape:
        return jax.tree.map(lambda _: replicated(mesh), tree)
    return tree_sharding(tree, mesh)


def gather(tree: Any, mesh: Mesh) -> Any:
    """Inside a jitted function, a tree that is whole on every device from here on.

    XLA gathers each leaf where it is used. Without this it would rather split activations as the
    weights are split, and send those at every layer.
    """
    if mesh.shape["fsdp"] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def over_batch(function: Callable[..., Any], *batched: Any, whole: Any = None) -> Any:
    """`function` of `batched` and `whole`; on every device of the set mesh, for its share of them.

    For kernels, which XLA cannot split itself, and loops over a batch, which it should not. A batch
    that the mesh does not divide is worked through on every device.

    Args:
        batched: arrays whose first axis is the batch, as is that of all results.
        whole: a tree that every device needs all of.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if math.prod(mesh.shape[axis] for axis in free) == 1:
        return function(*batched, whole)
    axes = tuple(axis for axis in BATCH_AXES if axis in free)
    divides = batched[0].shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0
    split = PartitionSpec(axes) if divides else PartitionSpec()
    specs = (*[split] * len(batched), PartitionSpec())
    mapped = jax.shard_map(
        function, in_specs=specs, out_specs=split, axis_names=free, check_vma=False
    )
    return mapped(*batched, whole)


def place(tree: Any, shardings: Any) -> Any:
    """Puts a tree that every process holds whole onto the mesh."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A global batch from this process's share of it."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a tree, without its numbers."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
