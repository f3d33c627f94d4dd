"""Weight files as flat dictionaries of NumPy arrays, whatever their format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vadapt.errors import WeightsError

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")
# Where training scripts put the weights inside the dictionary that they save.
WRAPPERS = ("model", "state_dict", "module")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of a weight file by the name it has there.

    A `.pth` file is read by torch with `weights_only`, so it can hold no code; a dictionary
    wrapped in "model", "state_dict" or "module" is unwrapped.

    Raises:
        WeightsError: no such file, an unknown suffix, torch missing for a `.pth`, or no arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    raise WeightsError(f"{path.name!r} has none of the suffixes {', '.join(SUFFIXES)}")


def read_header(path: str | Path) -> dict[str, str]:
    """The text header of a `.safetensors` file."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return dict(file.metadata() or {})


def write_arrays(
    path: str | Path, arrays: Mapping[str, Any], header: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors` file; the header is text to text.

    The file appears whole or not at all (written beside its place, then renamed).
    """
    from safetensors.numpy import save

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # Not `save_file`, which lets nobody but the owner read the file.
    partial.write_bytes(save(contiguous, metadata=dict(header or {})))
    partial.replace(path)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"reading {path.name!r} needs torch: pip install 'vadapt[torch]', "
            "or convert the file to .safetensors where torch is"
        ) from error
    content = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path.name!r} holds no tensors (top-level keys: {list(content)[:8]})")
    return {
        # NumPy has no bfloat16 of torch's; float32 holds every value of it.
        name: (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        for name, value in tensors.items()
    }
