"""Parts that all rows of `train_step` share: a job, and its step in JAX and in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.side_by_side import Missing, Row, Training, jax_peak, torch_peak

TOTAL_STEPS = 10_000  # of the schedule; more than any run here takes
WHO = ("vadapt", "compiled", "eager")


class Job(NamedTuple):
    """The sizes that every row of a comparison has alike."""

    size: str
    batch: int
    platform: str
    threads: int
    depth: int  # blocks of the backbone and of the decoder; 0: the recipe's
    image: int  # pixels of a side; 0: the recipe's

    @property
    def precision(self) -> str:
        return "float32" if self.platform == "cpu" else "bfloat16"

    def settle(self, config: Any) -> Any:
        """A recipe with random weights and the job's batch, precision and image size."""
        config.model.weights = ""
        config.batch_size, config.total_steps = self.batch, TOTAL_STEPS
        if self.image:
            config.data.image_size = (self.image, self.image)
        config.parallel.step.compute_dtype, config.parallel.step.accumulate = self.precision, 1
        config.parallel.frozen_dtype = self.precision
        return config

    def backbone(self) -> dict[str, int]:
        """Width, depth, heads and patch size of the plain ViT of this size."""
        from vadapt.backbones.vit import VARIANTS

        variant = VARIANTS[self.size]
        return variant | {"depth": self.depth or variant["depth"]}

    def images(self, side: int) -> np.ndarray:
        """Uniform pixels, uint8 [b, h, w, 3]."""
        shape = (self.batch, side, side, 3)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class Pair(NamedTuple):
    """A comparison: vadapt's row and those of what a user would take instead."""

    name: str
    batches: Mapping[str, Mapping[str, int]]  # by platform and size
    rows: tuple[Row, ...]
    # Model FLOPs of a training step, an image; None where nobody counted them.
    flops: Callable[[Job], float | None]


def make_pair(
    name: str,
    titles: tuple[str, str],
    builds: tuple[Callable[..., Training], Callable[..., Training]],
    batches: Mapping[str, Mapping[str, int]],
    flops: Callable[[Job], float | None],
) -> Pair:
    """vadapt's row, and PyTorch's under torch.compile and eager.

    Args:
        titles, builds: of vadapt and of PyTorch; the latter's `build` takes `compiles`.
    """
    ours, theirs = titles
    here, there = builds
    compiled, eager = (functools.partial(there, compiles=flag) for flag in (True, False))
    rows = (
        Row(name, "vadapt", ours, here),
        Row(name, "compiled", f"{theirs}, torch.compile", compiled),
        Row(name, "eager", f"{theirs}, torch eager", eager),
    )
    return Pair(name, batches, rows, flops)


def jax_training(task: Any, config: Any, batch: Mapping[str, np.ndarray]) -> Training:
    """A task on one device, stepped as the loop does."""
    import jax

    from vadapt import sharding
    from vadapt.partition import count, split
    from vadapt.quantization import store
    from vadapt.training.program import make_program

    parts = split(task.build(pretrained=False), config.trainable)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = make_program(parts, task, config, mesh)
    whole = sharding.replicated(mesh)
    frozen = jax.device_put(store(parts.frozen, config.parallel.frozen_dtype), whole)
    begin = jax.jit(program.begin, out_shardings=program.shardings)
    state = begin(jax.device_put(parts.trainable, whole), parts.state)
    placed = jax.device_put(dict(batch), sharding.batch_sharding(mesh))

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return program.trace(placed).lower().compile()

    def step() -> Any:
        nonlocal state
        state, metrics = compiled()(frozen, state, placed)
        return metrics

    return Training(count(state.trainable), step, jax.block_until_ready, jax_peak)


def torch_device(job: Job) -> str:
    """The device of PyTorch's rows, with its threads set.

    Raises:
        Missing: PyTorch has no such device here.
    """
    torch = imported("torch")
    if job.platform != "cpu" and not (job.platform == "gpu" and torch.cuda.is_available()):
        raise Missing(f"torch has no {job.platform} here")
    torch.set_num_threads(job.threads)
    return "cpu" if job.platform == "cpu" else "cuda"


def torch_training(
    job: Job,
    config: Any,
    model: Any,
    loss: Callable[..., Any],
    inputs: Callable[[], Sequence[Any]],
    compiles: bool,
) -> Training:
    """A model of PyTorch under the recipe's AdamW.

    Args:
        loss: of what `inputs` gives anew for every step.
    """
    torch = imported("torch")
    settings = config.optimizer
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    scale = job.batch / settings.lr_batch if settings.lr_batch else 1.0
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.lr * scale,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    forward = torch.compile(loss) if compiles else loss
    device = next(model.parameters()).device.type

    def step() -> Any:
        given = inputs()
        with torch.autocast(device, torch.bfloat16, enabled=job.precision == "bfloat16"):
            value = forward(*given)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    # To read a number waits for the device, and shows that it is one.
    return Training(sum(map(torch.numel, trained)), step, float, torch_peak)


def normaliser(data: Any, device: str) -> Callable[[Any], Any]:
    """From images uint8 [b, 3, h, w] to what a torch model is given."""
    torch = imported("torch")
    mean, std = (
        torch.tensor(np.broadcast_to(value, 3).tolist(), device=device).reshape(1, 3, 1, 1)
        for value in (data.mean, data.std)
    )

    def normalise(images: Any) -> Any:
        return (images.float() / 255.0 - mean) / std

    return normalise


def imported(name: str) -> Any:
    """A framework that may not be here.

    Raises:
        Missing: it is not.
    """
    try:
        return __import__(name)
    except ImportError as error:
        raise Missing(f"not installed ({error.name})") from error


def products(rows: int, weights: float) -> float:
    """FLOPs of so many rows through so many weights."""
    return 2.0 * rows * weights
