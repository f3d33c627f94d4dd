"""A catalogue of recipes and parts, a line for each: its name, what it is, and its source."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vadapt import configs
from vadapt.adapters import METHODS
from vadapt.backbones.families import BACKBONES
from vadapt.backbones.named import Backbone
from vadapt.command_line import print_error, program
from vadapt.data.pipeline import SOURCES
from vadapt.errors import ConfigError, nearest
from vadapt.heads import DECODERS, LABELS, SEGMENTATION
from vadapt.losses import PIXEL_LOSSES
from vadapt.necks import NECKS
from vadapt.tasks import TASKS
from vadapt.training.optimizers import OPTIMIZERS
from vadapt.training.schedules import SCHEDULES

KINDS: dict[str, Mapping[str, Any]] = {
    "recipes": {x: importlib.import_module(f"vadapt.configs.{x}") for x in configs.names()},
    "backbones": BACKBONES,
    "adapters": METHODS,
    "necks": NECKS,
    "heads of pixels": SEGMENTATION,
    "heads of labels": LABELS,
    "heads of masked pre-training": DECODERS,
    "losses of pixels": PIXEL_LOSSES,
    "sources": SOURCES,
    "tasks": TASKS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
}


def describe(part: Any) -> tuple[str, str]:
    """Return what a part is, in one line, and its source, from its docstrings."""
    source = made_by = ""
    if isinstance(part, Backbone):
        source = part.source
        made_by, part = _made_by(part)
    text = inspect.getdoc(part) or ""
    both = f"{text}\n{inspect.getdoc(inspect.getmodule(part)) or ''}"
    what = re.sub(r" *Source:.*", "", " ".join(text.partition("\n\n")[0].split()))
    if made_by:
        what = re.split(r" \(|[:.,;]", what)[0] + f": {made_by}"
    named = re.search(r"Source:\s+([^;.]*?arXiv:\d+\.\d+)", both)
    found = re.search(r"arXiv:\d+\.\d+", both)
    return what, source or (" ".join(named[1].split()) if named else found[0] if found else "")


def _made_by(backbone: Backbone) -> tuple[str, Any]:
    """The call that makes a named backbone, and the class of what it makes."""
    call = part = backbone.build
    given, options = (), dict(backbone.options)
    while not inspect.isclass(part):
        if isinstance(part, functools.partial):
            call, given, options = part.func, part.args, {**part.keywords, **options}
            part = part.func
        elif not (further := getattr(part, "options_go_to", ())):
            break
        else:  # a function that makes a named size of it
            part = further[0]
    shown = [*map(repr, given), *(f"{key}={_shown(value)}" for key, value in options.items())]
    return f"{call.__name__}({', '.join(shown)})", part


def _shown(value: Any) -> str:
    if callable(value):
        return value.__name__
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


def lines(kind: str) -> list[str]:
    """A line for each part of a kind."""
    found = {name: describe(part) for name, part in KINDS[kind].items()}
    width = max(map(len, found), default=0)
    return [
        f"  {name:<{width}}  {what}" + (f" [{source}]" if source and source not in what else "")
        for name, (what, source) in found.items()
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the kinds that are asked for, or all; 1 if there is no such kind."""
    if {"-h", "--help"} & {*arguments}:
        called = program("list", "vadapt.list")
        print(
            f"usage: {called} [KIND ...]\n\nList what there is, a line each. Kinds:",
            *KINDS,
            sep="\n  ",
        )
        return 0
    known = {name: kind for kind in KINDS for name in (kind.split()[0], kind)}
    if unknown := [asked for asked in arguments if asked not in known]:
        print_error(ConfigError(f"unknown kind {unknown[0]!r}; {nearest(unknown[0], known)}"))
        return 1
    for kind in KINDS:
        if not arguments or {kind, kind.split()[0]} & {*arguments}:
            print(f"{kind}:", *lines(kind), "", sep="\n")
    return 0
