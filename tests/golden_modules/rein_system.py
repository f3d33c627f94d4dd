"""Golden cases of Rein's whole systems: a training step's loss, and inference."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.programs import compiled
from tests.golden_modules.rein_adapter import grafted
from tests.golden_modules.rein_backbones import build_dinov2
from tests.golden_modules.rein_head import build_head
from tests.golden_modules.rein_loss import assigned, points_by_class, settings_of_head
from vadapt.adapters import rein
from vadapt.losses import mask2former as losses
from vadapt.necks.pyramid import pyramid
from vadapt.tasks.sliding import Inference


class Segmenter(nnx.Module):
    """A grafted trunk and the head that its queries go to."""

    def __init__(self, config: Fields, params: Arrays):
        only(config, type=("EncoderDecoder",))
        trunk, head = config["backbone"], config["decode_head"]
        only(trunk, type=("ReinsDinoVisionTransformer",))
        only(head, type=("ReinMask2FormerHead",))
        only(trunk["reins_config"], link_token_to_query=(True,))
        self.taps = sorted(trunk["out_indices"])
        self.backbone = grafted(build_dinov2(trunk, params), trunk)
        self.head = build_head(head, linked=True)

    def __call__(self, images: Any) -> Any:
        maps = self.backbone.features(images, self.taps, as_grid=True, norm=False)
        return self.head(pyramid(maps), rein.queries(self.backbone))


class Preprocessor(NamedTuple):
    """How images become a model's input: channels turned around if asked, then normalised."""

    reverse: bool
    mean: Any
    std: Any

    def __call__(self, images: Any) -> Any:
        images = (images[..., ::-1] if self.reverse else images).astype(jnp.float32)
        mean, std = (jnp.broadcast_to(row, images.shape) for row in (self.mean, self.std))
        return (images - mean) / std


class System(NamedTuple):
    """All parts of a golden file's system, of which a case runs some."""

    model: Segmenter
    preprocess: Preprocessor
    inference: Inference


def build_system(config: Fields, params: Arrays) -> System:
    """The system of a golden file's settings, with its parameters."""
    before, test, patch = (
        config["data_preprocessor"],
        config["test_cfg"],
        config["backbone"]["patch_size"],
    )
    if config["train_cfg"]:
        raise ValueError("train_cfg has settings; vadapt's are those of the head")
    only(before, type=("SegDataPreProcessor",), pad_val=(0,), seg_pad_val=(255,))
    if any(side % patch for side in before["size"]):
        raise ValueError(f"training pads to {before['size']}, no multiple of a patch of {patch}")
    only(test, mode=("whole", "slide"))
    windows = test["mode"] == "slide"
    return System(
        imported(Segmenter(config, params), params),
        Preprocessor(
            before["bgr_to_rgb"],
            *(jnp.asarray(before[name], jnp.float32) for name in ("mean", "std")),
        ),
        Inference(tuple(test["crop_size"]), tuple(test["stride"])) if windows else Inference(),
    )


def train_step(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """All terms of a whole model's loss, with the file's points for each prediction."""
    head, labels = config["decode_head"], inputs["gt"]
    # The file's images are preprocessed.
    same(config["data_preprocessor"], size=list(inputs["image"].shape[2:]))
    found = build_system(config, params).model(nhwc(inputs["image"]))
    settings = settings_of_head(head)
    present = losses.classes_present(labels, head["num_classes"])
    points, numbers = [], []
    for i, (classes, masks) in enumerate(zip(*found, strict=True)):
        matching = inputs[f"layer{i}/match_points"]
        costs = losses.matching_cost(classes, masks, matching, labels, settings)
        queries = losses.match(costs, present)
        points.append(points_by_class(inputs, f"layer{i}/", queries, present))
        numbers.append(assigned(queries, present, head["num_queries"]))
    points = losses.Points(*(jnp.stack(kind) for kind in zip(*points, strict=True)))
    terms = losses.mask2former_loss(*found, labels, points=points, settings=settings)
    named = {f"decode_{name.replace('.', '_')}": value for name, value in terms.items()}
    return {**named, "total": sum(terms.values()), "assigned_gt_plus1": jnp.stack(numbers)}


def predict(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """An image in windows, at its own size and at that of its labels."""
    model, preprocess, inference = build_system(config, params)
    images = preprocess(nhwc(inputs["image_bgr_uint8"][None]))

    def score(tiles: Any) -> Any:
        return model.head.scores(model(tiles), tiles.shape[1:3])

    own = inference(score, images, images.shape[1:3])
    original = inference(score, images, config["out_shapes"]["pred"])
    return {
        "seg_logits": own[0].transpose(2, 0, 1),
        "seg_logits_ori": original[0].transpose(2, 0, 1),
        "pred": original[0].argmax(-1),
    }


MODULES = {"EncoderDecoder(loss)": train_step, "EncoderDecoder(slide)": compiled(predict)}
