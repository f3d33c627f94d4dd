"""Records on disk by their index: computed once, read in place of a source in every epoch."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from vadapt.data.identity import Identity, identify
from vadapt.data.progress import progress_bar
from vadapt.data.sources import Record
from vadapt.data.untrusted import read_json
from vadapt.errors import ConfigError, DataError
from vadapt.partition import human_bytes
from vadapt.runtime.storage import writing

INFO = "features.json"
_LOCK = "lock"
_MOST_MIB = 64  # of `features.json`
_SAVE_EVERY = 10.0  # seconds of work that a killed process loses at most

Shapes = Mapping[str, jax.ShapeDtypeStruct]  # of one record
Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]


class FeatureCache:
    """A source of the records that `open_or_fill` stored: its fields, and "index" (int32 []).

    The folder holds `NAME.npy` for every field, of all records in the source's order (bfloat16 as
    its bits in uint16), and `features.json`: what they were made from, and how many are there.

    Raises:
        DataError: a file is missing, or not as `features.json` says.
    """

    def __init__(self, folder: Path):
        info = _info(folder)
        self.folder, self.length = folder, info.get("length", 0)
        self.source: Any = None  # whose records were stored, where that is known
        self._arrays, self._dtypes = {}, {}
        for name, field in info.get("fields", {}).items():
            try:
                shape = jax.ShapeDtypeStruct(field["shape"], jnp.dtype(field["dtype"]))
                self._dtypes[name] = shape.dtype
                self._arrays[name] = _mapped(folder / f"{name}.npy", shape, self.length)
            except (OSError, ValueError, TypeError) as error:
                raise _damaged(folder, error) from error

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of records."""
        return (*self._arrays, "index")

    def __len__(self) -> int:
        return self.length

    def identity(self) -> Identity:
        """That of the source: a run may go on with features that another one stored, or without."""
        return identify(range(self.length) if self.source is None else self.source)

    def __getitem__(self, index: int) -> Record:
        # Copied here, so that the thread that asks is the one that waits for the disk.
        record = {
            name: np.array(array[index]).view(self._dtypes[name])
            for name, array in self._arrays.items()
        }
        return record | {"index": np.int32(index)}


def open_or_fill(
    folder: Path, made_from: Mapping[str, Any], shapes: Shapes, length: int, batches: Batches
) -> FeatureCache:
    """The cache in a folder, after storing what it lacks.

    A process that is killed loses its last seconds of work: the next one goes on. One that meets
    another at work in the same folder waits for it.

    Args:
        made_from: all that the numbers depend on, as JSON has it.
        shapes: of the fields of one record.
        length: how many records there are.
        batches: (first) to batches of the records from number `first` to the last one.

    Raises:
        ConfigError: the folder holds something else; it is left as it is.
        DataError: the disk is too small, or a file is damaged.
        TrainingError: a file cannot be written.
    """
    made_from = json.loads(json.dumps(made_from))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check(folder, made_from)
    if not is_complete(folder):
        with _alone(folder):
            _check(folder, made_from)
            if not is_complete(folder):  # another process may have done it
                _fill(folder, made_from, shapes, length, batches)
    return FeatureCache(folder)


def is_complete(folder: Path) -> bool:
    """Whether there is nothing left to store."""
    info = _info(folder)
    return bool(info) and info["done"] == info["length"]


def num_bytes(shapes: Shapes, length: int) -> int:
    """Return the bytes that so many records take on disk, but for a few kilobytes."""
    return length * sum(_row_bytes(shape) for shape in shapes.values())


def _info(folder: Path) -> dict[str, Any]:
    """The content of `features.json`; nothing if it is not there.

    Raises:
        DataError: it says what no run has written.
    """
    path = folder / INFO
    if not path.exists():
        return {}
    try:
        info = read_json(path, _MOST_MIB)
        counts = [info["length"], info["done"]]
        shapes = [field["shape"] for field in info["fields"].values()]
        names = [*info["fields"], *(field["dtype"] for field in info["fields"].values())]
        if not isinstance(info["made_from"], dict) or not all(map(str.isidentifier, names)):
            raise TypeError("names of fields and of dtypes")
        if not all(type(n) is int and n >= 0 for n in sum(shapes, counts)):
            raise TypeError("whole numbers of records and of sizes")
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return info


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"the features in {str(folder)!r} are damaged ({type(error).__name__}: {error}); delete "
        "the folder, and the next run computes them again"
    )


