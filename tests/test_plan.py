"""Planning: the step that training runs, compiled for TPUs that are not here."""

import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from tests.planned import as_in_training, assert_adapters_promise, sent  # noqa: F401
from tests.recipes import DEAR, DISTINCT, config_of, shrunk
from vadapt import plan
from vadapt.configs import parts
from vadapt.errors import ConfigError
from vadapt.runtime import chips
from vadapt.tasks import make_task

# libtpu exists for Linux on x86 only.
pytest.importorskip("libtpu", reason="libtpu is not made for this platform")
pytestmark = pytest.mark.usefixtures("two_blocks", "as_in_training")
ROOT = Path(__file__).parent.parent


def small(argument="scenes", **changes):
    config = config_of("pad_msip", argument)
    config.batch_size, config.data.image_size = 64, (32, 32)
    config.task.decoder_depth = 1
    config.parallel.step.compute_dtype = "bfloat16"
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def pad(two_blocks):
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("default"):
        return plan.plan(small(), "v5e:2x2")


def test_a_plan_says_what_a_chip_does(pad):
    assert (pad["chips"], pad["batch"], pad["fits"]) == (4, 64, True)
    memory = pad["memory_bytes"]
    assert memory["available"] == int(15.75 * 2**30)
    assert max(memory["arguments"], memory["temporaries"]) < memory["total"] < memory["available"]
    sides = {side: pad[f"{side}_seconds"] for side in ("compute", "memory", "network")}
    assert pad["roofline_seconds"] == max(sides.values()) == sides[pad["bound"]]
    assert pad["flops"] / 197e12 == pytest.approx(sides["compute"])
    assert "v5e:2x2: 4 chips, batch 64, 16 a chip" in plan.table(pad)


def test_only_gradients_of_what_trains_travel(pad):
    """The adapters' promise on a pod: transfers of the trainable size, and a few scalars."""
    assert {(item["kind"], item["axis"]) for item in pad["collectives"]} == {("all-reduce", "data")}
    assert 0.4 * pad["trainable_bytes"] < sent(pad) <= pad["trainable_bytes"] + 1024


def test_tables_of_relative_positions_travel_and_not_their_biases():
    """In two blocks the biases that are made of them are an eighth of all that trains."""
    config = shrunk("pad_soda")
    config.task.layers = (1,)
    config.head, config.neck = parts.named("linear"), parts.named("none")
    assert_adapters_promise(plan.plan(config, "v5e:2x2"), config)


def test_more_chips_at_the_same_batch_a_chip_do_the_same_each(pad):
    more = plan.plan(small(batch_size=256), "v5e:4x4")
    assert more["chips"] == 4 * pad["chips"]
    assert more["flops"] == pytest.approx(pad["flops"], rel=0.01)
    total, before = more["memory_bytes"]["total"], pad["memory_bytes"]["total"]
    assert total == pytest.approx(before, rel=0.05)
    assert sent(more) <= sent(pad) + 1024


def test_micro_batches_and_shards_are_counted_in_full(pad):
    changes = {"parallel.step.accumulate": 4, "parallel.fsdp": 4, "batch_size": 256}
    found = plan.plan(small(**changes), "v5e:2x2")
    assert found["flops"] == pytest.approx(4 * pad["flops"], rel=0.05)
    assert {item["axis"] for item in found["collectives"]} == {"fsdp"}
    gathered = [item for item in found["collectives"] if item["kind"] == "all-gather"]
    weights = found["frozen_bytes"] / 2 + found["trainable_bytes"] / 2  # as bfloat16
    # What is split (small leaves are not) is gathered before the loop, or twice in each turn.
    assert 0.5 * weights < sum(item["bytes"] for item in gathered) < 2 * 4 * weights


def test_a_kernel_that_takes_too_much_of_the_chip_is_an_error(monkeypatch):
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating"
    real = plan.trace

    def trace(*arguments, **options):
        class Lowered:
            def compile(self):
                raise jax.errors.JaxRuntimeError(said)

        _, program = real(*arguments, **options)
        return types.SimpleNamespace(lower=Lowered), program

    monkeypatch.setattr(plan, "trace", trace)
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        plan.plan(small(), "v5e:2x2")


def test_what_does_not_fit_is_said():
    found = plan.plan(small(batch_size=2**25), "v5e:2x2")
    assert not found["fits"]
    assert "15.75G" in found["needs"]
    assert "does not fit: " in plan.table(found)
    assert "too much" in plan.comparison({"huge": found})


# Whose programs are nearly `pad_msip`'s.
ALIKE = ("mae_scenes", "pad_milan_msip")


