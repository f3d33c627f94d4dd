"""The roll call of a run of several processes: who has come and, if it fails, who has not.

jax's own start only aborts when somebody is missing. So before it, on the port that it will use,
every process tells process 0 who it is, and waits for what process 0 then tells all of them: go, or
what is wrong. Both are a line of JSON.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Mapping

from vadapt.errors import ConfigError

_BIND_ADDRESS = "JAX_COORDINATOR_BIND_ADDRESS"  # jax's: where process 0 listens, if elsewhere
_RETRY = 0.5  # seconds until an address is tried again
_SLACK = 30  # seconds that the others give process 0 beyond its own patience
_LONGEST = 4096  # bytes of a line; who sends more is not of a run
_SHOWN = 32  # processes that a message lists


def roll_call(address: str, count: int, number: int, timeout: float) -> None:
    """Returns when all processes of a run are there.

    Args:
        address: host:port of process 0; an IPv6 host in brackets.
        count: how many processes there are.
        number: which of them this is.
        timeout: how many seconds process 0 waits for the others, and they for its address.

    Raises:
        ConfigError: in every process that has come, in the same words: who is missing, or that two
            have one number, or other counts. Also if process 0 cannot be reached, or its port is
            taken.
    """
    if number == 0:
        port = os.environ.get(_BIND_ADDRESS, address).rpartition(":")[2]
        trouble = _call(int(port), _Roll(count), timeout)
    else:
        trouble = _answer(address, {"number": number, "count": count}, timeout)
    if trouble:
        raise ConfigError(trouble)


class _Roll:
    """The knowledge of process 0."""

    def __init__(self, count: int):
        self.count = count
        self.here = {0: socket.gethostname()}
        self.left: dict[int, str] = {}  # had come, and lost the connection
        self.trouble = ""

    def enter(self, line: bytes) -> int | None:
        """The process that says so; None if it is not a process of a run."""
        try:
            hello = json.loads(line)
            number, count, host = int(hello["number"]), int(hello["count"]), str(hello["host"])
        except (ValueError, KeyError, TypeError):
            return None
        if count != self.count:
            self.trouble = (
                f"process {number} ({host}) was told that there are {count} processes, process 0 "
                f"({self.here[0]}) that there are {self.count}; tell all the same"
            )
        elif number in self.here:
            self.trouble = (
                f"two processes were told that they are process {number}: one on "
                f"{self.here[number]} and one on {host}; give each its own number, and end those "
                "of earlier runs"
            )
        else:
            self.here[number] = host
        return number

    def leave(self, number: int) -> None:
        """It has ended, or lost its connection; it may come again."""
        self.left[number] = self.here.pop(number, "")

    def give_up(self, timeout: float) -> None:
        """Says who is missing."""
        absent = [number for number in range(self.count) if number not in self.here]
        missing = {number: self.left.get(number, "") for number in absent}
        self.trouble = (
            f"after {timeout:g} s these of {self.count} processes are missing: {_listed(missing)}; "
            f"here are {_listed(dict(sorted(self.here.items())))}"
            + "; a missing one with a host had come, and ended"
            * any(missing.values())
        )


class _Guest:
    """A connection to process 0, perhaps of somebody else."""

    def __init__(self, link: socket.socket):
        self.link, self.said = link, b""
        self.number: int | None = None

    def hear(self, roll: _Roll) -> bool:
        """Takes in what it says; False if there is nothing more to hear."""
        try:
            part = self.link.recv(_LONGEST)
        except OSError:
            part = b""
        self.said += part
        if part and self.number is None and b"\n" in self.said:
            self.number = roll.enter(self.said)
            return self.number is not None
        return bool(part) and len(self.said) < _LONGEST


def _call(port: int, roll: _Roll, timeout: float) -> str:
    """Process 0: hears who comes, tells all of them how it ends, and returns it."""
    deadline = time.monotonic() + timeout
    guests: set[_Guest] = set()
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as ready:
        listener = opened.enter_context(_listen(port))
        ready.register(listener, selectors.EVENT_READ)
        while len(roll.here) < roll.count and not roll.trouble:
            events = ready.select(max(deadline - time.monotonic(), 0))
            for key, _ in events:
                guest = key.data
                if guest is None:
                    guest = _Guest(opened.enter_context(listener.accept()[0]))
                    guests.add(guest)
                    ready.register(guest.link, selectors.EVENT_READ, guest)
                elif not guest.hear(roll):
                    guests.remove(guest)
                    ready.unregister(guest.link)
                    guest.link.close()
                    if guest.number is not None:
                        roll.leave(guest.number)
            if time.monotonic() > deadline and len(roll.here) < roll.count and not roll.trouble:
                roll.give_up(timeout)
        verdict = json.dumps({"trouble": roll.trouble}).encode() + b"\n"
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.link.sendall(verdict)
    return roll.trouble


def _listen(port: int) -> socket.socket:
    """Like jax's service: on all addresses, of both kinds where the machine has both."""
    try:
        if socket.has_dualstack_ipv6():
            try:
                return socket.create_server(
                    ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
                )
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
        return socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen on port {port} of {socket.gethostname()}: {error}; take "
            "another port, or end the program that uses it"
        ) from error


def _answer(address: str, hello: Mapping[str, int], timeout: float) -> str:
    """Every other process: says who it is, and returns how process 0 says it ends."""
    host, _, port = address.rpartition(":")
    line = json.dumps({**hello, "host": socket.gethostname()}).encode() + b"\n"
    deadline = time.monotonic() + timeout
    while True:
        try:
            target = (host.strip("[]"), int(port))
            with socket.create_connection(target, timeout=10) as link:
                link.sendall(line)
                link.settimeout(timeout + _SLACK)  # it may have started just now
                return str(json.loads(link.makefile().readline())["trouble"])
        except OSError as error:  # also: no such name yet, refused, too slow
            why = str(error)
        except (ValueError, KeyError, TypeError):
            why = "it closes the connection, or is not process 0 of a run"
        if time.monotonic() > deadline:
            return (
                f"process {hello['number']} of {hello['count']} on {socket.gethostname()} could "
                f"not reach process 0 at {address} in {timeout:g} s: {why}. Start process 0, with "
                "an address that every host can reach, and a port that nothing else uses"
            )
        time.sleep(_RETRY)


def _listed(processes: Mapping[int, str]) -> str:
    names = [f"{number} ({host})" if host else f"{number}" for number, host in processes.items()]
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
