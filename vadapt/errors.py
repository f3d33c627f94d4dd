"""Errors that vadapt raises on purpose: they name the thing, what was allowed, the next move."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VadaptError(Exception):
    """Base of all errors that vadapt raises on purpose."""


class ConfigError(VadaptError, ValueError):
    """A setting that cannot be used.

    >>> raise ConfigError(f"unknown task 'may'; {nearest('may', ['mae', 'rein'])}")
    Traceback (most recent call last):
    vadapt.errors.ConfigError: unknown task 'may'; nearest: 'mae'
    """


class WeightsError(VadaptError, ValueError):
    """Weights that do not fit the model; lists every mismatch at once.

    >>> raise WeightsError("norm/scale: the file has (768,), the model (384,)")
    Traceback (most recent call last):
    vadapt.errors.WeightsError: norm/scale: the file has (768,), the model (384,)
    """


class ShapeError(VadaptError, ValueError):
    """An array of a size that the model cannot take.

    >>> raise ShapeError("image is 100x64, not a multiple of the patch size 16; resize or pad it")
    Traceback (most recent call last):
    vadapt.errors.ShapeError: image is 100x64, not a multiple of the patch size 16; resize or pad it
    """


class DataError(VadaptError, RuntimeError):
    """Data that is missing or cannot be read.

    >>> raise DataError("no images under 'photos'; expected .png, .jpg, .bmp or .tiff files")
    Traceback (most recent call last):
    vadapt.errors.DataError: no images under 'photos'; expected .png, .jpg, .bmp or .tiff files
    """


class UnreadableError(DataError, ValueError):
    """A file of many that is damaged, or none that can be used: another can take its place.

    >>> raise UnreadableError("the file is empty")
    Traceback (most recent call last):
    vadapt.errors.UnreadableError: the file is empty
    """


class TrainingError(VadaptError, RuntimeError):
    """A run that must not go on.

    >>> raise TrainingError("loss is nan at step 31; the last good checkpoint is step 30")
    Traceback (most recent call last):
    vadapt.errors.TrainingError: loss is nan at step 31; the last good checkpoint is step 30
    """


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> str:
    """The end of an error message: the allowed names most like `name`, or all if none is."""
    names = [str(item) for item in allowed]
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.4)
    if close:
        return "nearest: " + ", ".join(map(repr, close))
    return "allowed: " + (", ".join(map(repr, sorted(names))) or "none")
