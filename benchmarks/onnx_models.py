"""Models that jax2onnx takes to ONNX, with the same numbers: `python -m benchmarks.onnx_models`.

Each model is small and random, goes to ONNX with any batch size (or, where that fails, for a batch
of two), and is run by ONNX Runtime on two images beside JAX. jax2onnx wants an older orbax than
vadapt does: install it into an environment of its own, with `pip install --no-deps` of vadapt.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import re
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt import adapters, models
from vadapt.heads import label_head, segmentation_head
from vadapt.partition import variables
from vadapt.system import System
from vadapt.tasks.segmentation import pixel_scores

SAME = 1e-4  # of the largest number
SIDE = 56
VIT = {"depth": 2, "width": 32, "num_heads": 4, "image_size": SIDE}
MASK2FORMER = {
    "num_queries": 100,
    "width": 256,  # of Rein's queries
    "outputs": 16,
    "depth": 2,
    "num_heads": 2,
    "hidden": 16,
    "encoder_depth": 1,
    "encoder_hidden": 16,
}
Function = Callable[[Any, jax.Array], Any]


def features(model: Any, images: jax.Array) -> jax.Array:
    """The last map of a backbone."""
    return model.features(images, as_grid=True)


def logits(model: Any, images: jax.Array) -> jax.Array:
    """Scores of the labels of images."""
    return model(images).logits


def backbone(name: str, **options: Any) -> tuple[Any, Function]:
    """A backbone that `vadapt.create` knows."""
    return models.create(name, **options), features


def adapted(method: str, *, fold: bool = False, **options: Any) -> tuple[Any, Function]:
    """A small DINOv2 with a method whose weights are all drawn, folded if asked for."""
    model = adapters.apply(models.create("dinov2_small", **VIT), method, **options)
    draw(model)
    return (adapters.fold(model) if fold else model), features


def segmenter(head: str, method: str = "", **options: Any) -> tuple[Any, Function]:
    """A head that scores pixels on a small DINOv2, adapted or not."""
    model = models.create("dinov2_small", **VIT)
    if method:
        model = adapters.apply(model, method)
    layers = (0, 0, 1, 1) if head != "linear" else (1,)
    rngs = nnx.Rngs(0)
    made = segmentation_head(head, [VIT["width"]] * len(layers), 5, rngs=rngs, **options)
    return System(model, made, layers=layers), pixel_scores


def recognizer(name: str, head: str, **options: Any) -> tuple[Any, Function]:
    """A head that scores labels on a small backbone."""
    model = models.create(name, **options)
    made = label_head(head, models.widths(model, (-1,)), 5, rngs=nnx.Rngs(0))
    return System(model, made, layers=(-1,)), logits


part = functools.partial
SAM = {"depth": 2, "width": 32, "num_heads": 2, "window": 3, "global_blocks": (1,), "neck": 16}
CASES: dict[str, Callable[[], tuple[Any, Function]]] = {
    "ViT (vit_tiny)": part(backbone, "vit_tiny", depth=2, image_size=64),
    "DINOv2 with registers": part(backbone, "dinov2_small_reg", **VIT),
    "DINOv3 (rotary)": part(backbone, "dinov3_small", **{**VIT, "image_size": 64}),
    "EVA-02 (rotary, gated)": part(backbone, "eva02_base", **VIT),
    "CLIP": part(backbone, "clip_base", **{**VIT, "image_size": 64}),
    "SigLIP": part(backbone, "siglip_base", **{**VIT, "image_size": 64}),
    "SAM's encoder": part(backbone, "sam_base", patch_size=8, image_size=40, **SAM),
    "ResNet-50": part(backbone, "resnet50"),
    "ConvNeXt": part(backbone, "convnext_tiny", depths=(1, 1, 2, 1), widths=(8, 16, 24, 32)),
    "ViG": part(backbone, "vig_micro", image_size=64),
    "DINOv2 with LoRA": part(adapted, "lora", rank=2),
    "DINOv2 with LoRA, folded": part(adapted, "lora", rank=2, fold=True),
    "DINOv2 with PAD": part(adapted, "patchwise_scale", hidden=4),
    "DINOv2 with Rein": part(adapted, "rein"),
    "DINOv2, linear head": part(segmenter, "linear"),
    "DINOv2, UPerNet": part(segmenter, "upernet"),
    "DINOv2, Rein, Mask2Former": part(segmenter, "mask2former", "rein", **MASK2FORMER),
    "DINOv2, linear labels": part(recognizer, "dinov2_small", "linear", **VIT),
    "ViG, GKGNet's labels": part(recognizer, "vig_micro", "label_graph", image_size=64),
}


def draw(model: nnx.Module) -> None:
    """Draw what starts at zero anew, so that it acts."""
    rng = np.random.default_rng(0)
    for value in variables(model).values():
        array = np.asarray(value[...])
        if array.dtype == np.float32 and not array.any():
            value[...] = jnp.asarray(0.1 * rng.standard_normal(array.shape), jnp.float32)


def measure(make: Callable[[], tuple[Any, Function]], file: Path) -> tuple[str, str, str]:
    """The batch sizes that a model's file takes, how far its numbers are off, and what failed."""
    model, function = make()
    graph, state = nnx.split(model)
    side = 4 * getattr(getattr(model, "backbone", model), "patch_size", 8)
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)

    def call(x: jax.Array) -> jax.Array:
        return function(nnx.merge(graph, state), x)

    wanted = np.asarray(jax.jit(call)(images))
    failed = ""
    for batch in ("B", 2):
        try:
            found = converted(call, (batch, *images.shape[1:]), images, file)
        except Exception as error:  # converters and run times raise whatever they like
            lines = [line for line in str(error).splitlines() if line.strip()]
            text = f"{type(error).__name__}: {' '.join(lines)}"
            failed += f"{'any batch' if batch == 'B' else 'two'}: {short(text)} "
            continue
        if found.shape != wanted.shape:
            failed += f"{'any batch' if batch == 'B' else 'two'}: shape {found.shape} "
            continue
        off = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        return ("any" if batch == "B" else "fixed"), f"{off:.0e}", failed
    return "none", "", failed


