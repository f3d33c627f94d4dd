"""Weight files as dictionaries of arrays by name, whatever their format."""

from __future__ import annotations

import functools
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vadapt.data import npz, untrusted
from vadapt.data.untrusted import doubled, first_of, read_json
from vadapt.errors import DataError, WeightsError
from vadapt.weights.digests import of_array, take_digests, with_digests
from vadapt.weights.orbax_files import one_line, read_orbax

# Where training scripts put the weights inside the dictionary that they save.
WRAPPERS = ("model", "state_dict", "module")
# What stands for the weights of a folder or of a repository, the first that is there.
FILE_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",  # in several files
    "open_clip_model.safetensors",
    "adapter.safetensors",
    "pytorch_model.bin",
)
# What may lie beside them and says what no shape tells, see `beside`.
BESIDE = ("config.json", "preprocessor_config.json", "open_clip_config.json")
_MOST_MIB = 64  # of JSON
_DTYPES = (
    {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    | {
        f"{sign}{bits}": f"{kind}{bits}"
        for sign, kind in (("I", "int"), ("U", "uint"))
        for bits in (8, 16, 32, 64)
    }
    | {"BOOL": "bool"}
)


class Lazy:
    """An array that is read or computed when asked for (`numpy.asarray`), every time anew.

    Its shape and its dtype are known before, so that a whole file can be checked against a model
    and then read one array after another.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[], Any]):
        self.shape, self.dtype, self.make = shape, jnp.dtype(dtype), make

    @property
    def size(self) -> int:
        """The number of its numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.make(), dtype)


def is_finite(array: Any) -> bool:
    """Whether all numbers of an array are; those on other machines are not looked at."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return True
    numbers = np.asarray(array)
    return not jnp.issubdtype(numbers.dtype, jnp.inexact) or bool(np.isfinite(numbers).all())


def lazily(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(*arrays)`, put off until it is asked for if one of the arrays is `Lazy`."""
    if not any(isinstance(array, Lazy) for array in arrays):
        return function(*arrays)
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    result = jax.eval_shape(function, *shapes)
    return Lazy(result.shape, result.dtype, lambda: function(*map(np.asarray, arrays)))


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Every array of a weight file, or of a folder with one, by the name it has there.

    They are `Lazy`, but for those of orbax, which are read at once. `.pth`, `.pt` and `.bin` are
    read by torch with `weights_only`, so they can run no code; a dictionary wrapped in "model",
    "state_dict" or "module" is unwrapped. A folder is Hugging Face's or an orbax checkpoint.

    Raises:
        WeightsError: no such file, an unknown suffix, a damaged file, one with other things than
            arrays, or torch missing for a `.pth`.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {str(path)!r}")
    for suffix, read in READERS.items():
        if path.name.endswith(suffix):
            return read(path)
    raise WeightsError(f"{path.name!r} has none of the suffixes {', '.join(READERS)}")


def parse_json(path: str | Path, text: str | None = None) -> Any:
    """What JSON of unknown origin says.

    Args:
        path: of the file, for messages.
        text: its text; None to read it.

    Raises:
        WeightsError: it is none, is nested without end, says a name twice, or is larger than any
            such file is.
    """
    path = Path(path)
    try:
        return read_json(path, _MOST_MIB) if text is None else untrusted.parse_json(text, path)
    except DataError as error:
        raise _damaged(path, error) from error


def read_header(path: str | Path) -> dict[str, str]:
    """The text header of a `.safetensors` file.

    Raises:
        WeightsError: no such file, or it is damaged.
    """
    if not Path(path).is_file():
        raise WeightsError(f"no weight file at {str(path)!r}")
    return _contents(Path(path))[0]


