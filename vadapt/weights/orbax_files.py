"""Arrays of an orbax checkpoint by name, and what is damaged in one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vadapt.errors import WeightsError
from vadapt.weights.digests import find_change, write_digests

# Arrays are compressed, those of zeros by far; but beside them are others that are not, as an
# optimizer starts with two zeros for each weight.
_MOST_EXPANDED, _SLACK = 1000, 2**26

# orbax and tensorstore are imported inside the functions: together they cost 0.2 s.


def read_orbax(path: Path) -> dict[str, Any]:
    """Every array of a stored tree, by the names on its way joined with slashes.

    Args:
        path: the folder with the arrays themselves, such as `checkpoints/7/default`.

    Raises:
        WeightsError: it cannot be read.
    """
    import orbax.checkpoint as ocp

    damage = find_damage(path)
    if damage:
        raise WeightsError(f"{str(path)!r} cannot be read as an orbax checkpoint ({damage})")
    handler = ocp.PyTreeCheckpointHandler()
    try:
        folder: Any = path
        tree = handler.metadata(folder).tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=kinds))
    finally:
        handler.close()
    leaves, _ = jax.tree.flatten_with_path(tree)
    names = ("/".join(str(key.key) for key in place) for place, _ in leaves)
    # A state of flax has its arrays one deeper, as values.
    return {
        name.removesuffix("/value"): leaf for name, (_, leaf) in zip(names, leaves, strict=True)
    }


def find_damage(path: Any) -> str | None:
    """Reads a stored tree once, ahead of orbax, and says in one line what cannot be read.

    orbax finds the same damage, but then leaves coroutines behind that print pages of traceback.
    Where digests lie beside the files (see `sealing`), every changed bit is found. Elsewhere
    missing, cut and zeroed files are; a flipped bit inside an array's data may not be, since the
    format has checksums for its tables only.
    """
    import tensorstore as ts

    try:
        changed = find_change(path)
        if changed != "":
            return changed
        tables = [path / "_METADATA", path / "_sharding", *path.glob("array_metadatas/*")]
        for table in tables:
            if table.exists():
                json.loads(table.read_text())
        if not (path / "manifest.ocdbt").exists():
            return "manifest.ocdbt is missing"
        name = os.fspath(path)
        base = f"{name}/" if "://" in name else {"driver": "file", "path": f"{name}/"}
        spec = {"driver": "ocdbt", "base": base}
        left = None if "://" in name else _MOST_EXPANDED * _num_bytes(path) + _SLACK
        for key in ts.KvStore.open(spec).result().list().result():
            folder, _, file = key.decode().rpartition("/")
            if file == ".zarray":
                array = {"driver": "zarr", "kvstore": {**spec, "path": f"{folder}/"}}
                opened = ts.open({**array, "fill_missing_data_reads": False}).result()
                claimed = math.prod(opened.shape) * opened.dtype.numpy_dtype.itemsize
                if left is not None:
                    left -= claimed
                    if left < 0:
                        return f"{folder} claims {claimed:,} bytes, far more than the files have"
                opened.read().result()
    except Exception as error:  # tensorstore raises many types
        return one_line(error)
    return None


def _num_bytes(path: Any) -> int:
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def sealing(handler: Any) -> Any:
    """A class of orbax's that writes, as this handler does, and leaves digests of all its files.

    They are taken by the first process, in the background, when all processes have written theirs
    and before the checkpoint gets its name: there is none without them.
    """

    class Sealing(handler):
        def finalize(self, directory: Any) -> None:
            finish = getattr(super(), "finalize", None)
            if finish is not None:
                finish(directory)
            write_digests(directory)

    return Sealing


def one_line(error: Exception) -> str:
    """The kind of an error and the start of its message."""
    text = f"{type(error).__name__}: {error}".split(" [tensorstore_spec")[0]
    return text.splitlines()[0][:300]
