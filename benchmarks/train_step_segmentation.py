"""Segmentation in `train_step`: linear heads and Mask2Former, beside Hugging Face's models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

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
from vadapt.configs import linear_dinov2, parts, rein_gta

RANK = 8  # of LoRA on queries and values
REGIONS = 8  # a side of a mask, of one class each
BATCHES = {
    "cpu": {"micro": 128, "small": 8, "base": 4},
    "gpu": {"micro": 1024, "small": 256, "base": 128},
    "tpu": {"micro": 1024, "small": 256, "base": 128},
}
MASK_BATCHES = {
    "cpu": {"micro": 16, "small": 2, "base": 2},
    "gpu": {"micro": 64, "small": 16, "base": 16},
    "tpu": {"micro": 64, "small": 16, "base": 16},
}


def config_of(job: Job, method: str) -> Any:
    """The recipe at 224 px, on a DINOv2 of the job's size."""
    queries = method == "rein"
    config = rein_gta.get_config() if queries else linear_dinov2.get_config()
    shape = job.backbone()
    micro = job.size == "micro"
    if queries:
        shape["depth"] = max(shape["depth"], 4)  # of which maps are taken
    if not (queries or micro):
        shape["patch_size"] = 14
    config.data.image_size = (64, 64) if micro else (224, 224)
    config.data.num_classes = 19 if queries else 150
    config.eval.crop = ()
    config.model = parts.backbone("dinov2_small", "", **shape)
    depth = shape["depth"]
    config.task.layers = tuple(depth * k // 4 - 1 for k in range(1, 5)) if queries else (depth - 1,)
    if queries:
        if job.depth:
            config.head.depth = config.head.encoder_depth = job.depth
        if micro:
            config.head.update({"width": 64, "outputs": 64, "hidden": 128, "num_heads": 4})
            config.head.update({"encoder_hidden": 128, "loss_points": 512})
            config.method.query_width = 64
    elif method == "lora":
        config.method = parts.named("lora", rank=RANK, targets=("q", "v"))
    return job.settle(config)


def batch_of(job: Job, config: Any) -> dict[str, np.ndarray]:
    """Images and masks of square regions, whose classes are drawn."""
    side = config.data.image_size[0]
    draws = np.random.default_rng(1)
    shape = (job.batch, REGIONS, REGIONS)
    coarse = draws.integers(0, config.data.num_classes, shape, np.uint8)
    nearest = np.arange(side) * REGIONS // side
    masks = coarse[:, nearest][:, :, nearest]
    sizes = np.full((job.batch, 2), side, np.int32)
    return {"image": job.images(side), "mask": masks, "size": sizes}


def ours(job: Job, method: str) -> Training:
    """The segmentation task."""
    from vadapt.tasks.segmentation import SegmentationTask

    config = config_of(job, method)
    return jax_training(SegmentationTask(config), config, batch_of(job, config))


def linear_theirs(job: Job, method: str, compiles: bool) -> Training:
    """Dinov2 under batch norm and a convolution of 1x1, as vadapt's linear head."""
    torch, transformers = imported("torch"), imported("transformers")
    device = torch_device(job)
    config = config_of(job, method)
    shape, data = config.model.options, config.data
    backbone = transformers.Dinov2Model(_dinov2(config)).requires_grad_(False)
    if method == "lora":
        backbone = _with_lora(backbone, RANK)
    head = torch.nn.Sequential(
        torch.nn.BatchNorm2d(shape.width), torch.nn.Conv2d(shape.width, data.num_classes, 1)
    )
    model = torch.nn.ModuleDict({"backbone": backbone, "head": head}).to(device).train()
    batch = batch_of(job, config)
    images, masks = _torch_batch(batch, device)
    rows = data.image_size[0] // shape.patch_size
    normalise = normaliser(data, device)

    def loss(images: Any, masks: Any) -> Any:
        with torch.set_grad_enabled(method == "lora"):
            tokens = model["backbone"](pixel_values=normalise(images)).last_hidden_state
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, rows))
        logits = model["head"](maps).float()
        full = torch.nn.functional.interpolate(logits, size=masks.shape[1:], mode="bilinear")
        return torch.nn.functional.cross_entropy(full, masks, ignore_index=255)

    return torch_training(job, config, model, loss, lambda: (images, masks), compiles)


def mask2former_theirs(job: Job, method: str, compiles: bool) -> Training:
    """Mask2Former on a Dinov2 with LoRA, whose maps are resized as Rein's are."""
    device = torch_device(job)
    config = config_of(job, method)
    model = _mask2former(config).to(device).train()
    batch = batch_of(job, config)
    images, masks = _torch_batch(batch, device)
    present = [mask.unique() for mask in masks]
    targets = [
        (mask == classes[:, None, None]).float()
        for mask, classes in zip(masks, present, strict=True)
    ]
    normalise = normaliser(config.data, device)

    def loss(images: Any, targets: Any, present: Any) -> Any:
        pixels = normalise(images)
        return model(pixel_values=pixels, mask_labels=targets, class_labels=present).loss.sum()

    return torch_training(job, config, model, loss, lambda: (images, targets, present), compiles)


