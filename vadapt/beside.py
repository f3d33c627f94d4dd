"""Where folders of the repository lie: beside the package in a clone, inside it once installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """Return the folder of that name; in an install it is the package's own, see setup.py."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
