"""vadapt: adapt a frozen vision transformer to a new domain by training about 1% of its weights.

>>> import vadapt
>>> model = vadapt.adapt(vadapt.create("vit_micro", image_size=64), "patchwise_scale")
>>> graph, trainable, frozen, state = vadapt.split(model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vadapt.adapters import apply as adapt
    from vadapt.models import create
    from vadapt.partition import Adapter, Head, Prompt, merge, split, summary
    from vadapt.weights.adapter_file import load_adapter, save_adapter
    from vadapt.weights.load import load_weights

# Imported on first use, so that `import vadapt` costs nothing.
_PLACES = {
    "Adapter": "vadapt.partition",
    "Head": "vadapt.partition",
    "Prompt": "vadapt.partition",
    "adapt": "vadapt.adapters:apply",
    "create": "vadapt.models",
    "load_adapter": "vadapt.weights.adapter_file",
    "load_weights": "vadapt.weights.load",
    "merge": "vadapt.partition",
    "save_adapter": "vadapt.weights.adapter_file",
    "split": "vadapt.partition",
    "summary": "vadapt.partition",
}
__all__ = [
    "Adapter",
    "Head",
    "Prompt",
    "__version__",
    "adapt",
    "create",
    "load_adapter",
    "load_weights",
    "merge",
    "save_adapter",
    "split",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'vadapt' has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
