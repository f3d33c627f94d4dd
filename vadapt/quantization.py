"""Frozen weights as they are stored: in a floating-point type, or their matrices in int8.

The arithmetic of int8 is qwix's (`pip install 'vadapt[int8]'`), Google's library for quantizing
JAX models; nothing here but the choice of what is stored so.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vadapt.errors import ConfigError
from vadapt.partition import Tree, choose, flatten, join

INT8 = "int8"
DTYPES = ("float32", "bfloat16", "float16", INT8)  # of `config.parallel.frozen_dtype`
# Of linear layers [in, out], groups of these [groups, in, out], and convolutions [h, w, in, out].
_MATRIX = "kernel"
# qwix divides the largest magnitude by 127.5, and cuts it off at 127: matrices that were rounded
# once would shrink when they are rounded again. So they stay what they are.
_CALIBRATION = f"absmax,{127.5 / 127}"


def store(frozen: Tree, dtype: str) -> Tree:
    """Frozen weights as a run keeps them on its devices.

    In a floating-point type all are cast. In int8 that is done to the kernels of linear layers and
    convolutions, of the backbone and of a frozen teacher: each becomes a `qwix.QArray` of int8
    and one float32 scale for every output, its largest magnitude over 127. What is no matrix
    (biases, norms, layer scales, tokens, tables of positions) stays as it was.

    Args:
        frozen: `vadapt.split(...).frozen`, in float32.
        dtype: one of `DTYPES`.

    Raises:
        ConfigError: an unknown type, or int8 without qwix.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            f"config.parallel.frozen_dtype={dtype!r}; it is one of {', '.join(DTYPES)}"
        )
    if dtype != INT8:
        return cast(frozen, jnp.dtype(dtype))
    qwix = _qwix()

    def quantized(matrix: Array) -> Any:
        outputs = (0, 2) if matrix.ndim == 3 else (matrix.ndim - 1,)
        return qwix.quantize(
            matrix.astype(jnp.float32),
            jnp.int8,
            channelwise_axes=outputs,
            calibration_method=_CALIBRATION,
        )

    return join(frozen, jax.tree.map(quantized, matrices(frozen)))


def matrices(frozen: Tree) -> Tree:
    """The part of frozen weights that `store` puts into int8."""

    def is_kernel(path: str) -> bool:
        return path.rpartition("/")[2] == _MATRIX and named[path].ndim > 1

    named = flatten(frozen)
    return choose(frozen, is_kernel)


def in_use(stored: Tree, dtype: Any) -> Tree:
    """Stored weights as models take them: arrays of a floating-point type, int8 ones too."""

    def used(leaf: Any) -> Array:
        return _cast(_qwix().dequantize(leaf) if is_int8(leaf) else leaf, dtype)

    return jax.tree.map(used, stored, is_leaf=is_int8)


def rounded(frozen: Tree) -> Tree:
    """Frozen weights in float32, their matrices with the values that int8 leaves of them.

    Raises:
        ConfigError: qwix is not installed.
    """
    return in_use(store(frozen, INT8), jnp.float32)


def cast(tree: Any, dtype: Any) -> Any:
    """Floating-point leaves in another dtype; int8 matrices and their scales stay."""
    return jax.tree.map(
        lambda leaf: leaf if is_int8(leaf) else _cast(leaf, dtype), tree, is_leaf=is_int8
    )


def is_int8(leaf: Any) -> bool:
    """Whether a leaf is a matrix that `store` has put into int8; qwix need not be there to ask."""
    return hasattr(leaf, "qvalue")


def has_qwix() -> bool:
    """Whether weights can be put into int8 here."""
    return importlib.util.find_spec("qwix") is not None


def _cast(leaf: Any, dtype: Any) -> Any:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _qwix() -> Any:
    """The library, which takes a second to import and need not be there.

    Raises:
        ConfigError: it is not.
    """
    if not has_qwix():
        raise ConfigError(
            "frozen weights in int8 need qwix: pip install 'vadapt[int8]', or take "
            "--config.parallel.frozen_dtype=bfloat16"
        )
    return importlib.import_module("qwix")
