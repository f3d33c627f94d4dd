"""Files of NumPy's `.npz` that anyone may have written: what they claim, before it is read."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIX = ".npy"
_KINDS = "biufcSU"  # of numbers and texts; never of Python's objects
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Head = tuple[tuple[int, ...], np.dtype[Any]]


def heads(path: Path, most_bytes: int | None = None) -> dict[str, Head]:
    """Shape and dtype of each array in a file, by name; no array is read.

    Args:
        most_bytes: of all arrays together.

    Raises:
        ValueError: the file is damaged, holds other things than arrays of numbers and texts, two of
            one name, or more than `most_bytes`; or an array claims more than there is of it.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            held = sum(member.file_size for member in members)
            if most_bytes is not None and held > most_bytes:
                raise ValueError(f"its arrays have more than {most_bytes:,} bytes")
            found = {_name(member): _head(file, member) for member in members}
    except ValueError:
        raise
    except Exception as error:  # zipfile and NumPy raise many types of damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if len(found) < len(members):
        raise ValueError("two of its arrays have one name")
    return found


def read(path: Path, name: str) -> np.ndarray:
    """An array of a file, by its name.

    Raises:
        ValueError: see `heads`.
    """
    try:
        with zipfile.ZipFile(path) as file:
            member = file.getinfo(name + _SUFFIX)
            _head(file, member)
            with file.open(member) as array:
                found = np.lib.format.read_array(array, allow_pickle=False)
                array.read()  # to the end, where the checksum is
                return found
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _name(member: zipfile.ZipInfo) -> str:
    if not member.filename.endswith(_SUFFIX):
        raise ValueError(f"{member.filename[:80]!r} is no array")
    return member.filename.removesuffix(_SUFFIX)


def _head(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Head:
    with file.open(member) as array:
        shape, dtype = _shape(array)
        if math.prod(shape) * dtype.itemsize > member.file_size - array.tell():
            raise ValueError(f"{member.filename} claims more than it holds: {shape} of {dtype}")
    return shape, dtype


def _shape(array: Any) -> Head:
    """Shape and dtype of an array in NumPy's format.

    Raises:
        ValueError: it is none, or one of Python's objects, which are pickled (`allow_pickle`).
    """
    version = np.lib.format.read_magic(array)
    if version not in _HEADERS:
        raise ValueError("an array of another version of NumPy's format")
    shape, _, dtype = _HEADERS[version](array)
    if dtype.kind not in _KINDS or not all(side >= 0 for side in shape):
        raise ValueError(f"an array {shape} of {dtype}, not of numbers; allow_pickle is never set")
    return shape, dtype
