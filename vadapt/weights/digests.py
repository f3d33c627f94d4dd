"""Digests of what lies on disk: a single flipped bit is noticed, in arrays, headers and folders.

They are CRC-32, which no single flipped bit and no burst of up to 32 escapes; zlib takes 4 GB/s.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

FILE = "digests.json"  # in a folder: the digest of each other file in it, by its path
# In the header of a .safetensors file. Two keys, so that a bit flipped in one leaves the other.
KIND, DIGESTS = "digests", "crc32"
_HEADER = ""  # among those of arrays: the digest of the rest of the header
_CHUNK = 1 << 24


def of_array(array: Any) -> int:
    """The digest of the bytes of an array, whatever its type."""
    contiguous = np.ascontiguousarray(array)
    return zlib.crc32(contiguous.reshape(-1).view(np.uint8).data)


def with_digests(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """A header that also holds the digest of each array, and its own."""
    kinds = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    found = {name: of_array(array) for name, array in arrays.items()}
    found[_HEADER] = _of_header(header, kinds)
    return {**header, KIND: DIGESTS, DIGESTS: json.dumps(found)}


def take_digests(
    header: dict[str, str], kinds: Mapping[str, tuple[Any, tuple[int, ...]]]
) -> dict[str, int]:
    """The digests of arrays by name, taken out of a header; empty where a file has none.

    Args:
        kinds: dtype and shape of each array in the file.

    Raises:
        ValueError: the header is damaged.
    """
    kind, text = header.pop(KIND, None), header.pop(DIGESTS, None)
    if kind is None and text is None:
        return {}
    if kind != DIGESTS or text is None:
        raise ValueError("its digests are damaged")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("its digests are damaged")
    if found.pop(_HEADER, None) != _of_header(header, kinds) or found.keys() != kinds.keys():
        raise ValueError("its header is not what was written")
    return found


def write_digests(folder: Any) -> None:
    """Writes the digest of every file in a folder, and deeper, beside them."""
    found = {str(path.relative_to(folder)): _of_file(path) for path in _files(folder)}
    (folder / FILE).write_text(json.dumps(found, separators=(",", ":")))


def find_change(folder: Any) -> str | None:
    """Says in a few words which file of a folder is not what was written.

    Returns:
        None if all are; an empty text where there are no digests to compare with.

    Raises:
        OSError: a file cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return ""
    try:
        written = dict(json.loads(path.read_text()))
    except (ValueError, TypeError, RecursionError):
        return f"{FILE} is damaged"
    for name, digest in written.items():
        if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
            return f"{FILE} names other places"
        file = folder / name
        if not file.exists():
            return f"{name} is missing"
        if _of_file(file) != digest:
            return f"{name} is not what was written"
    return None


def _files(folder: Any) -> Iterator[Any]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        elif path.name != FILE:
            yield path


def _of_file(path: Any) -> int:
    digest = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest = zlib.crc32(chunk, digest)
    return digest


def _of_header(header: Mapping[str, str], kinds: Mapping[str, tuple[Any, tuple[int, ...]]]) -> int:
    arrays = sorted(
        (name, np.dtype(kind).name, list(shape)) for name, (kind, shape) in kinds.items()
    )
    return zlib.crc32(json.dumps([sorted(header.items()), arrays]).encode())
