"""Training steps a second against what one would pick instead: `python -m benchmarks.train_step`.

Two pairs, at the same shapes, precision, optimizer and threads, on synthetic images that lie on the
device as uint8 and are normalised within the step:

    pad   vadapt's PAD, and Hugging Face's ViTMAE with PEFT's LoRA on queries and values, of the
          rank that makes as many trainable numbers (its decoder trains, too; no LoRA dropout)
    full  all of the masked autoencoder, in both

torch runs eager and under torch.compile, both with autocast where the precision is bfloat16. Every
row has a process of its own; the rows of a pair are timed in turns, forth and back, and a ratio is
the median over rounds. Building and compiling come before and are reported apart.

Memory is the device's peak while stepping (JAX counts from its start). On a CPU it is what the
process's resident peak while stepping exceeds its size before the model was built, code generators
included. Model FLOPs are those of matrix products: trained weights count three times (forward,
gradients of inputs and of weights), frozen ones twice, attention three times; LoRA counts as the
adapters do, which differ from it by less than 1%. MFU is their share of the device's dense bfloat16
peak.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side_by_side import SECONDS, Missing, Row, Training, jax_peak, judge, measure, table
from vadapt.configs import pad_msip

TOTAL_STEPS = 10_000  # of the schedule; more than any run here takes
BATCHES = {
    "cpu": {"micro": 128, "small": 8, "base": 4},
    "gpu": {"micro": 1024, "small": 512, "base": 256},
    "tpu": {"micro": 1024, "small": 256, "base": 128},
}


class Job(NamedTuple):
    """What every row of a size does alike."""

    size: str
    batch: int
    platform: str
    threads: int
    depth: int  # blocks of the backbone and of the decoder; 0: the recipe's

    @property
    def precision(self) -> str:
        return "float32" if self.platform == "cpu" else "bfloat16"

    def config(self, paradigm: str) -> Any:
        """That of the recipe, with random weights and the job's batch and precision."""
        name = "scenes" if self.size == "micro" else self.size
        config = pad_msip.get_config(f"{name},{paradigm}")
        config.model.weights = ""
        config.batch_size, config.total_steps = self.batch, TOTAL_STEPS
        config.eval.probe_scenes = 0
        if self.depth:
            config.task.decoder_depth = self.depth
        config.parallel.step.compute_dtype, config.parallel.step.accumulate = self.precision, 1
        config.parallel.frozen_dtype = self.precision
        return config

    def shape(self) -> dict[str, int]:
        """The sizes that both sides are built of."""
        from vadapt.backbones.vit import VARIANTS

        config = self.config("pad")
        task = config.task
        variant = VARIANTS[config.model.backbone.removeprefix("vit_")]
        return variant | {
            "depth": self.depth or variant["depth"],
            "image_size": config.data.image_size[0],
            "decoder_width": task.decoder_width,
            "decoder_depth": task.decoder_depth,
            "decoder_heads": task.decoder_heads,
            "hidden": config.method.hidden,
        }


def vadapt_training(job: Job, paradigm: str) -> Training:
    """A paradigm of `configs/pad_msip.py` on one device, stepped as the loop does."""
    import jax
    import jax.numpy as jnp

    from vadapt import sharding
    from vadapt.partition import count, split
    from vadapt.tasks.mae import MAETask
    from vadapt.training.program import make_program
    from vadapt.training.step import cast

    config = job.config(paradigm)
    if job.depth:
        config.model.options.depth = job.depth
    task = MAETask(config)
    parts = split(task.build(), config.trainable)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    program = make_program(parts, task, config, mesh)
    whole = sharding.replicated(mesh)
    frozen = jax.device_put(cast(parts.frozen, jnp.dtype(config.parallel.frozen_dtype)), whole)
    begin = jax.jit(program.begin, out_shardings=program.shardings)
    state = begin(jax.device_put(parts.trainable, whole), parts.state)
    size = tuple(config.data.image_size)
    images = jax.random.bits(jax.random.key(0), (job.batch, *size, 3), jnp.uint8)
    batch = {"image": jax.device_put(images, sharding.batch_sharding(mesh))}

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return program.trace(batch).lower().compile()

    def step() -> Any:
        nonlocal state
        state, metrics = compiled()(frozen, state, batch)
        return metrics

    return Training(count(state.trainable), step, jax.block_until_ready, jax_peak)


