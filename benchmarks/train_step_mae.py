"""Masked autoencoders in `train_step`: PAD and full training, beside Hugging Face's ViTMAE."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.side_by_side import Training
from benchmarks.train_step_job import (
    Job,
    imported,
    jax_training,
    make_pair,
    normaliser,
    products,
    torch_device,
    torch_training,
)
from vadapt.configs import pad_msip

BATCHES = {
    "cpu": {"micro": 128, "small": 8, "base": 4},
    "gpu": {"micro": 1024, "small": 512, "base": 256},
    "tpu": {"micro": 1024, "small": 256, "base": 128},
}


def config_of(job: Job, paradigm: str) -> Any:
    """That of the recipe."""
    name = "scenes" if job.size == "micro" else job.size
    config = job.settle(pad_msip.get_config(f"{name},{paradigm}"))
    config.eval.probe_scenes = 0
    if job.depth:
        config.task.decoder_depth = config.model.options.depth = job.depth
    return config


def shape_of(job: Job) -> dict[str, int]:
    """The sizes that both sides are built of."""
    config = config_of(job, "pad")
    task = config.task
    return job.backbone() | {
        "image_size": config.data.image_size[0],
        "decoder_width": task.decoder_width,
        "decoder_depth": task.decoder_depth,
        "decoder_heads": task.decoder_heads,
        "hidden": config.method.hidden,
    }


def ours(job: Job, paradigm: str) -> Training:
    """A paradigm of `configs/pad_msip.py`."""
    from vadapt.tasks.mae import MAETask

    config = config_of(job, paradigm)
    batch = {"image": job.images(config.data.image_size[0])}
    return jax_training(MAETask(config), config, batch)


def theirs(job: Job, paradigm: str, compiles: bool) -> Training:
    """Hugging Face's ViTMAE at the same shapes, under LoRA or trained in full."""
    torch, device = imported("torch"), torch_device(job)
    config = config_of(job, paradigm)
    model = _vit_mae(job, lora=paradigm == "pad").to(device)
    side = config.data.image_size[0]
    images = torch.from_numpy(job.images(side)).permute(0, 3, 1, 2).contiguous().to(device)
    num_patches = (side // job.backbone()["patch_size"]) ** 2

    normalise = normaliser(config.data, device)

    def loss(images: Any, noise: Any) -> Any:
        return model(pixel_values=normalise(images), noise=noise).loss

    def inputs() -> tuple[Any, Any]:
        return images, torch.rand(job.batch, num_patches, device=device)

    return torch_training(job, config, model, loss, inputs, compiles)


def _vit_mae(job: Job, *, lora: bool) -> Any:
    """The model; with LoRA its decoder trains but for the embedding, as in PAD."""
    transformers = imported("transformers")
    peft = imported("peft") if lora else None
    shape = shape_of(job)
    width, narrow = shape["width"], shape["decoder_width"]
    task = config_of(job, "pad").task
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


def flops_per_image(job: Job, paradigm: str) -> float:
    """Of one training step."""
    shape = shape_of(job)
    width, narrow = shape["width"], shape["decoder_width"]
    patches = (shape["image_size"] // shape["patch_size"]) ** 2
    visible = int(patches * (1 - config_of(job, paradigm).task.mask_ratio)) + 1
    numbers = 3 * shape["patch_size"] ** 2

    def attention(tokens: int, width: int, depth: int) -> float:
        return 3 * depth * 2 * products(tokens, tokens * width)

    embed = products(patches, numbers * width)
    trunk = products(visible, 12 * width**2 * shape["depth"])
    trunk += products(visible, width * narrow)  # the decoder's embedding is frozen with it
    decoder = products(patches + 1, 12 * narrow**2 * shape["decoder_depth"] + narrow * numbers)
    total = 3 * decoder + attention(visible, width, shape["depth"])
    total += attention(patches + 1, narrow, shape["decoder_depth"])
    if paradigm == "full":
        return total + 2 * embed + 3 * trunk
    adapters = products(visible, 2 * width * shape["hidden"] * shape["depth"])
    return total + embed + 2 * trunk + 3 * adapters


PAIRS = tuple(
    make_pair(
        paradigm,
        titles,
        (functools.partial(ours, paradigm=paradigm), functools.partial(theirs, paradigm=paradigm)),
        BATCHES,
        functools.partial(flops_per_image, paradigm=paradigm),
    )
    for paradigm, titles in {
        "pad": ("vadapt PAD", "LoRA"),
        "full": ("vadapt full MAE", "full MAE"),
    }.items()
)
