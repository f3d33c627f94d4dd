"""A pytree as a checkpoint holds it: plain nested dicts of arrays, named by strings only."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vadapt.errors import WeightsError

# orbax and tensorstore are imported inside the functions, see checkpoint.py.

_NAMES_SHOWN = 8


def as_dict(tree: Any) -> dict[str, Any]:
    """`tree` as nested dicts that orbax stores; what is not a jax array is copied.

    Raises:
        WeightsError: a leaf that cannot be stored, or two of one name.
    """
    flat = {path: _storable(path, leaf) for path, leaf in _flatten(tree).items()}
    return _nest({path: leaf for path, leaf in flat.items() if np.size(leaf)})  # orbax: size > 0


def kinds(tree: Any) -> dict[str, str]:
    """Types and shapes of the leaves that are stored, as `float32[3,4]`, by their whole names."""
    return {
        "/".join(path): _kind(leaf) for path, leaf in _flatten(tree).items() if not _is_empty(leaf)
    }


def stored_kinds(path: Any) -> dict[str, str]:
    """The same of a tree that `orbax.PyTreeSave` wrote; no array is read."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    try:
        return kinds(handler.metadata(path).tree)
    finally:
        handler.close()


def read_tree(path: Any, abstract: Any, title: str, *, partial: bool = False) -> Any:
    """Reads what `orbax.PyTreeSave(as_dict(tree))` wrote, into the structure of `abstract`.

    Args:
        partial: what is stored may have leaves besides.

    Raises:
        WeightsError: the two differ in names, shapes or dtypes; `title` begins the message.
    """
    import orbax.checkpoint as ocp

    # The handler itself: Checkpointer.restore ends in a barrier, at which the other processes
    # would hang if this one met a damaged file.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        wanted = _flatten(abstract)
        stored = _flatten(handler.metadata(path).tree)
        if partial:
            stored = {key: leaf for key, leaf in stored.items() if key in wanted}
        _check_same(title, wanted, stored)
        present = {key: leaf for key, leaf in wanted.items() if key in stored}
        args = ocp.args.PyTreeRestore(
            item=_nest(present),
            restore_args=_nest({key: _restore_args(leaf) for key, leaf in present.items()}),
            partial_restore=partial,
        )
        values = _flatten(handler.restore(path, args=args)) if present else {}
    finally:
        handler.close()
    leaves = [_as_wanted(values.get(key), leaf) for key, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """Leaves by path, in tree order; dict keys, fields and indices all become strings."""
    flat: dict[tuple[str, ...], Any] = {}
    seen: set[str] = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("value",)
        # orbax joins names with dots in its files: {"a.b": x} and {"a": {"b": x}} would be one.
        if (joined := ".".join(names)) in seen:
            raise WeightsError(f"two leaves are called {joined!r}; rename one of their keys")
        seen.add(joined)
        flat[names] = leaf
    return flat


def _nest(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def _storable(path: tuple[str, ...], leaf: Any) -> Any:
    """A jax array as it is; everything else as a NumPy copy."""
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise WeightsError(
                f"{'/'.join(path)} is a typed PRNG key; store jax.random.key_data(key)"
            )
        # orbax refuses an array of one process's own devices when there are several processes.
        local = jax.process_count() > 1 and leaf.is_fully_addressable
        return np.array(leaf) if local else leaf
    array = np.array(leaf)
    if not jax.dtypes.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise WeightsError(
            f"{'/'.join(path)} is a {type(leaf).__name__}; allowed: arrays and numbers"
        )
    return array


def _restore_args(leaf: Any) -> Any:
    import orbax.checkpoint as ocp

    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def _as_wanted(value: Any, leaf: Any) -> Any:
    if isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic):
        return type(leaf)(value)
    if value is None:  # orbax stores no empty array
        value = np.zeros(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    if sharding is not None:
        return value if isinstance(value, jax.Array) else jax.device_put(value, sharding)
    return value[()] if isinstance(leaf, np.generic) else value


def _is_empty(leaf: Any) -> bool:
    return 0 in getattr(leaf, "shape", ())


def _kind(leaf: Any) -> str:
    """`float32[3,4]`, the part of a leaf that must agree."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _check_same(
    title: str, wanted: dict[tuple[str, ...], Any], stored: dict[tuple[str, ...], Any]
) -> None:
    empty = {path for path, leaf in wanted.items() if _is_empty(leaf)}
    missing = ["/".join(path) for path in wanted if path not in stored and path not in empty]
    unexpected = ["/".join(path) for path in stored if path not in wanted]
    other = [
        f"{'/'.join(path)}: checkpoint {_kind(stored[path])}, model {_kind(leaf)}"
        for path, leaf in wanted.items()
        if path in stored and _kind(stored[path]) != _kind(leaf)
    ]
    if not (missing or unexpected or other):
        return
    lines = [f"{title} does not fit the model, whose config may have changed:"]
    for heading, names in (
        ("missing in the checkpoint", missing),
        ("unexpected in the checkpoint", unexpected),
        ("of another shape or dtype", other),
    ):
        if names:
            rest = f", and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            lines.append(f"  {len(names)} {heading}: {', '.join(names[:_NAMES_SHOWN])}{rest}")
    raise WeightsError("\n".join(lines))
