"""Necks: what turns the maps of a backbone into the maps that a head wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from vadapt.errors import ConfigError
from vadapt.options import check
from vadapt.registry import Registry

# config.neck.name -> a function of widths, rngs and options to the neck and the widths it gives.
NECKS = Registry(
    "config.neck.name",
    {
        "none": "vadapt.necks.pyramid:no_neck",
        "pyramid": "vadapt.necks.pyramid:pyramid_neck",
        "deconvolutions": "vadapt.necks.learned:deconvolutions",
        "multi_level": "vadapt.necks.learned:multi_level",
        "fpn": "vadapt.necks.fpn:fpn",
        "cfpt": "vadapt.necks.cfpt:cfpt",
        "simple_feature_pyramid": "vadapt.necks.simple_feature_pyramid:simple_feature_pyramid",
    },
)
# What makes maps of four strides out of four of one.
PYRAMIDS = ("pyramid", "deconvolutions", "multi_level")
# What takes maps each of which has twice the stride of the one before.
STAGED = ("fpn", "cfpt")


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
            trains with the head: "deconvolutions", "multi_level" (see `necks.learned`),
            "simple_feature_pyramid" (of the last map), and for maps of several strides "fpn" and
            "cfpt", which with `pyramid` takes maps of one, too.
        strides: of the maps, where they are known.
        options: those of the neck.

    Raises:
        ConfigError: no such neck, or maps that it does not take.
    """
    build = NECKS[name]
    check("neck", name, build, options, given=("widths", "width", "inputs"))
    if name in PYRAMIDS and len(widths) != 4:
        raise ConfigError(
            f"config.neck.name is {name!r}, which takes four maps, and config.task.layers names "
            f"{len(widths)}"
        )
    one = name in (*PYRAMIDS, "simple_feature_pyramid") or bool(options.get("pyramid"))
    if one and len(set(strides)) > 1:
        raise ConfigError(
            f"config.neck.name is {name!r}, which makes maps of several strides out of maps of "
            f"one; these have {', '.join(map(str, strides))} already: --config.neck.name=none"
        )
    if name in STAGED and not one and len(strides) > len(set(strides)):
        raise ConfigError(
            f"config.neck.name is {name!r}, which takes maps of several strides; these have "
            f"{', '.join(map(str, strides))}. Of a plain transformer's maps, "
            '"simple_feature_pyramid" makes such, and "cfpt" with --config.neck.pyramid=True'
        )
    return build(widths, rngs=rngs, **options)
