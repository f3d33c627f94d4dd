"""Programs that XLA compiles in a third of the time; most run once, at sizes of a few numbers.

For a suite on CPUs, whose time goes to compiling. `python -m tests.parity` compiles as a user's
runs do, and checks the golden files on what that gives.
"""

import mmap
import os
import platform
from pathlib import Path

import jax
import jaxlib

FLAGS = {
    # These generate code through many more passes.
    "xla_cpu_use_fusion_emitters": "false",
    # It has no fused multiply-add. The older emitters fuse one and the same sum in one place of a
    # program and not in another, so that what is equal to the bit would not be.
    "xla_cpu_max_isa": "AVX",
}


def install():
    """Let this process and those it starts compile so; before the first program."""
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    given = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.lstrip("-").partition("=")[0] for flag in given}
    if named.isdisjoint(FLAGS) and _are_known(FLAGS):
        given += [f"--{name}={value}" for name, value in FLAGS.items()]
    os.environ["XLA_FLAGS"] = " ".join(given)


def flags():
    """What of `XLA_FLAGS` goes to a process whose devices are set by the same variable."""
    chosen = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in chosen if flag.lstrip("-").partition("=")[0] in FLAGS)


def _are_known(flags):
    """Whether this jaxlib has them all; XLA ends a process at one that it does not know."""
    library = Path(jaxlib.__file__).with_name("libjax_common.so")
    if platform.machine() != "x86_64" or not library.exists():
        return False
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return all(content.find(flag.encode()) >= 0 for flag in flags)
