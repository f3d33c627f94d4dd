"""Methods: one file per published way to adapt a frozen backbone, each with one `apply`."""

from __future__ import annotations

import importlib
from typing import Any

from vadapt.errors import ConfigError, nearest

METHODS = ("patchwise_scale",)


def apply(model: Any, method: str, **options: Any) -> Any:
    """Grafts a method into a model by name; options are those of the method's own `apply`.

    Raises:
        ConfigError: no such method, or the model lacks what the method grafts onto.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    return importlib.import_module(f"vadapt.adapters.{method}").apply(model, **options)
