"""Settings of methods in their papers, or released codes, where the defaults here differ.

>>> import vadapt
>>> model = vadapt.create("vit_micro", image_size=64)
>>> model = vadapt.adapt(model, "pro_tuning", **paper("pro_tuning"))
>>> parts = vadapt.split(model, trainable("pro_tuning"))
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vadapt.adapters import METHODS


class Setting(NamedTuple):
    """Options of a method, and what trains, as `vadapt.split` and `config.trainable` take it."""

    options: Mapping[str, Any] = MappingProxyType({})
    trainable: str = "default"


PAPER: Mapping[str, Setting] = {
    # Released code of arXiv:2208.07463: all that has "norm" in its name, which of ConvNeXt is the
    # norms of blocks and the last one, of ResNet nothing. Adapters are in the pattern so that it
    # finds something there.
    "conv_adapter": Setting(
        trainable=r"default,(.*/)?(stages/\d+/\d+/norm|norms/\d+)/(scale|bias)|.*adapter.*"
    ),
    # arXiv:1902.00751 trains the layer norms, besides adapters and head.
    "houlsby": Setting(trainable="default,.*norm/(scale|bias)"),
    # arXiv:2207.14381 adds what a prompt block makes as it is; no code was released.
    "pro_tuning": Setting({"zero_init_scale": False}),
    # arXiv:2210.08823: behind every linear layer, convolution and norm, so also between stages.
    "ssf": Setting({"targets": (".*",)}),
}


def paper(name: str) -> dict[str, Any]:
    """Options of a method for `vadapt.adapt`; none where the defaults are the paper's.

    Raises:
        ConfigError: no such method.
    """
    return dict(_setting(name).options)


def trainable(name: str) -> str:
    """Name what a method's paper trains, for `vadapt.split` or `config.trainable`.

    Raises:
        ConfigError: no such method.
    """
    return _setting(name).trainable


def _setting(name: str) -> Setting:
    METHODS[name]  # raises for an unknown one, with the nearest
    return PAPER.get(name, Setting())