def torch_training(job: Job, paradigm: str, compiles: bool) -> Training:
    """Hugging Face's ViTMAE at the same shapes, under LoRA or trained in full."""
    torch: Any = _import("torch")
    if job.platform != "cpu" and not (job.platform == "gpu" and torch.cuda.is_available()):
        raise Missing(f"torch has no {job.platform} here")
    torch.set_num_threads(job.threads)
    device = "cpu" if job.platform == "cpu" else "cuda"
    config = job.config(paradigm)
    data, settings = config.data, config.optimizer
    model = _vit_mae(job, lora=paradigm == "pad").to(device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.lr * job.batch / settings.lr_batch,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    side = data.image_size[0]
    shape = (job.batch, 3, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    num_patches = (side // job.shape()["patch_size"]) ** 2

    def loss(images: Any, noise: Any) -> Any:
        pixels = (images.float() / 255.0 - data.mean) / data.std
        return model(pixel_values=pixels, noise=noise).loss

    forward = torch.compile(loss) if compiles else loss

    def step() -> Any:
        noise = torch.rand(job.batch, num_patches, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=job.precision == "bfloat16"):
            value = forward(images, noise)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    # To read a number waits for the device, and shows that it is one.
    return Training(sum(map(torch.numel, trained)), step, float, peak)


def _vit_mae(job: Job, *, lora: bool) -> Any:
    """The model; with LoRA its decoder trains but for the embedding, as in PAD."""
    transformers = _import("transformers")
    peft = _import("peft") if lora else None
    shape = job.shape()
    width, narrow = shape["width"], shape["decoder_width"]
    task = job.config("pad").task
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=width,
            num_hidden_layers=shape["depth"],
            num_attention_heads=shape["num_heads"],
            intermediate_size=4 * width,
            layer_norm_eps=1e-6,
            image_size=shape["image_size"],
            patch_size=shape["patch_size"],
            decoder_hidden_size=narrow,
            decoder_num_hidden_layers=shape["decoder_depth"],
            decoder_num_attention_heads=shape["decoder_heads"],
            decoder_intermediate_size=4 * narrow,
            mask_ratio=task.mask_ratio,
            norm_pix_loss=task.norm_pixels,
        )
    )
    if peft is not None:
        # An adapter has two maps, a norm, two biases and a gate; a LoRA of rank r twice 2 d r.
        adapter = 2 * width * shape["hidden"] + shape["hidden"] + 5 * width
        settings = peft.LoraConfig(
            r=round(adapter / (4 * width)), target_modules=r"vit\..*(q_proj|v_proj|query|value)"
        )
        model = peft.get_peft_model(model, settings)
        for name, weight in model.named_parameters():
            if ".decoder." in name and "decoder_embed" not in name and "pos_embed" not in name:
                weight.requires_grad_(True)
    return model.train()


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise Missing(f"not installed ({error.name})") from error


_pad = functools.partial(torch_training, paradigm="pad")
_full = functools.partial(torch_training, paradigm="full")
ROWS = (
    Row("pad", "vadapt", "vadapt PAD", functools.partial(vadapt_training, paradigm="pad")),
    Row("pad", "compiled", "LoRA, torch.compile", functools.partial(_pad, compiles=True)),
    Row("pad", "eager", "LoRA, torch eager", functools.partial(_pad, compiles=False)),
    Row("full", "vadapt", "vadapt full MAE", functools.partial(vadapt_training, paradigm="full")),
    Row("full", "compiled", "full MAE, torch.compile", functools.partial(_full, compiles=True)),
    Row("full", "eager", "full MAE, torch eager", functools.partial(_full, compiles=False)),
)


def flops_per_image(job: Job, pair: str) -> float:
    """Of one training step, by the definition at the top."""
    shape = job.shape()
    width, narrow = shape["width"], shape["decoder_width"]
    patches = (shape["image_size"] // shape["patch_size"]) ** 2
    visible = int(patches * (1 - job.config(pair).task.mask_ratio)) + 1
    numbers = 3 * shape["patch_size"] ** 2

    def products(tokens: int, weights: float) -> float:
        return 2.0 * tokens * weights

    def attention(tokens: int, width: int, depth: int) -> float:
        return 3 * depth * 2 * products(tokens, tokens * width)

    embed = products(patches, numbers * width)
    trunk = products(visible, 12 * width**2 * shape["depth"])
    trunk += products(visible, width * narrow)  # the decoder's embedding is frozen with it
    decoder = products(patches + 1, 12 * narrow**2 * shape["decoder_depth"] + narrow * numbers)
    total = 3 * decoder + attention(visible, width, shape["depth"])
    total += attention(patches + 1, narrow, shape["decoder_depth"])
    if pair == "full":
        return total + 2 * embed + 3 * trunk
    adapters = products(visible, 2 * width * shape["hidden"] * shape["depth"])
    return total + embed + 2 * trunk + 3 * adapters


def _device() -> tuple[str, str]:
    """Platform and kind, asked in a process that lets the device go again."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\n')"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    platform, kind = output.splitlines()[-2:]
    return ("gpu" if platform in ("cuda", "rocm") else platform), kind


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "flax", "optax", "torch", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=list(BATCHES["cpu"]))
    parser.add_argument("--batch", type=int, help="by default what suits the device")
    parser.add_argument("--depth", type=int, default=0, help="blocks, instead of the recipe's")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a row in a round")
    who = list(dict.fromkeys(row.who for row in ROWS))
    parser.add_argument("--who", nargs="+", choices=who, default=who)
    parser.add_argument("--out", type=Path, help="a JSON file to write; the table goes beside it")
    options = parser.parse_args()
    # Rows share a device: none may take all of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platform, kind = _device()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.train_step " + " ".join(sys.argv[1:]),
        "date": str(datetime.date.today()), "device": kind, "platform": platform,
        "threads": threads, "versions": _versions(), "sizes": [],
    }  # fmt: skip
    pages = []
    for size in options.size or (["micro", "small"] if platform == "cpu" else ["base"]):
        batch = options.batch or BATCHES.get(platform, BATCHES["gpu"])[size]
        job = Job(size, batch, platform, threads or 1, options.depth)
        rows: list[dict[str, Any]] = []
        for pair in dict.fromkeys(row.pair for row in ROWS):
            chosen = [row for row in ROWS if row.pair == pair and row.who in options.who]
            results = measure(chosen, job, options.rounds, options.seconds)
            judge(results, flops_per_image(job, pair), kind)
            rows += results
        report["sizes"].append(job._asdict() | {"precision": job.precision, "rows": rows})
        pages.append(f"vit_{size}, {job.precision}, batch {batch}\n\n{table(rows)}\n")
    text = "\n".join(
        [f"# Training steps on {kind}\n", f"    {report['command']}\n", _line(report), *pages]
    )
    print(text)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")


def _line(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return f"{report['date']}; {report['threads']} threads; {versions}.\n"


if __name__ == "__main__":
    main()
