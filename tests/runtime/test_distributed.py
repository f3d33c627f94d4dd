"""Several processes: how they find each other, and that they learn what one process does."""

import json
import os
import sys

import jax
import numpy as np
import pytest

from tests import processes
from tests.processes import finish, free_address, lines_of, local, settings
from tests.training.toy import ToyTask, toy_config
from vadapt.errors import ConfigError
from vadapt.runtime import distributed
from vadapt.training import loop

# Two processes sum the gradients of the halves of a batch, over a few dozen steps of float32.
SHARDED = 1e-4
TOY = [sys.executable, "-m", "tests.training.toy"]


def spawn(number, address, command, count=2):
    """One of several processes, of which a test wants to reach each."""
    names = zip(distributed.VARIABLES, (address, count, number), strict=True)
    return processes.spawn(command, **{name: str(value) for name, value in names})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_learn_what_one_does(tmp_path):
    said, _ = finish(local(2, [*TOY, tmp_path / "two", 24, 0]))
    assert "2 x cpu; 2 processes; mesh data=2" in lines_of(0, said)
    assert "step" not in lines_of(1, said)
    config = toy_config(total_steps=24, run={"log_every": 1})
    loop.fit(ToyTask(config), config, tmp_path / "one", devices=jax.devices()[:1])
    one, two = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert len(two) == 24
    np.testing.assert_allclose(two, one, atol=SHARDED)


def test_two_processes_run_a_config_from_the_command_line(tmp_path):
    command = ["python", "-m", "vadapt.main", "--config=configs/pad_msip.py:scenes"]
    command += settings(eval__probe_scenes=16, parallel__fsdp=2)
    said, _ = finish(local(2, [*command, f"--workdir={tmp_path}"]))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 3
    assert 0 < result["probe/frozen"] < 1
    assert (tmp_path / "adapter.safetensors").exists()
    assert "probe_accuracy" in lines_of(0, said)
    assert "probe" not in lines_of(1, said)


def test_a_process_that_fails_waits_for_nobody():
    code = (
        "from vadapt.runtime import distributed as d; import jax; d.start(timeout=60)\n"
        "jax.process_index() or __import__('time').sleep(300)\n"
        "d.leave_at_once()"
    )
    address = free_address()
    waiting, failed = (spawn(number, address, [sys.executable, "-c", code]) for number in (0, 1))
    try:
        finish(failed, code=1)
    finally:
        waiting.kill()
        waiting.communicate()


def test_processes_whose_partner_does_not_come_name_it():
    code = "from vadapt.runtime import distributed; distributed.start(timeout=8)"
    address = free_address()
    here = [spawn(number, address, [sys.executable, "-c", code], count=3) for number in (0, 2)]
    for _, errors in finish(*here, code=1):
        assert "ConfigError: after 8 s these of 3 processes are missing: 1; here are 0 (" in errors


def test_jax_waiting_in_vain_says_so(monkeypatch):
    # Where jax finds the others by itself there is no roll call; here it is left out by hand.
    code = (
        "from vadapt.runtime import distributed as d\n"
        "d.roll_call = lambda *details: None; d.start(timeout=2)"
    )
    _, errors = finish(spawn(1, free_address(), [sys.executable, "-c", code]), code=1)
    assert "ConfigError: process 1 of 2 at 127.0.0.1" in errors
    assert "waited 2 s for the others in vain" in errors


@pytest.fixture
def joined(monkeypatch):
    """What the roll call and jax were called with; nothing in the environment says anything."""
    calls = []
    monkeypatch.setattr(distributed, "roll_call", lambda *details: calls.append(details))
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in os.environ:
        if name.startswith(("JAX_", "SLURM_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    return calls


def name_processes(monkeypatch, address, count, number):
    for name, value in zip(distributed.VARIABLES, (address, count, number), strict=True):
        monkeypatch.setenv(name, value)


def test_a_single_host_joins_nothing(joined, monkeypatch):
    distributed.start()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.start()
    name_processes(monkeypatch, "127.0.0.1:1234", "1", "0")
    distributed.start()
    assert joined == []


def test_the_variables_name_the_processes(joined, monkeypatch):
    name_processes(monkeypatch, "host:1234", "4", "3")
    distributed.start(timeout=7)
    called, call = joined
    assert called == ("host:1234", 4, 3, 7)
    assert call["coordinator_address"] == "host:1234"
    assert (call["num_processes"], call["process_id"]) == (4, 3)
    assert call["initialization_timeout"] > 7


def test_slurm_tasks_are_left_to_jax(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    distributed.start()  # salloc without srun: one process
    assert joined == []
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-4]")
    distributed.start()
    assert [list(call) for call in joined] == [["initialization_timeout"]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1234", "2", ""), "JAX_PROCESS_ID missing; set all of"),
        (("", "2", "0"), "JAX_COORDINATOR_ADDRESS missing"),
        (("host:1234", "2", "2"), "JAX_PROCESS_ID='2'; expected .* from 0 to one less"),
        (("host:1234", "two", "0"), "JAX_NUM_PROCESSES='two'"),
        (("host", "2", "0"), "expected host:port"),
    ],
)
def test_incomplete_variables_are_named(joined, monkeypatch, values, message):
    name_processes(monkeypatch, *values)
    with pytest.raises(ConfigError, match=message):
        distributed.start()
    assert joined == []


def test_the_hosts_of_a_tpu_are_listed(monkeypatch, tmp_path):
    assert distributed.tpu_hosts({}) == []  # no chips here
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(distributed, "_DEVICES", tmp_path)
    monkeypatch.setattr(distributed, "_ask_gce", lambda attribute: "id:1:a,id:2:b,id:3:c")
    assert distributed.tpu_hosts({"TPU_WORKER_HOSTNAMES": "localhost"}) == ["localhost"]
    assert distributed.tpu_hosts({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}) == ["a", "b"]
    assert distributed.tpu_hosts({}) == ["a", "b", "c"]
    assert distributed.tpu_hosts({"JAX_PLATFORMS": "cpu"}) == []
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"}
    hosts = distributed.tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b", **slices})
    assert hosts == ["a", "b", "one of slice 0", "one of slice 0"]


def test_a_tpu_slice_that_waits_in_vain_lists_its_hosts(joined, monkeypatch):
    monkeypatch.setattr(distributed, "tpu_hosts", lambda environment: ["a", "b"])

    def refuse(**options):
        raise RuntimeError("no")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(ConfigError, match=r"this one of 2 TPU hosts \(a, b\) cannot join"):
        distributed.start()
    assert joined == []
