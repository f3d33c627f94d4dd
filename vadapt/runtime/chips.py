"""TPU chips that need not be here: their published figures, and devices to compile for.

Sources of the figures: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (system architecture); the
usable memory is what libtpu's compiler allows a program.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any, NamedTuple

from vadapt.errors import ConfigError, nearest


class Chip(NamedTuple):
    """Peak figures of one chip."""

    flops: float  # a second, bfloat16
    memory: int  # bytes of HBM that a program may use
    bandwidth: float  # bytes a second, of HBM
    network: float  # bytes a second sent over all its links: half of what is called bidirectional
    example: str  # a topology


GIB = 2**30
CHIPS = {
    "v4": Chip(275e12, int(30.75 * GIB), 1.2e12, 300e9, "v4:2x2x4"),
    "v5e": Chip(197e12, int(15.75 * GIB), 0.819e12, 200e9, "v5e:4x4"),
    "v5p": Chip(459e12, int(95.74 * GIB), 2.765e12, 600e9, "v5p:2x2x4"),
    "v6e": Chip(918e12, int(31.25 * GIB), 1.638e12, 400e9, "v6e:4x4"),
}
# libtpu asks for these where there is no TPU.
_ELSEWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is taken, so others may plan at the same time
}


def chip(topology: str) -> Chip:
    """The figures of the chips of a topology such as "v5e:4x4".

    Raises:
        ConfigError: no such chip.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise ConfigError(f"unknown chip {kind!r} in topology {topology!r}; {nearest(kind, CHIPS)}")
    return CHIPS[kind]


def say_there_is_no_tpu() -> None:
    """Tells libtpu that the chips are elsewhere; call it before jax looks for devices.

    Where it is installed only to plan with, it would complain on the terminal that it finds none.
    """
    for name, value in _ELSEWHERE.items():
        os.environ.setdefault(name, value)


def devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices of a TPU topology, to compile for; they hold no arrays and run nothing.

    Args:
        topology: chip and shape, such as "v5e:4x4", "v6e:16x16", "v5p:8x8x8" or "v4:2x2x4".
        slices: as many such slices, joined by the data-centre network.

    Raises:
        ConfigError: libtpu is not installed, or no such topology.
    """
    kind, _, shape = topology.partition(":")
    example = chip(topology).example
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ConfigError(f"topology {topology!r}: expected a chip and a shape, as in {example!r}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for TPUs needs libtpu, which is not installed: pip install 'vadapt[tpu]' "
            "(Linux; no TPU is needed)"
        )
    say_there_is_no_tpu()
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # two cores as one device, as on real machines
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except Exception as error:  # XLA's own, which say what libtpu allows
        raise ConfigError(
            f"topology {topology!r} cannot be had (such as {example!r} can): {error}"
        ) from error
    return list(found)