def converted(
    call: Callable[..., Any], shape: tuple[Any, ...], images: np.ndarray, file: Path
) -> np.ndarray:
    """The output of ONNX Runtime for the function as jax2onnx writes it."""
    import jax2onnx
    import onnxruntime

    jax2onnx.to_onnx(call, [shape], return_mode="file", output_path=str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return np.asarray(session.run(None, {name: images})[0])


def short(text: str) -> str:
    """A message without the addresses and the white space in it."""
    return re.sub(r"\s+", " ", re.sub(r"0x[0-9a-f]+", "", text)).replace("|", "/")[:220]


def main() -> None:
    """Measures every model, prints a table and stores it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a .md file for the table")
    parser.add_argument("--only", default="", help="models whose name has this")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/onnx_models"), help="for files")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    lines = ["| model | batch | off by | same | what failed |", "|---|---|---|---|---|"]
    counts: collections.Counter[str] = collections.Counter()
    for name, make in CASES.items():
        if arguments.only not in name:
            continue
        file = arguments.folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.onnx"
        batch, off, failed = measure(make, file)
        same = "yes" if off and float(off) <= SAME else "no"
        counts[same] += 1
        lines.append(f"| {name} | {batch} | {off} | {same} | {failed} |")
        print(lines[-1], flush=True)
    packages = ("jax", "flax", "jax2onnx", "onnx", "onnxruntime")
    head = [
        "# Models in ONNX",
        "",
        f"`python -m benchmarks.onnx_models`, {time.strftime('%Y-%m-%d')}; {os.cpu_count()} CPU "
        f"cores, {', '.join(f'{package} {version(package)}' for package in packages)}.",
        f"Same: within {SAME} of the largest number. {counts['yes']} of {counts.total()} are.",
        "",
    ]
    if arguments.out:
        arguments.out.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
