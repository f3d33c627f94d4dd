"""Golden cases of Rein's recipe: rates over the steps, what decays, and inference of the whole."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.rein_head import Segmenter
from vadapt.tasks.sliding import Inference
from vadapt.training.optim import warmup_polynomial
from vadapt.weights.dinov2 import DINOV2
from vadapt.weights.rein import REIN, with_rein

# What does not decay, by vadapt's paths: norms, tokens, embeddings of queries and levels.
UNDECAYED = r".*(norm|norms)(/.*|\d)|.*/(tokens(_[ab])?|scale|level_embed|query_embed)"


def schedule(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    *before, poly = config["schedulers"]
    rate = warmup_polynomial(
        jnp.asarray(inputs["iteration"], jnp.float32),
        peak=config["base_lr"],
        end=poly["eta_min"],
        warmup=before[0]["end"] if before else 0,
        total=poly["end"],
        power=poly["power"],
        start=before[0]["start_factor"] if before else 1.0,
    )
    return {"lr": rate}


def groups(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    """How many names of each kind our rules call so; the file lists rates and decays by name."""
    table = with_rein(DINOV2)

    def path(name: str) -> str | None:
        found = table.find(name.removeprefix("backbone.")) or REIN.find(name)
        return found[0] if found else None

    def rates(path: str) -> list[float]:
        decays = not re.fullmatch(UNDECAYED, path)
        return [config["lr"], config["weight_decay"] * decays]

    places = {name: path(name) for name in (*config["optimized"], *config["frozen"])}
    trained = {
        name: rates(place)
        for name, place in places.items()
        if place is not None and place.startswith(("adapter/", "head/"))
    }
    wrong = {
        name: (rate, config["optimized"].get(name))
        for name, rate in trained.items()
        if config["optimized"].get(name) != rate
    }
    if wrong:
        raise LookupError(f"rates differ: {wrong}")
    return {
        "n_optimized": np.asarray(len(trained)),
        "n_frozen": np.asarray(len(places) - len(trained)),
    }


def predict(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    """An image in windows, at its own size and at that of its labels."""
    model = imported(Segmenter(config), params)
    settings, before = config["test_cfg"], config["data_preprocessor"]
    images = nhwc(inputs["image_bgr_uint8"][None])[..., ::-1].astype(jnp.float32)
    mean, std = (jnp.asarray(before[key], jnp.float32) for key in ("mean", "std"))
    images = (images - jnp.broadcast_to(mean, images.shape)) / jnp.broadcast_to(std, images.shape)
    inference = Inference(tuple(settings["crop_size"]), tuple(settings["stride"]))

    def score(tiles: Any) -> Any:
        return model.head.scores(model(tiles), tiles.shape[1:3])

    own = inference(score, images, images.shape[1:3])
    original = inference(score, images, config["out_shapes"]["pred"])
    return {
        "seg_logits": own[0].transpose(2, 0, 1),
        "seg_logits_ori": original[0].transpose(2, 0, 1),
        "pred": original[0].argmax(-1),
    }


MODULES = {
    "lr_schedule": schedule,
    "PEFTOptimWrapperConstructor": groups,
    "EncoderDecoder(slide)": predict,
}
