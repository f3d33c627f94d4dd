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
    from vadapt.adapters import adapt_from, fold
    from vadapt.adapters import apply as adapt
    from vadapt.models import create
    from vadapt.partition import Adapter, Head, Prompt, merge, split, summary
    from vadapt.trained import load_run, preprocess
    from vadapt.weights.adapter_file import load_adapter, save_adapter
    from vadapt.weights.export import save_hugging_face
    from vadapt.weights.hub import pull
    from vadapt.weights.load import load_weights
    from vadapt.weights.publish import push
    from vadapt.weights.stablehlo import export_features, load_exported

# Imported on first use, so that `import vadapt` costs nothing.
_PLACES = {
    "Adapter": "vadapt.partition",
    "Head": "vadapt.partition",
    "Prompt": "vadapt.partition",
    "adapt": "vadapt.adapters:apply",
    "adapt_from": "vadapt.adapters",
    "create": "vadapt.models",
    "export_features": "vadapt.weights.stablehlo",
    "fold": "vadapt.adapters",
    "load_adapter": "vadapt.weights.adapter_file",
    "load_exported": "vadapt.weights.stablehlo",
    "load_run": "vadapt.trained",
    "load_weights": "vadapt.weights.load",
    "merge": "vadapt.partition",
    "preprocess": "vadapt.trained",
    "pull": "vadapt.weights.hub",
    "push": "vadapt.weights.publish",
    "save_adapter": "vadapt.weights.adapter_file",
    "save_hugging_face": "vadapt.weights.export",
    "split": "vadapt.partition",
    "summary": "vadapt.partition",
}
__all__ = [
    "Adapter",
    "Head",
    "Prompt",
    "__version__",
    "adapt",
    "adapt_from",
    "create",
    "export_features",
    "fold",
    "load_adapter",
    "load_exported",
    "load_run",
    "load_weights",
    "merge",
    "preprocess",
    "pull",
    "push",
    "save_adapter",
    "save_hugging_face",
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
