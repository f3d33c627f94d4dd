"""The command that compares plans: one run of it on a tiny model, and what it counts."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vadapt import models, painted, painters
from vadapt import paint as command
from vadapt.adapters import METHODS
from vadapt.configs import linear_dinov2, pad_msip, vig_imagenet
from vadapt.errors import ConfigError
from vadapt.nn import plans
from vadapt.nn.plans import Parallel
from vadapt.paint import backbone_of, paint

TINY = {"positions": "sincos", "depth": 2, "width": 8, "num_heads": 2}


def tiny():
    config = linear_dinov2.get_config("scenes")
    config.model.weights, config.data.image_size = "", (16, 16)
    config.task.layers, config.batch_size = (1,), 8
    config.data.num_scenes = 8
    with config.unlocked():
        config.model.options.update(TINY)
        config.test = {"clean": {"num_scenes": 8}}
    return config


@pytest.fixture(scope="module")
def painting(tmp_path_factory):
    out = tmp_path_factory.mktemp("painted")
    smaller = str(out / "one.safetensors")
    options = {"leave_out": 1, "by": "similarity", "export": smaller}
    options |= {"numbers": (8, 8), "batches": (1,), "times": 1}
    rows = paint(tiny(), out, **options)
    return out, {row.name: row for row in rows}


def test_a_painting_has_all_plans_their_scores_and_pictures(painting):
    out, rows = painting
    assert set(rows) == {
        *("baseline", "skip:0", "loop_parallel:0,3", "skip_one:0", "skip_one:1", "switch:0"),
    }
    whole = rows["baseline"].scores
    assert whole["P0"] == whole["P1"]
    assert whole["P1"]["median"] == (1.0, 0.0)
    assert {*whole["P1"]} == {"knn", "labels", "dense", "median"}
    assert rows["skip:0"].scores["P0"] == rows["skip_one:1"].scores["P0"]
    assert all(row.latency[1] > 0 for row in rows.values())
    said = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in said["rows"]] == [*rows]
    assert np.asarray(said["similarity"]["tokens"]).shape == (3, 3)
    text = (out / "report.md").read_text()
    assert "skip:0 = 0" in text
    for name in ("flattened.png", "tokens.png", "P0.png", "P1.png"):
        assert f"({name})" in text
        assert (out / name).is_file()


def test_the_smaller_backbone_is_there_to_load(painting):
    smaller = models.create("vit_micro", painting[0] / "one.safetensors", image_size=16, **{
        key: value for key, value in TINY.items() if key != "depth"
    })  # fmt: skip
    assert smaller.depth == 1


def test_a_plan_of_single_blocks_runs_as_blocks_in_that_order():
    backbone = models.create("vit_micro", image_size=16, **{**TINY, "depth": 4})
    images = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    for plan in [(0, 2, 2, 1), (3, Parallel((0, 2), 2), 1)]:
        made = painters.arranged(backbone, plan)
        assert made.plan in (None, (0, Parallel((1, 2), 2), 3))
        backbone.plan = plan
        found = [jax.jit(lambda m=m: m.run(images).x.array)() for m in (made, backbone)]
        np.testing.assert_allclose(*found, atol=1e-5)


def test_the_work_of_a_plan_is_known_by_its_form():
    assert painters.form(plans.reverse(6, 0)) == painters.form(plans.baseline(6)) == (6,)
    assert painters.form(plans.loop_parallel(6, 1)) == (2, (3, 3, True), 1)


def test_no_plan_that_equals_another_of_its_middle_is_listed():
    names = [row.name for row in painted.variants(6)]
    assert "reverse:2" not in names
    assert "parallel:2" not in names
    assert {"loop_parallel:2,3", "random:1", "skip:2"} < {*names}
    assert len(names) == len({*names})


def test_what_is_as_fast_and_better_stands_out():
    def row(milliseconds, score):
        made = painted.Row("", [(0,)], None, {1: milliseconds})
        made.scores = {"P1": {"median": (score, 0.0)}}
        return made

    rows = [row(3, 0.9), row(2, 0.9), row(1, 0.5), row(4, 0.95), row(5, 0.2)]
    painted.mark_best(rows, 1)
    assert [row.best for row in rows] == [False, True, True, True, False]


def test_blocks_that_change_little_go_first():
    cosines = np.eye(4)
    for block, cosine in enumerate((0.5, 0.99, 0.8)):
        cosines[block, block + 1] = cosines[block + 1, block] = cosine
    assert painted.alike_first(cosines) == [1, 2, 0]


def test_what_cannot_be_painted_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has stages, which run in their order alone"):
        backbone_of(vig_imagenet.get_config("scenes"))
    with pytest.raises(ConfigError, match="--export writes a backbone without --leave_out"):
        paint(tiny(), tmp_path, export="x.safetensors")
    with pytest.raises(ConfigError, match="--healed=skip:9: expected some of baseline"):
        paint(tiny(), tmp_path, heal=1, healed=("skip:9",))
    assert not list(tmp_path.iterdir())


def test_healing_trains_the_recipe_with_a_method_under_the_plan(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "run", lambda config, out: seen.append((config, out)) or {"a": 1})
    monkeypatch.setattr(command, "load_run", lambda out: SimpleNamespace(model=out))
    row = painted.Row("loop_parallel:0,3", [plans.loop_parallel(2, 0)], 1)
    config = tiny()
    assert command._healed(config, row, 7, "", tmp_path) == seen[0][1]
    made = seen[0][0]
    assert (made.model.plan, made.total_steps) == ("loop_parallel:0,3", 7)
    assert made.method.name in METHODS
    assert (config.model.plan, config.method.name) == ("", "none")


def test_images_without_labels_are_no_ground_to_compare_plans_on(tmp_path):
    config = pad_msip.get_config("")
    config.data.source, config.data.path = "folder", str(tmp_path)
    with pytest.raises(ConfigError, match=r"gives neither labels .* nor masks"):
        painters.read_examples(config, 16, (4, 4), 0)
