"""Files of backbones that have lost blocks are ordinary files, which compute what the plan does."""

import jax
import numpy as np
import pytest
from flax import nnx

from vadapt import models
from vadapt.errors import ConfigError, WeightsError
from vadapt.weights.__main__ import main
from vadapt.weights.dropped import save_dropped
from vadapt.weights.files import read_arrays, read_header, write_arrays

SIZE = {"width": 8, "num_heads": 2, "patch_size": 4, "image_size": (8, 8)}


def features(model):
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    graph, state = nnx.split(model)
    return jax.jit(lambda state: nnx.merge(graph, state).features(images))(state)


@pytest.mark.parametrize(
    ("name", "more", "made"),
    [
        ("vit_micro", {}, {"blocks": "[0, 3, 2, 5]"}),
        (
            "sam_base",
            {"depth": 6, "global_blocks": (3,), "window": 2, "neck": None},
            {"blocks": "[0, 3, 2, 5]", "global_blocks": "[1]"},
        ),
    ],
)
def test_a_smaller_file_is_a_backbone_that_computes_what_the_plan_does(name, more, made, tmp_path):
    whole, file = models.create(name, **SIZE, **more), tmp_path / "smaller.safetensors"
    whole.follow("0,3,2,5")
    save_dropped(file, whole)
    header = read_header(file)
    assert {key: header[key] for key in made} == made
    less = {key: more[key] for key in ("window", "neck") if key in more}
    smaller = models.create(name, file, **SIZE, **less)
    assert (smaller.depth, smaller.plan) == (4, None)
    np.testing.assert_allclose(features(smaller), features(whole), atol=1e-5)


def test_the_command_check_knows_smaller_backbones(tmp_path, capsys):
    whole = models.create("vit_micro", image_size=64)
    whole.follow("0,5")
    save_dropped(tmp_path / "smaller.safetensors", whole)
    main(["check", str(tmp_path / "smaller.safetensors")])
    assert 'vadapt.create("vit_micro", image_size=64)' in capsys.readouterr().out


@pytest.mark.parametrize("plan", ["(0,1),2", "0,1,1"])
def test_a_plan_that_no_order_of_blocks_computes_is_refused(plan, tmp_path):
    whole = models.create("vit_micro", **SIZE)
    whole.follow(plan)
    with pytest.raises(ConfigError, match="is no list of different blocks"):
        save_dropped(tmp_path / "smaller.safetensors", whole)


@pytest.mark.parametrize("blocks", ["[0, 0]", "[-1]", '"0"', "[99999999]", "{}"])
def test_a_header_that_says_what_cannot_be_is_refused(blocks, tmp_path):
    whole, file = models.create("vit_micro", **SIZE), tmp_path / "smaller.safetensors"
    whole.follow("0,1")
    save_dropped(file, whole)
    write_arrays(file, read_arrays(file), {**read_header(file), "blocks": blocks})
    with pytest.raises(WeightsError, match=r"'blocks' is .* expected different numbers of blocks"):
        models.create("vit_micro", file, **SIZE)
