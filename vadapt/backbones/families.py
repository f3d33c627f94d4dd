"""All named backbones: each module of this package brings its own, as `NAMED`."""

from __future__ import annotations

import importlib
import pkgutil

import vadapt.backbones
from vadapt.registry import Registry

BACKBONES = Registry("backbone", {})

_modules = [
    importlib.import_module(f"vadapt.backbones.{module.name}")
    for module in pkgutil.iter_modules(vadapt.backbones.__path__)
    if module.name != "families"
]
for _module in sorted(_modules, key=lambda module: getattr(module, "RANK", 1)):
    for _name, _backbone in getattr(_module, "NAMED", {}).items():
        BACKBONES.register(_name)(_backbone)
