"""Golden cases of GKGNet around the network: its loss, how images repeat, how labels are judged."""

from __future__ import annotations

from typing import Any

from vadapt.losses.multilabel import asymmetric_loss

Arrays = dict[str, Any]


def asymmetric(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    names = {"none": "none", "mean": "mean", "avg": "batch", "sum": "sum"}
    return {
        name: asymmetric_loss(
            inputs["logits"],
            inputs["target"],
            gamma_positive=config["gamma_pos"],
            gamma_negative=config["gamma_neg"],
            clip=config["clip"],
            eps=config["eps"],
            weights=inputs.get("weight"),
            reduction=reduction,
        )
        for name, reduction in names.items()
    }


MODULES = {"asymmetric_loss": asymmetric}
