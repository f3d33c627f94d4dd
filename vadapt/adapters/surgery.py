"""Surgery: the one way in which a method puts something in the place of a part of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from vadapt.errors import ConfigError, nearest
from vadapt.nn.sites import Site, sites
from vadapt.partition import Adapter, Head, Prompt

# Names under which people know roles, whatever a model calls the layer.
KNOWN_AS = {"fc1": "mlp_in", "fc2": "mlp_out", "proj": "attn_out"}


def replace(
    model: Any,
    targets: Sequence[str],
    make: Callable[[Site, tuple[int, ...] | None], Any],
    *,
    kinds: Sequence[str],
    method: str,
    whole: bool = False,
) -> Any:
    """Return a copy of a model in which something else stands at the chosen sites.

    The copy shares every array with the given model, which stays as it is. What is put there keeps
    the paths of what it takes over.

    Args:
        targets: which sites: names ("fc1"), roles ("mlp_in", "q"; see `Site`), or regular
            expressions for whole paths ("blocks/(10|11)/.*/fc1").
        make: of a site, and the numbers of the parts of its outputs that are meant; None where the
            whole is.
        kinds: of sites that come into question.
        method: its name, for errors.
        whole: whether sites outside of a trunk's blocks do, too; see `sites`.

    Raises:
        ConfigError: a target that is nowhere; lists the nearest.
    """
    model = nnx.clone(model)
    left, offered = set(targets), set()
    for site in sites(model, *kinds, whole=whole):
        if _is_added(site.module):
            continue
        offered |= {str(site.name), *site.roles}
        chosen, matched = _parts(site, targets)
        left -= matched
        if matched:
            site.put(make(site, chosen))
    if left:
        target = sorted(left)[0]
        known = offered | {name for name, role in KNOWN_AS.items() if role in offered}
        raise ConfigError(
            f"{method}: {sorted(left)} of the targets are nowhere in this {type(model).__name__}; "
            + (nearest(target, known) if known else f"it has no {' or '.join(kinds)} layers at all")
        )
    return model


def check_mlps(model: Any, method: str) -> None:
    """Refuse a model whose blocks have no `mlp` branch that a method could stand beside.

    Raises:
        ConfigError: says what has one.
    """
    if not any(site.name == "mlp" for site in sites(model, "branch")):
        raise ConfigError(
            f"{method} stands beside the `mlp` branch of every block; this {type(model).__name__} "
            "has none. Give it a ViT or another model built of vadapt.nn.blocks.Block."
        )


def _parts(site: Site, targets: Sequence[str]) -> tuple[tuple[int, ...] | None, set[str]]:
    """The parts of a site that targets name, and these targets."""
    chosen: set[int] = set()
    matched: set[str] = set()
    whole = False
    for target in targets:
        roles = {target, KNOWN_AS.get(target, target)}
        parts = {i for i, role in enumerate(site.roles) if role in roles}
        if target == site.name or _fits(target, site.path):
            whole = True
        elif not parts:
            continue
        chosen |= parts
        matched.add(target)
    whole = whole or (bool(chosen) and len(site.roles) == 1)
    return (None if whole else tuple(sorted(chosen))), matched


def _is_added(module: Any) -> bool:
    """Whether a layer is itself what a method or a task has added."""
    weights = (getattr(module, name, None) for name in ("kernel", "scale"))
    return any(isinstance(weight, Adapter | Prompt | Head) for weight in weights)


def _fits(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error:
        return False
