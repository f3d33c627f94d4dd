"""Every config's step at its published size, compiled for TPUs that are not here, and trained.

A job of its own, `pytest -m plans`: it takes minutes.
"""

import pytest

from tests.planned import as_in_training, assert_adapters_promise  # noqa: F401
from tests.recipes import DEAR, DISTINCT, assert_trains, config_of, shrunk
from vadapt import plan

pytestmark = pytest.mark.plans


@pytest.mark.parametrize("name", DEAR)
def test_every_config_with_a_dear_head_trains_on_scenes(name, tmp_path):
    config = shrunk(name, blocks=6)
    config.baselines = True
    assert_trains(config, tmp_path)
    assert (tmp_path / "full" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("as_in_training")
@pytest.mark.parametrize("name", DISTINCT)
def test_every_config_is_planned(name):
    """The published sizes as far as the compiler's input; their version on scenes to its end."""
    # libtpu exists for Linux on x86 only.
    pytest.importorskip("libtpu", reason="libtpu is not made for this platform")
    traced, program = plan.trace(config_of(name), "v5e:4x4")
    assert program.mesh.size == 16
    assert "stablehlo.dot_general" in traced.lower().as_text()
    config = config_of(name, "scenes")
    config.batch_size = 32
    assert_adapters_promise(plan.plan(config, "v5e:2x2"), config)
