"""The benchmarks of speed run at their smallest size and write what they say; no time is judged."""

import json
import subprocess
import sys

import pytest
from flax import nnx

from benchmarks import train_step_segmentation
from benchmarks.train_step_job import Job
from tests.processes import ROOT, environment
from vadapt.partition import count, split
from vadapt.tasks.segmentation import SegmentationTask


def output_of(name, *arguments):
    """What a benchmark prints, from a process of its own on one plain CPU device."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    # Its draws of random weights compile in half the time.
    variables = environment(JAX_DEFAULT_PRNG_IMPL="unsafe_rbg")
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report(name, *arguments, out):
    """What a benchmark writes, which is also what it prints."""
    printed = output_of(name, *arguments, "--out", out)
    assert out.with_suffix(".md").read_text(encoding="utf-8") in printed
    return json.loads(out.read_text(encoding="utf-8"))


def train_step(tmp_path, *who, pairs):
    smallest = ("--depth", "1", "--rounds", "1", "--seconds", "0")
    arguments = ("--size", "micro", "--batch", "4", *smallest, "--who", *who, "--pair", *pairs)
    found = report("train_step", *arguments, out=tmp_path / "steps.json")["comparisons"]
    assert [one["pair"] for one in found] == list(pairs)
    for one in found:
        assert (one["size"], one["batch"], one["precision"]) == ("micro", 4, "float32")
    return {(row["pair"], row["who"]): row for one in found for row in one["rows"]}


@pytest.mark.plans
def test_train_step_measures_vadapt(tmp_path):
    pairs = ("pad", "full", "linear", "lora")
    rows = train_step(tmp_path, "vadapt", pairs=pairs)
    assert list(rows) == [(pair, "vadapt") for pair in pairs]
    for row in rows.values():
        assert len(row["rounds"]) == 1
        speed = row["images_per_second"]
        assert 0 < speed["least"] <= speed["median"] <= speed["most"]
        assert row["peak_bytes"] > 0
        assert row["model_tflops_per_second"] > 0
    assert rows["pad", "vadapt"]["trainable"] < rows["full", "vadapt"]["trainable"]
    assert rows["linear", "vadapt"]["trainable"] < rows["lora", "vadapt"]["trainable"]


@pytest.mark.interop
def test_train_step_compares_with_torch_at_equal_sizes(tmp_path):
    pairs = ("pad", "full", "linear", "lora")
    rows = train_step(tmp_path, "vadapt", "eager", pairs=pairs)
    for pair in pairs:
        ours, theirs = rows[pair, "vadapt"], rows[pair, "eager"]
        assert theirs["vadapt_over_this"] > 0
        assert theirs["trainable"] == pytest.approx(ours["trainable"], rel=0.01)
    for pair in ("full", "linear", "lora"):
        assert rows[pair, "vadapt"]["trainable"] == rows[pair, "eager"]["trainable"]


@pytest.mark.interop
def test_train_step_runs_another_mask2former_of_about_as_many_numbers(tmp_path):
    rows = train_step(tmp_path, "eager", pairs=("mask2former",))
    row = rows["mask2former", "eager"]
    assert row["images_per_second"]["median"] > 0
    config = train_step_segmentation.config_of(Job("micro", 4, "cpu", 2, 1, 0), "rein")
    ours = nnx.eval_shape(lambda: SegmentationTask(config).build(pretrained=False))
    assert row["trainable"] == pytest.approx(count(split(ours).trainable), rel=0.1)


def test_a_row_whose_framework_is_missing_says_so(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = train_step(tmp_path, "eager", pairs=("pad", "lora", "mask2former"))
    assert {row["missing"] for row in rows.values()} == {"not installed (torch)"}


def test_input_pipeline_measures_every_kind_of_file(tmp_path):
    arguments = ["--images", "2", "--names", "64", "--batch", "4", "--batches", "2"]
    arguments += ["--labeled", "1", "--rounds", "1", "--before", "HEAD"]
    whole = report("input_pipeline", *arguments, out=tmp_path / "input.json")
    kinds = whole["kinds"]
    assert len(kinds) == 3
    for kind in kinds.values():
        assert min(kind["stages"].values()) >= 0
        for stream in kind["streams"].values():
            assert stream["all threads"]["images_per_core_second"] > 0
            assert 0 <= stream["waiting"]["median_ms"] <= stream["waiting"]["most_ms"]
    assert len(whole["recipes"]) == 9
    for trees in whole["recipes"].values():
        assert trees.keys() - {"opencv"} == {"before", "now"}
        for times in trees.values():
            assert times.keys() == {"read and decode", "transform", "batch"}
            assert min(times.values()) > 0


@pytest.mark.plans
def test_load_memory_compares_ways_of_loading(tmp_path):
    out = tmp_path / "memory.md"
    output_of("load_memory", "--backbone=dinov2_small", "--out", out)
    rows = [line.split("|") for line in out.read_text().splitlines() if line.startswith("| vadapt")]
    assert len(rows) == 2
    assert all(float(share) > 0.9 for *_, share, _ in rows)


@pytest.mark.plans
def test_feature_cache_compares_steps_from_images_and_from_features(tmp_path):
    out = tmp_path / "cache.md"
    arguments = ("--sizes=micro", "--rounds=1", "--images=32", "--steps=2")
    output_of("feature_cache", *arguments, "--out", out)
    (row,) = [line for line in out.read_text().splitlines() if line.startswith("| vit_micro")]
    assert float(row.split("|")[-2]) < 1e-5


@pytest.mark.plans
def test_attention_is_analysed_and_timed(tmp_path):
    out = tmp_path / "attention.md"
    output_of("attention", "--shapes", 0, "--batch", 1, "--rounds", 1, "--out", out)
    lines = [line for line in out.read_text().splitlines() if line.startswith("| MAE encoder")]
    times = {cells[2].strip(): cells[3] for cells in (line.split("|") for line in lines)}
    assert {"vadapt", "plain XLA", "jax.nn", "jax.nn, cuDNN", "PyTorch SDPA"} <= times.keys()
    assert float(times["vadapt"].split()[0]) > 0


@pytest.mark.plans
def test_cross_layer_attention_is_analysed_and_timed(tmp_path):
    out = tmp_path / "cross_layer.md"
    output_of("cross_layer_attention", "--grid", 1, 2, "--rounds", 1, "--out", out)
    lines = [line.split("|") for line in out.read_text().splitlines() if line.startswith("| ")]
    times = {(cells[1].strip(), cells[2].strip()): cells[3] for cells in lines}
    assert times["forward", "float32"]
    assert all(float(times[work, "vadapt"].split()[0]) > 0 for work in ("forward", "backward"))