def write_arrays(
    path: str | Path, arrays: Mapping[str, Any], header: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors` file; the header is text to text.

    The file appears whole or not at all (written beside its place, then renamed). Its header also
    gets digests of the arrays and of itself, by which readers find what changed on disk.
    """
    from safetensors.numpy import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Not `ascontiguousarray`, which makes a vector of a single number.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # Not `save_file`, which lets nobody but the owner read the file.
    partial.write_bytes(save(contiguous, metadata=with_digests(header or {}, contiguous)))
    partial.replace(path)


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{str(path)!r} cannot be read as {path.suffix} ({one_line(error)}); it may be cut or "
        "something else: fetch it again and compare its size"
    )


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _contents(path: Path) -> tuple[dict[str, str], dict[str, Any], dict[str, int]]:
    """The header of a file, dtype and shape of each array by name, and the arrays' digests."""
    with _opened(path) as file:
        header = dict(file.metadata() or {})
        heads = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (head.get_dtype(), tuple(head.get_shape())) for name, head in heads.items()}
    unknown = {kind for kind, _ in found.values()} - set(_DTYPES)
    if unknown:
        raise WeightsError(f"{str(path)!r} holds numbers of the types {sorted(unknown)}")
    kinds = {name: (jnp.dtype(_DTYPES[kind]), shape) for name, (kind, shape) in found.items()}
    try:
        return header, kinds, take_digests(header, kinds)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    _, kinds, digests = _contents(path)
    return {
        name: Lazy(shape, kind, functools.partial(_tensor, path, name, digests.get(name)))
        for name, (kind, shape) in kinds.items()
    }


def _tensor(path: Path, name: str, digest: int | None) -> np.ndarray:
    # Opened anew for each: a file that stays mapped counts as memory, page by page.
    with _opened(path) as file:
        array = file.get_tensor(name)
    if digest is not None and of_array(array) != digest:
        raise _damaged(path, ValueError(f"{name} is not what was written"))
    return array


def _read_index(path: Path) -> dict[str, Any]:
    """Read the arrays of a model in several files, which its index names."""
    arrays = [item for file in shards(path) for item in read_arrays(path.parent / file).items()]
    if twice := doubled(name for name, _ in arrays):
        raise WeightsError(f"{str(path)!r} names files of which several hold {first_of(twice)}")
    return dict(arrays)


def shards(path: Path) -> list[str]:
    """The files that an index names, all of them beside it.

    Raises:
        WeightsError: it is damaged, or names other places, or itself.
    """
    try:
        files = sorted(set(parse_json(path)["weight_map"].values()))
        strange = [file for file in files if not _is_shard(file)]
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if strange:
        raise WeightsError(f"{str(path)!r} names what is no file beside it: {strange[0]!r:.80}")
    return files


def _is_shard(name: Any) -> bool:
    """Return whether it is the plain name of a file with weights, and of no further index."""
    if not isinstance(name, str):
        return False
    plain = name == Path(name).name and "\0" not in name and not name.endswith(".json")
    return plain and Path(name).suffix in READERS


def _read_numpy(path: Path) -> dict[str, Any]:
    try:
        heads = npz.heads(path)
    except ValueError as error:
        raise _damaged(path, error) from error

    def read(name: str) -> np.ndarray:
        try:
            return npz.read(path, name)
        except ValueError as error:
            raise _damaged(path, error) from error

    return {
        name: Lazy(shape, dtype, functools.partial(read, name))
        for name, (shape, dtype) in heads.items()
    }


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"reading {path.name!r} needs torch: pip install 'vadapt[torch]', "
            "or convert the file to .safetensors where torch is"
        ) from error
    try:
        _check_stored(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{str(path)!r} is damaged, or holds more than tensors: code that reading it would "
            "run, so it is not read. If you trust who made it, load it in torch once, and "
            "save its state dict as .safetensors"
        ) from error
    except Exception as error:  # what its unpickler meets in other files is of many types
        raise _damaged(path, error) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = content.items() if isinstance(content, dict) else ()
    tensors = _flat(content, torch.Tensor)
    if not tensors:
        held = f"top-level keys: {list(content)[:8]}" if named else type(content).__name__
        raise WeightsError(f"{path.name!r} holds no tensors ({held})")
    strange = [name for name, value in tensors.items() if not _is_plain(value)]
    if strange:
        value = tensors[strange[0]]
        raise WeightsError(
            f"{str(path)!r} holds {first_of(strange)} as {value.dtype}, {value.layout}, on "
            f"{value.device}; save dense tensors of numbers that NumPy has, or bfloat16"
        )
    return {name: _of_torch(value) for name, value in tensors.items()}


def _check_stored(path: Path) -> None:
    """ValueError where a zip of torch's claims more bytes than the file has; it compresses none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            claimed = sum(member.file_size for member in file.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"it has {path.stat().st_size:,} bytes and claims {claimed:,}")


def _is_plain(tensor: Any) -> bool:
    import torch

    kind = "float32" if tensor.dtype is torch.bfloat16 else str(tensor.dtype).removeprefix("torch.")
    known = kind in _DTYPES.values() or kind.startswith("complex")
    return known and tensor.layout is torch.strided and tensor.device.type == "cpu"


def _of_torch(tensor: Any) -> Lazy:
    """A tensor, whose sizes may be any: torch repeats what is stored once."""
    import torch

    tensor = tensor.detach().resolve_conj()
    # NumPy has no bfloat16 of torch's; float32 holds every value of it.
    brain = tensor.dtype is torch.bfloat16
    dtype = "float32" if brain else str(tensor.dtype).removeprefix("torch.")
    return Lazy(tuple(tensor.shape), dtype, lambda: (tensor.float() if brain else tensor).numpy())


def _flat(content: Any, kind: type, depth: int = 4) -> dict[str, Any]:
    """Tensors by name, those of a `teacher` and a `student` with these words before."""
    found: dict[str, Any] = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(value, kind):
            found[name] = value
        elif name in ("teacher", "student", "backbone") and depth:
            inner = _flat(value, kind, depth - 1)
            found |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
    return found


def _read_folder(path: Path) -> dict[str, Any]:
    for name in FILE_NAMES:
        if (path / name).is_file():
            return read_arrays(path / name)
    # orbax keeps its arrays in the folder itself, or in an item of the newest of numbered steps.
    steps = sorted((p for p in path.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for folder in (path, *reversed(steps)):
        items = [*folder.glob("_METADATA"), *sorted(folder.glob("*/_METADATA"))]
        if items:
            return read_orbax(items[0].parent)
    raise WeightsError(
        f"the folder {str(path)!r} holds neither {', '.join(FILE_NAMES)} nor an orbax checkpoint"
    )


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _read_safetensors,
    ".safetensors.index.json": _read_index,
    ".npz": _read_numpy,
    ".pth": _read_torch,
    ".pth.tar": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
}
