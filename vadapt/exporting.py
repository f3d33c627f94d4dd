"""A trained system as one file: from pixels, through preprocessing and windows, to answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from vadapt import __version__
from vadapt.backbones.vit import as_pair
from vadapt.errors import ConfigError, nearest
from vadapt.tasks import TASKS
from vadapt.training.task import Responds, Task
from vadapt.weights.stablehlo import export_program


def export_answers(
    task: Task[nnx.Module],
    model: nnx.Module,
    path: str | Path,
    *,
    input_size: int | Sequence[int] | None,
    outputs: Sequence[str],
    dtype: str | None,
    name: str,
) -> Path:
    """Writes what a task answers to images of one size; see `vadapt.trained.LoadedRun.export`.

    Args:
        name: of the run, for messages.
    """
    answering, config = responding(task, name), task.config
    size = as_pair(tuple(config.data.image_size) if input_size is None else input_size)
    if min(size) < 1:
        raise ConfigError(f"input_size is {size}; give (height, width) in pixels")
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    known = nnx.eval_shape(answering.respond, model, images)
    names = tuple(outputs) or (next(iter(known)),)
    for one in names:
        if one not in known:
            raise ConfigError(f"the run {name!r} gives no {one!r}; {nearest(one, known)}")

    def respond(model: Any, images: Array) -> dict[str, Array]:
        found = answering.respond(model, images)
        return {one: found[one] for one in names}

    return export_program(
        respond,
        model,
        path,
        input_size=size,
        dtype=dtype,
        name=config.task.name,
        about=about(task, model),
    )


def about(task: Task[nnx.Module], model: nnx.Module) -> dict[str, Any]:
    """Return all that an exported file says of its run; JSON."""
    config, palette = task.config, getattr(task, "palette", None)
    applied = getattr(getattr(model, "backbone", model), "applied", ())
    said = {
        "vadapt": __version__,
        "task": config.task.name,
        "classes": list(getattr(task, "classes", ())),
        "palette": [] if palette is None else np.asarray(palette).tolist(),
        "backbone": config.model.backbone,
        "method": [dict(method) for method in applied],
        "images": "uint8 [b, h, w, 3], RGB",
        "mean": config.data.mean,
        "std": config.data.std,
    }
    return {key: value for key, value in said.items() if value != []}


def responding(task: Task[nnx.Module], name: str) -> Responds[nnx.Module]:
    """The task of a run, which says what it sees in one program.

    Raises:
        ConfigError: it does not; names those that do.
    """
    if isinstance(task, Responds):
        return task
    able = ", ".join(one for one in TASKS if hasattr(TASKS[one], "respond"))
    raise ConfigError(
        f"{name!r} holds a run of the task {task.config.task.name!r}, which has no `respond`: it "
        f"gives no answers to export. Tasks that do: {able}; features of its backbone are exported "
        "with --layers=-1, or by vadapt.export_features(run.model, ...)"
    )