def _mapped(path: Path, shape: jax.ShapeDtypeStruct, length: int) -> np.ndarray:
    """The array of a file; ValueError where it is not as `_opened` writes it."""
    array = np.lib.format.open_memmap(path, mode="r")
    dtype = np.dtype(np.uint16) if shape.dtype == jnp.bfloat16 else shape.dtype
    if array.shape != (length, *shape.shape) or array.dtype != dtype:
        raise ValueError(f"{path.name} holds {array.shape} of {array.dtype}")
    return array


def _check(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Refuses a folder of other features, or of anything else."""
    info = _info(folder)
    if not info:
        others = sorted({path.name for path in folder.iterdir()} - {_LOCK, INFO + ".partial"})
        if others:
            raise ConfigError(
                f"config.data.cache: {str(folder)!r} holds other files ({', '.join(others[:3])}); "
                "give a folder of its own"
            )
        return
    there = info["made_from"]
    differences = [
        f"{key}: {there.get(key, 'absent')!r} there, {made_from.get(key, 'absent')!r} now"
        for key in sorted({*there, *made_from})
        if there.get(key, "absent") != made_from.get(key, "absent")
    ]
    if differences:
        raise ConfigError(
            f"config.data.cache: {str(folder)!r} holds features that are not this run's:\n  "
            + "\n  ".join(differences)
            + "\nGive another folder, or delete that one, and they are computed."
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process of this machine is at work in the folder."""
    import fcntl  # which Windows lacks

    with contextlib.ExitStack() as opened:
        with writing(folder):
            lock = opened.enter_context((folder / _LOCK).open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another run that stores features in {folder}", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(
    folder: Path, made_from: Mapping[str, Any], shapes: Shapes, length: int, batches: Batches
) -> None:
    done = _usable(folder, shapes, length)
    left = num_bytes(shapes, length - done)
    free = shutil.disk_usage(folder).free
    if left > free:
        raise DataError(
            f"config.data.cache: the features of {length:,} images take {human_bytes(left)} more "
            f"in {str(folder)!r}, where {human_bytes(free)} are free; make room, give a folder on "
            "another disk, or leave config.data.cache out"
        )
    print(
        f"storing features of {length:,} images, {human_bytes(num_bytes(shapes, length))}, in "
        f"{folder}" + f"; {done:,} are there" * bool(done) + ". Ctrl-C twice stops, and the same "
        "command goes on.",
        flush=True,
    )
    info = {
        "made_from": made_from,
        "length": length,
        "fields": {
            name: {"shape": list(shape.shape), "dtype": jnp.dtype(shape.dtype).name}
            for name, shape in shapes.items()
        },
    }
    _write_info(folder, info | {"done": done})
    with contextlib.ExitStack() as opened:
        with writing(folder):
            files = {
                name: opened.enter_context(_opened(folder / f"{name}.npy", shape, length, done))
                for name, shape in shapes.items()
            }
        progress = opened.enter_context(progress_bar())
        bar = progress.add_task("features", total=length, completed=done)
        saved = time.monotonic()
        for batch in batches(done):
            done += len(batch[next(iter(files))])
            save = done == length or time.monotonic() - saved > _SAVE_EVERY
            with writing(folder):
                for name, file in files.items():
                    file.write(np.ascontiguousarray(batch[name]).tobytes())
                    if save:
                        file.flush()
                        os.fsync(file.fileno())
            if save:
                _write_info(folder, info | {"done": done})
                saved = time.monotonic()
            progress.update(bar, completed=done)


def _usable(folder: Path, shapes: Shapes, length: int) -> int:
    """Return the number of records that a stopped process left in all files."""
    done = _info(folder).get("done", 0)
    for name, shape in shapes.items():
        path, end = folder / f"{name}.npy", len(_header(shape, length)) + done * _row_bytes(shape)
        if not path.exists() or path.stat().st_size < end:
            return 0
    return done


def _opened(path: Path, shape: jax.ShapeDtypeStruct, length: int, done: int) -> BinaryIO:
    """A .npy file to append to after so many records.

    Appended to, not mapped: a full disk is then an error, and not a signal that kills the process.
    """
    file = path.open("r+b" if done else "wb")
    file.write(_header(shape, length))
    file.seek(done * _row_bytes(shape), os.SEEK_CUR)
    file.truncate()
    return file


def _header(shape: jax.ShapeDtypeStruct, length: int) -> bytes:
    dtype = np.dtype(np.uint16) if shape.dtype == jnp.bfloat16 else np.dtype(shape.dtype)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (length, *shape.shape),
    }
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _row_bytes(shape: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape.shape) * jnp.dtype(shape.dtype).itemsize


def _write_info(folder: Path, info: Mapping[str, Any]) -> None:
    with writing(folder / INFO):
        partial = folder / (INFO + ".partial")
        partial.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / INFO)