def _mask2former(config: Any) -> Any:
    """The model, with a frozen backbone under LoRA of as many numbers as Rein's tokens have."""
    transformers = imported("transformers")
    shape, head = config.model.options, config.head
    backbone = _dinov2(
        config,
        out_features=[f"stage{layer + 1}" for layer in config.task.layers],
        apply_layernorm=False,
    )
    from vadapt.heads.mask2former import Mask2FormerHead

    sizes = _defaults(Mask2FormerHead.__init__) | head.to_dict()
    settings = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=config.data.num_classes,
        feature_size=sizes["width"],
        mask_feature_size=sizes["outputs"],
        hidden_dim=sizes["width"],
        encoder_layers=sizes["encoder_depth"],
        encoder_feedforward_dim=sizes["encoder_hidden"],
        decoder_layers=sizes["depth"] + 1,  # it counts the prediction before the first
        dim_feedforward=sizes["hidden"],
        num_attention_heads=sizes["num_heads"],
        num_queries=sizes["num_queries"],
        train_num_points=sizes["loss_points"],
    )
    model = transformers.Mask2FormerForUniversalSegmentation(settings)
    pixels = model.model.pixel_level_module
    pixels.encoder.requires_grad_(False)
    width, depth = shape.width, shape.depth
    tokens = depth * 16 * (100 + width) + 2 * width * (width + 1)
    adapted = _with_lora(pixels.encoder, max(1, round(tokens / (4 * width * depth))))
    pixels.encoder = _pyramid(adapted)
    return model


def _pyramid(backbone: Any) -> Any:
    """The backbone's maps at strides of 1/4, 1/2, 1 and 2 patches, by `vadapt.necks.pyramid`."""
    torch = imported("torch")
    from vadapt.necks.pyramid import FACTORS

    class Pyramid(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, pixel_values: Any) -> Any:
            maps = self.backbone(pixel_values).feature_maps
            resize = functools.partial(torch.nn.functional.interpolate, mode="bilinear")
            scaled = [
                resize(x, scale_factor=factor) for x, factor in zip(maps, FACTORS, strict=True)
            ]
            return SimpleNamespace(feature_maps=scaled)

    return Pyramid()


def _defaults(build: Callable[..., Any]) -> dict[str, Any]:
    import inspect

    return {name: x.default for name, x in inspect.signature(build).parameters.items()}


def _dinov2(config: Any, **more: Any) -> Any:
    """Settings of a Dinov2 of the config's shape."""
    shape = config.model.options
    return imported("transformers").Dinov2Config(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.num_heads,
        image_size=config.data.image_size[0],
        patch_size=shape.patch_size,
        **more,
    )


def _with_lora(backbone: Any, rank: int) -> Any:
    peft = imported("peft")
    settings = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=r".*(q_proj|v_proj|query|value)"
    )
    return peft.get_peft_model(backbone, settings)


def _torch_batch(batch: dict[str, np.ndarray], device: str) -> tuple[Any, Any]:
    """Images uint8 [b, 3, h, w] and labels int64 [b, h, w]."""
    torch = imported("torch")
    images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous().to(device)
    return images, torch.from_numpy(batch["mask"]).long().to(device)


def linear_flops(job: Job, method: str) -> float:
    """Of one training step of a linear head; the loss counts for nothing."""
    config = config_of(job, method)
    shape = config.model.options
    width, depth = shape.width, shape.depth
    patches = (config.data.image_size[0] // shape.patch_size) ** 2
    embed = products(patches, 3 * shape.patch_size**2 * width)
    trunk = products(patches + 1, 12 * width**2 * depth)
    attention = depth * 2 * products(patches + 1, (patches + 1) * width)
    head = products(patches, width * config.data.num_classes)
    if method == "linear":
        return embed + trunk + attention + 2 * head
    lora = products(patches + 1, 2 * 2 * width * RANK * depth)
    return embed + 2 * trunk + 3 * (attention + head + lora)


def _no_flops(job: Job) -> None:
    """Nobody counted Mask2Former's."""


PAIRS = (
    *(
        make_pair(
            name,
            titles,
            (
                functools.partial(ours, method=name),
                functools.partial(linear_theirs, method=name),
            ),
            BATCHES,
            functools.partial(linear_flops, method=name),
        )
        for name, titles in {
            "linear": ("vadapt frozen DINOv2, linear head", "HF Dinov2, linear head"),
            "lora": ("vadapt LoRA, linear head", "HF Dinov2, PEFT LoRA, linear head"),
        }.items()
    ),
    make_pair(
        "mask2former",
        ("vadapt Rein, Mask2Former", "HF Mask2Former, PEFT LoRA"),
        (
            functools.partial(ours, method="rein"),
            functools.partial(mask2former_theirs, method="rein"),
        ),
        MASK_BATCHES,
        _no_flops,
    ),
)
