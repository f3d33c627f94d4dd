"""The roll call: who comes is let through, who does not is named, and strangers are ignored."""

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.processes import free_address
from vadapt.errors import ConfigError
from vadapt.runtime import roll_call as module
from vadapt.runtime.roll_call import roll_call

HOST = socket.gethostname()
PATIENCE = 60  # seconds; nothing here computes


@pytest.fixture
def processes():
    """Starts processes of a run as threads; ended() gives for each its error, or None."""
    with ThreadPoolExecutor(16) as pool:
        started = []

        def start(address, count, *numbers, timeout=PATIENCE):
            for number in numbers:
                started.append(pool.submit(roll_call, address, count, number, timeout))

        start.ended = lambda: [future.exception(PATIENCE) for future in started]
        yield start


def connect(address):
    """A connection to process 0, as soon as it listens."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=PATIENCE)
        except ConnectionRefusedError:
            continue


def hello(number, count, host="elsewhere"):
    return json.dumps({"number": number, "count": count, "host": host}).encode() + b"\n"


def verdict(link):
    return json.loads(link.makefile().readline())["trouble"]


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_all_who_come_are_let_through(processes):
    processes(free_address(), 5, 3, 1, 0, 4, 2)
    assert processes.ended() == [None] * 5


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_process_0_can_be_at_an_ipv6_address(processes):
    port = free_address().rpartition(":")[2]
    processes(f"[::1]:{port}", 2, 0, 1)
    assert processes.ended() == [None] * 2


def test_the_port_is_free_afterwards(processes):
    address = free_address()
    processes(address, 3, 0, 1, 2)
    assert processes.ended() == [None] * 3
    socket.create_server(("", int(address.rpartition(":")[2]))).close()


def test_the_missing_are_named_to_all(processes):
    processes(free_address(), 4, 0, 2, timeout=2)
    first, second = map(str, processes.ended())
    assert first == second
    assert "after 2 s these of 4 processes are missing: 1, 3;" in first
    assert first.endswith(f"here are 0 ({HOST}), 2 ({HOST})")


def test_a_long_list_is_cut(processes):
    processes(free_address(), 1000, 0, timeout=0.1)
    (error,) = processes.ended()
    assert "missing: 1, 2, 3, " in str(error)
    assert "31, 32 and 967 more; here" in str(error)


def test_who_comes_first_waits_for_process_0(processes, monkeypatch):
    tries, real = [], socket.create_connection
    tried_twice = threading.Event()

    def connecting(*args, **options):
        tries.append(args)
        if len(tries) == 1:  # its name is not known yet
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if len(tries) == 2:
            tried_twice.set()
        return real(*args, **options)

    monkeypatch.setattr(socket, "create_connection", connecting)
    address = free_address()
    processes(address, 2, 1)
    assert tried_twice.wait(PATIENCE)
    processes(address, 2, 0)
    assert processes.ended() == [None] * 2


def test_process_0_that_nobody_reaches_is_named(processes):
    address = free_address()
    processes(address, 2, 1, timeout=1)
    (error,) = processes.ended()
    assert isinstance(error, ConfigError)
    assert f"process 1 of 2 on {HOST} could not reach process 0 at {address} in 1 s" in str(error)
    assert "refused" in str(error)


def test_what_is_not_process_0_is_not_believed(processes):
    with socket.create_server(("127.0.0.1", 0)) as other:
        processes(f"127.0.0.1:{other.getsockname()[1]}", 2, 1, timeout=0.5)
        link, _ = other.accept()
        link.recv(1000)
        link.sendall(b"220 mail at your service\n")
        link.close()
        other.close()
        (error,) = processes.ended()
    assert "could not reach process 0" in str(error)


def test_strangers_are_ignored(processes):
    address = free_address()
    processes(address, 2, 0)
    strange = [b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b'{"number": "x"}\n', b"x" * 10000]
    links = [connect(address) for _ in [*strange, b"", b""]]
    for link, words in zip(links, strange, strict=False):
        link.sendall(words)
        with contextlib.suppress(ConnectionResetError):  # it did not read all of it
            assert link.recv(10) == b""
    links[-1].close()
    processes(address, 2, 1)
    assert processes.ended() == [None] * 2
    for link in links:
        link.close()


def test_a_line_may_come_in_pieces(processes):
    address = free_address()
    processes(address, 2, 0)
    with connect(address) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in hello(1, 2):
            link.sendall(bytes([byte]))
        assert verdict(link) == ""
    assert processes.ended() == [None]


def test_two_processes_of_one_number_are_told_apart(processes):
    address = free_address()
    processes(address, 3, 0)
    with connect(address) as link:
        link.sendall(hello(1, 3, "host-a"))
        processes(address, 3, 1)
        told = verdict(link)
    errors = [str(error) for error in processes.ended()]
    assert errors == [told, told]
    assert "two processes were told that they are process 1: one on " in told
    assert "host-a" in told
    assert HOST in told


def test_counts_must_agree(processes):
    address = free_address()
    processes(address, 4, 0)
    with connect(address) as link:
        link.sendall(hello(2, 3, "host-c"))
        told = verdict(link)
    (error,) = processes.ended()
    assert str(error) == told
    assert f"process 2 (host-c) was told that there are 3 processes, process 0 ({HOST})" in told


def test_who_has_left_is_missing(processes):
    address = free_address()
    processes(address, 3, 0, timeout=3)
    with connect(address) as link:
        link.sendall(hello(2, 3, "host-c"))
    (error,) = processes.ended()
    assert f"missing: 1, 2 (host-c); here are 0 ({HOST}); a missing one with a host" in str(error)


def test_who_has_left_may_come_again(processes):
    address = free_address()
    processes(address, 3, 0)
    with connect(address) as link:
        link.sendall(hello(2, 3))
    processes(address, 3, 1, 2)
    assert processes.ended() == [None] * 3


def test_a_port_that_is_taken_is_named(processes):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        processes(f"127.0.0.1:{port}", 2, 0)
        (error,) = processes.ended()
    assert f"process 0 cannot listen on port {port} of {HOST}" in str(error)


def test_process_0_listens_where_jax_will(processes, monkeypatch):
    address = free_address()
    monkeypatch.setenv(module._BIND_ADDRESS, f"0.0.0.0:{address.rpartition(':')[2]}")
    processes("127.0.0.1:1", 2, 0)  # the address of a gateway that forwards
    processes(address, 2, 1)
    assert processes.ended() == [None] * 2
