"""What a `source` of weights stands for: its arrays, and what it says of them besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vadapt.errors import WeightsError
from vadapt.weights import grids
from vadapt.weights.beside import Beside, read_beside
from vadapt.weights.files import READERS, parse_json, read_arrays, read_header
from vadapt.weights.headers import made_by
from vadapt.weights.hub import local_path

ASSETS = Path(__file__).parent.parent / "assets"


class Arrays(dict[str, Any]):
    """Arrays by name.

    Fields: `title`, for messages; `grids`, of position tables, by vadapt's path, where the source
    says them; `own`, whether it is a file of vadapt's; `is_file`, whether it is any; `beside`, what
    lies beside the weights.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        title: str = "the given dictionary",
        *,
        grids: Mapping[str, grids.Grid] | None = None,
        own: bool = False,
        is_file: bool = False,
        beside: Beside | None = None,
    ):
        super().__init__(arrays)
        self.title, self.grids, self.own, self.is_file = title, dict(grids or {}), own, is_file
        self.beside = Beside() if beside is None else beside

    def only(self, names: Iterable[str]) -> Arrays:
        """The arrays of these names."""
        return self._with({name: self[name] for name in names}, self.grids)

    def with_grids(self, grids: Mapping[str, grids.Grid]) -> Arrays:
        """The same, of whose position tables more is known."""
        return self._with(self, {**self.grids, **grids}) if grids else self

    def bare(self) -> Arrays:
        """The same with nothing beside them."""
        return Arrays(self, self.title, grids=self.grids, own=self.own, is_file=self.is_file)

    def _with(self, arrays: Mapping[str, Any], grids: Mapping[str, grids.Grid]) -> Arrays:
        own, is_file, beside = self.own, self.is_file, self.beside
        return Arrays(arrays, self.title, grids=grids, own=own, is_file=is_file, beside=beside)


def arrays_of(source: str | Path | Mapping[str, Any]) -> Arrays:
    """The arrays that a `source` of `load_weights` stands for."""
    if isinstance(source, Arrays):
        return source
    if isinstance(source, Mapping):
        return Arrays(source)
    asset = ASSETS / f"{source}.safetensors"
    if asset.is_file():
        return _read(asset, f"asset {str(source)!r}")
    path = local_path(source)
    if not path.suffix and not path.exists():
        known = sorted(path.stem for path in ASSETS.glob("*.safetensors"))
        raise WeightsError(
            f"{str(source)!r} is neither a file ({', '.join(READERS)}), nor a folder, nor a "
            f"shipped asset {known}; from the Hugging Face hub: 'hf:organisation/name'"
        )
    return _read(path, repr(str(source)))


def beside_of(source: str | Path | Mapping[str, Any]) -> Beside:
    """What lies beside the weights that a source stands for; their arrays are not looked at."""
    if isinstance(source, Mapping):
        return source.beside if isinstance(source, Arrays) else Beside()
    if not str(source) or (ASSETS / f"{source}.safetensors").is_file():
        return Beside()
    path = local_path(source)
    return _beside(path, _header(path)) if path.exists() else Beside()


def _read(path: Path, title: str) -> Arrays:
    arrays, header = read_arrays(path), _header(path)
    beside = _beside(path, header)
    file = path / "model.safetensors" if path.is_dir() else path
    said = header.get(grids.HEADER) if "vadapt" in header else None
    known = grids.parsed(parse_json(file, said), title) if said else {}
    if beside.grid:
        known = {grids.TABLE: beside.grid}
    own = "vadapt" in header
    return Arrays(arrays, title, grids=known, own=own, is_file=True, beside=beside)


def _header(path: Path) -> dict[str, str]:
    file = path / "model.safetensors" if path.is_dir() else path
    return read_header(file) if file.is_file() and file.suffix == ".safetensors" else {}


def _beside(path: Path, header: Mapping[str, str]) -> Beside:
    return read_beside(path)._replace(made=made_by(path, header))
