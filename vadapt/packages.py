"""Many tasks on one frozen trunk: packages of what was trained, and batches that mix tasks.

A package is the `trainable` tree of `vadapt.split`, or the file that `vadapt.save_adapter` writes
of it. As an argument of a compiled function it is exchanged without compiling anything again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vadapt.errors import ConfigError
from vadapt.partition import Partition, Tree, flatten, merge


def stack(packages: Sequence[Tree]) -> Tree:
    """Packages of one method as one tree, every leaf with the packages as a new first axis.

    Raises:
        ConfigError: their leaves differ in name or shape (tasks with other numbers of classes).
    """
    first, *others = ({path: leaf.shape for path, leaf in flatten(p).items()} for p in packages)
    for number, other in enumerate(others, start=1):
        differing = sorted(set(first.items()) ^ set(other.items()))
        if differing:
            raise ConfigError(
                f"packages 0 and {number} differ in {len(differing)} places: {differing[:4]}; give "
                "all tasks the options and the number of classes of the largest"
            )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *packages)


def call_each(
    forward: Callable[[Any, Array], Any],
    parts: Partition,
    packages: Tree,
    tasks: Int[Array, " b"],
    images: Float[Array, "b h w c"],
) -> Any:
    """Call every image under the package of its own task, in one pass through the trunk.

    Only what a package holds is repeated for every image; frozen weights are shared.

    Args:
        forward: of (model, images), such as `lambda model, images: model(images)`; a batch of one
            image goes in, any tree of arrays [1, ...] comes out.
        parts: of a model with the packages' method; its own package is not used.
        packages: see `stack`.
        tasks: number of every image's package.
    """

    def one(package: Tree, image: Array) -> Any:
        model = merge(parts.graph, package, parts.frozen, parts.state)
        return jax.tree.map(lambda result: result[0], forward(model, image[None]))

    own = jax.tree.map(lambda leaves: leaves[tasks], packages)
    return jax.vmap(one)(own, images)
