"""Golden cases of PAD's recipe: who trains, at what rate, and ten updates of the whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_modules.fields import Fields
from tests.golden_modules.pad_models import build_autoencoder, imported, nhwc
from vadapt.nn.positions import relative_position_index
from vadapt.partition import EVERYTHING, flatten, split, variables
from vadapt.tasks.mae import MaskedAutoencoder, random_masking
from vadapt.training.layer_decay import layer_factors
from vadapt.training.optimizers import decays, make_optimizer
from vadapt.training.schedules import warmup_cosine
from vadapt.training.step import StepOptions, init_state, make_step, single
from vadapt.weights.families.mae import MAE
from vadapt.weights.tables import revert

Arrays = dict[str, Any]
WEIGHT_DECAY = 0.05  # of PAD's recipe, where a file does not state it


def official(values: dict[str, Any]) -> Arrays:
    """Arrays of a masked autoencoder under the released code's names and layouts."""
    reverted, unknown = revert(values, MAE, backbone="backbone/")
    if unknown:
        raise LookupError(f"no official name for {unknown}")
    return reverted


def training_steps(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Steps of the real train step on one batch, the masks given; dropout off."""
    adapted = config | {"adapt": True, "patch_wise_scalar": True}
    model = imported(build_autoencoder(adapted), params)
    parts = split(model)
    steps = config["epochs"] * config["steps_per_epoch"]
    late = (round(config["scale_epoch"] * config["epochs"]) + 1) * config["steps_per_epoch"]
    settings = {
        "lr": config["lr"],
        "schedule": {"name": "cosine"},  # by epochs: below
        "beta1": config["betas"][0],
        "beta2": config["betas"][1],
        "epsilon": config["eps"],
        "weight_decay": config["weight_decay"],
        "rules": ((r".*/gate/proj/kernel", {"start": late / steps}),),
    }

    def schedule(step: Any) -> Any:
        return warmup_cosine(
            jnp.asarray(step, jnp.float32) / config["steps_per_epoch"],
            peak=config["lr"],
            end=0.0,
            warmup=config["warmup_epochs"],
            total=config["epochs"],
        )

    def loss(model: MaskedAutoencoder, batch: Arrays, key: Any) -> Any:
        masking = random_masking(batch["noise"], config["mask_ratio"])
        _, prediction = model(batch["images"], masking)
        norm_pixels = config["norm_pix_loss"]
        return model.loss(batch["images"], prediction, masking.mask, norm_pixels=norm_pixels), {}

    optimizer = make_optimizer(settings, parts.trainable, schedule, total_steps=steps)
    options = StepOptions()
    learners = single(loss, optimizer, schedule)
    step = jax.jit(make_step(parts.graph, learners, options, seed=0))
    state = init_state(parts, learners, options)
    images, log = nhwc(inputs["imgs"]), []
    for noise in inputs["noise"]:
        state, metrics = step(parts.frozen, state, {"images": images, "noise": noise})
        log.append(metrics)
    return {
        "loss": np.stack([metrics["loss"] for metrics in log]),
        "lr": np.stack([metrics["learning_rate"] for metrics in log]),
        "scalar_pred_frozen": np.arange(steps) < late,
        **{f"final/{k}": v for k, v in official(flatten(state.trainable)).items()},
    }


def counts_in_training_steps(name: str, array: np.ndarray) -> np.ndarray:
    """Which numbers of an output are compared: not the key third of a qkv bias.

    Its gradient is zero in exact arithmetic, so that Adam amplifies rounding there.
    """
    counts = np.ones(array.shape, bool)
    if name.endswith("attn.qkv.bias") and not name.startswith("grad/"):
        third = array.shape[0] // 3
        counts[third : 2 * third] = False
    return counts


def trainable_set(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Names that train and that decay; a layer has a learned scale where its tokens have none."""
    sizes = {"num_heads": 2, "decoder_num_heads": 2, "mlp_ratio": 4, "ln_eps": 1e-6}
    sizes |= {"adapt": True, "adapt_scalar": "learnable_scalar"}
    model = build_autoencoder(sizes | config)
    values = {path: value[...] for path, value in variables(model).items()}
    trains = set(official(flatten(split(model).trainable)))
    updated = {**flatten(split(model, EVERYTHING).trainable)}
    decayed = {path: value for path, value in updated.items() if decays(path, value)}
    names = sorted(official(values))
    return {
        "name": np.array(names),
        "numel": np.array([official(values)[name].size for name in names], np.int32),
        "trains": np.array([name in trains for name in names]),
        "weight_decay": WEIGHT_DECAY * np.array([name in official(decayed) for name in names]),
    }


def layer_decay_groups(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Rates and decays by name; the file gives the encoder's depth only, sizes do not matter.

    Adapters, if there are some, are PAD's own, with a scale for every token.
    """
    sizes = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 8,
        "num_heads": 2,
        "decoder_embed_dim": 8,
        "decoder_depth": 2,
        "decoder_num_heads": 2,
        "mlp_ratio": 4,
        "ln_eps": 1e-6,
        "down_size": 4,
        "patch_wise_scalar": True,
    }
    parts = split(build_autoencoder(sizes | config), EVERYTHING)
    leaves = flatten(parts.trainable)
    scales = layer_factors(list(leaves), config["layer_decay"])
    decay = {
        path: config["weight_decay"] * decays(path, leaf, by_layer=True)
        for path, leaf in leaves.items()
    }
    by_name = {name: path for path, leaf in leaves.items() for name in official({path: leaf})}
    names = sorted(by_name)
    return {
        "name": np.array(names),
        "lr_scale": np.array([scales[by_name[name]] for name in names]),
        "weight_decay": np.array([decay[by_name[name]] for name in names]),
    }


def relative_index(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return {"index": relative_position_index(tuple(config["window"]))}


MODULES = {
    "PAD pre-training steps": training_steps,
    "PAD trainable set": trainable_set,
    "param_groups_lrd": layer_decay_groups,
    "RelativePositionBias.index": relative_index,
}
COUNTS = {"PAD pre-training steps": counts_in_training_steps}