@pytest.mark.parametrize("name", DISTINCT)
def test_every_config_is_planned_with_two_blocks(name):
    """As far as the compiler's input where that is dear or alike; test_recipes_whole.py goes on."""
    config = shrunk(name)
    if name in (*DEAR, *ALIKE):
        traced, program = plan.trace(config, "v5e:2x2")
        assert program.mesh.size == 4
        assert "stablehlo.dot_general" in traced.lower().as_text()
    else:
        assert_adapters_promise(plan.plan(config, "v5e:2x2"), config)


@pytest.mark.parametrize("name", DISTINCT)
def test_batches_have_the_shapes_that_plans_are_made_for(name):
    config = config_of(name, "scenes")
    config.batch_size, config.data.num_scenes = 4, 8
    task = make_task(config)
    stream = task.stream()
    batch, expected = next(stream), task.batch_shapes()
    stream.close()
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
        key: (x.shape, x.dtype) for key, x in expected.items()
    }


def test_the_search_goes_up_to_the_memory_and_no_further(monkeypatch):
    """Against a machine of known size: 1 GiB of weights, 10 MiB an image and chip."""
    asked = []

    def fake(config, topology, *, slices):
        asked.append(config.batch_size)
        return planned(config.batch_size)

    def planned(batch):
        temporaries = int(batch / 16 * 10 * 2**20)
        memory = {"arguments": 2**30, "temporaries": temporaries, "total": 2**30 + temporaries}
        memory["available"] = int(15.75 * 2**30)
        fits = memory["total"] <= memory["available"]
        common = {"chips": 16, "batch": batch, "topology": "v5e:4x4", "slices": 1}
        return {**common, "fits": fits, "memory_bytes": memory}

    monkeypatch.setattr(plan, "plan", fake)
    config = config_of("pad_msip")
    for start in (16, 1024, 2048, 2**20):
        best = plan.largest_batch(config, planned(start), say=lambda text: None)
        assert planned(best)["fits"]
        # Five compilations, each at most four times the last, do not get far from one image.
        assert best >= {16: 16 * 4**4, 2**20: 0}.get(start, 0.9 * 16 * 1510)
        assert len(asked) <= 5
        asked.clear()


def test_a_batch_that_chips_cannot_share_becomes_the_next_that_they_can():
    config = small(batch_size=100)
    assert [plan.shared_batch(config, chips) for chips in (4, 16, 256)] == [100, 112, 256]
    config.parallel.step.accumulate = 2
    assert plan.shared_batch(config, 16) == 128


def test_variants_change_one_thing_each():
    config = config_of("pad_msip")
    found = dict(plan.variants(config))
    assert found["full training"].trainable == "everything"
    assert found["frozen in float32"].parallel.frozen_dtype == "float32"
    policies = {one.parallel.step.remat for one in [config, *found.values()]}
    assert policies == {"none", "dots", "blocks"}
    assert -1 in {one.parallel.fsdp for one in found.values()}
    assert config == config_of("pad_msip")


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5:4x4", "unknown chip 'v5'.*v5e"),
        ("v5e", "expected a chip and a shape, as in 'v5e:4x4'"),
        ("v5e:3x5", "'v5e:3x5' cannot be had .*not divisible"),
    ],
)
def test_a_topology_that_does_not_exist_is_named(topology, message):
    with pytest.raises(ConfigError, match=message):
        chips.devices(topology)


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vadapt\[tpu\]'"):
        chips.devices("v5e:4x4")


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "v5e:1x1"])
def test_chips_of_other_kinds_are_devices_too(topology):
    shape = [int(side) for side in topology.partition(":")[2].split("x")]
    found = chips.devices(topology)
    assert len(found) == shape[0] * shape[1]
    assert {device.platform for device in found} == {"tpu"}


def test_the_command_prints_and_writes(tmp_path):
    # Another process has all six blocks: of this config only a forward pass is compiled.
    command = [sys.executable, "-m", "vadapt.plan", "--config=configs/linear_dinov2.py:scenes"]
    out = tmp_path / "plans" / "linear.json"
    settings = ["--config.data.image_size=32,32", "--batch=64"]
    command += [*settings, "--topology=v5e:2x2", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "v5e:2x2: 4 chips, batch 64" in done.stdout
    found = json.loads(out.read_text())
    assert (found["chips"], found["batch"]) == (4, 64)
    assert {"memory_bytes", "flops", "hbm_bytes", "roofline_seconds", "bound"} <= set(found)
    assert {"collectives", "trainable_bytes", "compile_seconds"} <= set(found)

    done = subprocess.run(command[:4], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ConfigError: --topology missing; expected" in done.stderr
