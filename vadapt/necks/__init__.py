"""Necks: what turns the maps of a backbone into the maps that a head wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from vadapt.errors import ConfigError, nearest
from vadapt.necks.learned import Deconvolutions, MultiLevelNeck
from vadapt.necks.pyramid import pyramid
from vadapt.options import check

MADE_BY: dict[str, Callable[..., Any]] = {
    "none": lambda: None,
    "pyramid": lambda: None,
    "deconvolutions": Deconvolutions,
    "multi_level": MultiLevelNeck,
}
NECKS = tuple(MADE_BY)


def make_neck(
    name: str,
    widths: Sequence[int],
    *,
    strides: Sequence[int] = (),
    rngs: nnx.Rngs,
    **options: Any,
) -> tuple[Callable[..., Any] | None, tuple[int, ...]]:
    """A neck by name for maps of these widths, and the widths of the maps that it gives.

    Args:
        name: "none", "pyramid" (four maps of one stride at 4, 2, 1 and half the size), or one that
            trains with the head: "deconvolutions", "multi_level" (see `necks.learned`).
        strides: of the maps, where they are known.
        options: those of the neck.

    Raises:
        ConfigError: no such neck, or maps that it does not take.
    """
    if name not in NECKS:
        raise ConfigError(f"unknown config.neck.name {name!r}; {nearest(name, NECKS)}")
    check("neck", name, MADE_BY[name], options, given=("width", "widths", "maps"))
    if name == "none":
        return None, tuple(widths)
    if len(widths) != 4:
        raise ConfigError(
            f"config.neck.name is {name!r}, which takes four maps, and config.task.layers names "
            f"{len(widths)}"
        )
    if len(set(strides)) > 1:
        raise ConfigError(
            f"config.neck.name is {name!r}, which makes maps of four strides out of maps of one; "
            f"these have {', '.join(map(str, strides))} already: --config.neck.name=none"
        )
    if name == "pyramid":
        return pyramid, tuple(widths)
    if name == "multi_level":
        outputs = options.pop("outputs", widths[0])
        return MultiLevelNeck(widths, outputs, **options, rngs=rngs), (outputs,) * 4
    return Deconvolutions(widths[0], **options, rngs=rngs), tuple(widths)
