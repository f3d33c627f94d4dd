"""Several processes as one run: who they are, and how they find each other."""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vadapt.errors import ConfigError
from vadapt.runtime.chips import say_there_is_no_tpu
from vadapt.runtime.roll_call import roll_call

ADDRESS, COUNT, NUMBER = VARIABLES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_DEVICES = Path("/dev")
_GCE = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


def start(timeout: int = 300) -> None:
    """Joins the processes of a run if there are several; call it before jax looks for devices.

    There are several if the three variables JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say so, in a Slurm step of several tasks, and on a TPU
    slice of several hosts. On one host without those variables nothing happens. Processes that
    share a host's GPUs also need JAX_LOCAL_DEVICE_IDS each. On CPU the processes talk through
    gloo, jax's default there.

    Args:
        timeout: how many seconds to wait for the others.

    Raises:
        ConfigError: the variables are incomplete or not numbers, jax cannot start, or, where the
            three variables are set, somebody is missing; names them. Elsewhere jax itself waits for
            the others; when they do not come, the process says so and exits.
    """
    if not _tpu_is_here():
        say_there_is_no_tpu()
    named = _named(os.environ)
    if named is not None:
        address, count, number = named
        if count == 1:
            return
        roll_call(address, count, number, timeout)
        who = f"process {number} of {count} at {address}"
        options = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": number,
            "cluster_detection_method": "deactivate",  # it would ask the network who we are
        }
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in os.environ:
        nodes = os.environ["SLURM_STEP_NODELIST"]
        who, options = f"Slurm task {os.environ.get('SLURM_PROCID')} on one of {nodes}", {}
    elif len(hosts := tpu_hosts(os.environ)) > 1:
        who, options = f"this one of {len(hosts)} TPU hosts ({', '.join(hosts)})", {}
    else:
        return
    # jax aborts the process with a page of C++ when it waited in vain; a timer speaks before.
    watch = threading.Timer(timeout, _give_up, [who, timeout])
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=timeout + 30)
    except (RuntimeError, ValueError) as error:  # XLA's errors are RuntimeErrors
        raise ConfigError(f"{who} cannot join the run: {error}") from error
    finally:
        watch.cancel()


def leave_at_once() -> None:
    """Ends this process with code 1 if it is one of several; call it when it has failed.

    An ordinary exit would wait minutes for the others, which wait for this one.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _give_up(who: str, timeout: int) -> None:
    print(
        f"\nConfigError: {who} waited {timeout} s for the others in vain. Start all of them, with "
        "an address of process 0 that each can reach, and a port that nothing else uses.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # the main thread is inside jax


def tpu_hosts(environment: Mapping[str, str]) -> list[str]:
    """The hosts that drive the TPU chips of this run; none where there is no TPU.

    Those of other slices are only counted: theirs is the name of the slice.
    """
    platforms = environment.get("JAX_PLATFORMS", "")
    if not _tpu_is_here() or (platforms and "tpu" not in platforms.split(",")):
        return []
    # GKE tells the hosts in variables, a plain TPU VM through the metadata server.
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environment:
        hosts = _ask_gce("worker-network-endpoints")
    parts = [host.split(":") for host in (hosts or "").split(",")]
    here = [part[2] if len(part) == 3 else part[0] for part in parts]  # name:number:address
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    ours = int(environment.get("MEGASCALE_SLICE_ID") or 0)
    others = [number for number in range(slices) if number != ours]
    return here + [f"one of slice {number}" for number in others for _ in here]


def _tpu_is_here() -> bool:
    return any(_DEVICES.glob("accel[0-9]*")) or any(_DEVICES.glob("vfio/[0-9]*"))


def _named(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Address, number of processes and our own number, from jax's variables."""
    missing = [name for name in VARIABLES if not environment.get(name)]
    if COUNT in missing and NUMBER in missing:
        return None  # the address alone only overrides what a cluster says
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} missing; set all of {', '.join(VARIABLES)}, or none"
        )
    address, *texts = (environment[name] for name in VARIABLES)
    if not all(text.isdecimal() for text in texts) or not int(texts[1]) < int(texts[0]):
        raise ConfigError(
            f"{COUNT}={texts[0]!r} and {NUMBER}={texts[1]!r}; expected a number of processes, and "
            "this one's own, from 0 to one less"
        )
    if not address.rpartition(":")[2].isdecimal():
        raise ConfigError(f"{ADDRESS}={address!r}; expected host:port of process 0")
    return address, int(texts[0]), int(texts[1])


def _ask_gce(attribute: str) -> str | None:
    request = urllib.request.Request(_GCE + attribute, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:  # not on Google's cloud
        return None


def from_first(function: Callable[[], Any]) -> Any:
    """Return in every process what a function returns in the first, as JSON has it.

    It is called there alone: file systems show new files to others with a delay.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    content = json.dumps(function()).encode() if jax.process_index() == 0 else b""
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(content))))
    padded = np.zeros(length, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes())
