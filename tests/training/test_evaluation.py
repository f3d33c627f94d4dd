"""Evaluation while training: the best checkpoint counts, training may end early, also resumed."""

import math

import jax
import numpy as np
import pytest

from tests.training.test_loop import lines
from tests.training.toy import ToyTask, toy_config
from vadapt.errors import ConfigError
from vadapt.training import loop
from vadapt.training.checkpoint import Checkpoints


class Scored(ToyTask):
    """A task whose model at evaluation i has score i of a list; it keeps what was evaluated."""

    def __init__(self, config, scores):
        super().__init__(config)
        self.scores, self.kernels = list(scores), []

    def evaluate(self, model, on="test"):
        assert on == "validation"
        self.kernels.append(np.asarray(model.head.kernel[...]))
        return {"mean/score": self.scores[len(self.kernels) - 1], "mean/loss": 1.0}


def config_of(**options):
    config = toy_config(run={"log_every": 1, "checkpoint_every": 5, "keep_last": 1})
    config.eval = {"every": 2, **options}
    return config


def fit(task, workdir, **options):
    return loop.fit(task, task.config, workdir, devices=jax.devices()[:1], **options)


def evaluations(workdir):
    return {line["step"]: line["mean/score"] for line in lines(workdir) if "mean/score" in line}


def test_scores_go_into_the_log_and_the_last_model_counts(tmp_path):
    task = Scored(config_of(), [3.0, 1.0, 4.0, 1.0, 5.0])
    outcome = fit(task, tmp_path)
    assert evaluations(tmp_path) == {2: 3.0, 4: 1.0, 6: 4.0, 8: 1.0, 10: 5.0}
    assert "step 6: mean/score 4, mean/loss 1" in (tmp_path / "log.txt").read_text()
    assert outcome.steps == 12
    assert not np.array_equal(outcome.model.head.kernel[...], task.kernels[-1])
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_best_checkpoint_counts_and_stays(tmp_path):
    task = Scored(config_of(best="mean/score"), [1.0, 4.0, 2.0, 3.0, 1.0, 0.0])
    outcome = fit(task, tmp_path)
    assert len(task.kernels) == 6  # the last step's model, too
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 12]
    np.testing.assert_array_equal(outcome.model.head.kernel[...], task.kernels[1])
    log = (tmp_path / "log.txt").read_text()
    assert "step 4: mean/score 4, the best so far" in log
    assert "step 8: mean/score 3; the best, 4, is of step 4" in log
    assert "the best checkpoint counts: that of step 4" in log


def test_training_ends_early_and_does_not_begin_again(tmp_path):
    config = config_of(best="mean/score", patience=2)
    first = Scored(config, [1.0, 4.0, 2.0])
    fit(first, tmp_path, stop_at=6)
    second = Scored(config, [3.0])
    outcome = fit(second, tmp_path)
    assert (outcome.finished, outcome.steps) == (True, 8)
    np.testing.assert_array_equal(outcome.model.head.kernel[...], first.kernels[1])
    third = Scored(config, [])
    again = fit(third, tmp_path)
    assert (again.finished, again.steps, third.kernels) == (True, 8, [])


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path):
    scores = [math.nan, 1.0, math.inf, 0.5, math.nan, 0.0]
    task = Scored(config_of(best="mean/score"), scores)
    outcome = fit(task, tmp_path)
    np.testing.assert_array_equal(outcome.model.head.kernel[...], task.kernels[1])
    assert (
        Checkpoints(tmp_path / "checkpoints", best_metric="mean/score", best_mode="max").best() == 4
    )
    log = (tmp_path / "log.txt").read_text()
    assert "mean/score nan, which is not finite and so never the best; there is no best" in log
    assert "mean/score inf, which is not finite and so never the best; the best, 1, is of" in log


def test_training_ends_early_where_no_score_is_ever_finite(tmp_path):
    task = Scored(config_of(best="mean/score", patience=3), [math.nan] * 6)
    outcome = fit(task, tmp_path)
    assert (outcome.finished, outcome.steps, len(task.kernels)) == (True, 6, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0, "best": "mean/score"}, "needs config.eval.every"),
        ({"patience": 3}, "needs config.eval.best"),
        ({"best": "mean/scores"}, "config.eval.best='mean/scores'; nearest: 'mean/score'"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(Scored(config_of(**options), [1.0]), tmp_path)
