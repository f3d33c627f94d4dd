"""The optimizer: AdamW, warm-up cosine, and per-path rules for decay, rate and late starts."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.partition import Tree, flatten, path_name

Schedule = Callable[[Any], Any]


def warmup_cosine(
    progress: Float[Array, "*n"] | float, *, peak: float, end: float, warmup: float, total: float
) -> Float[Array, "*n"]:
    """Learning rate after `progress` of `total`: linear warm-up from 0, then half a cosine.

    All three lengths are in one unit, epochs (fractions count) or steps.

    Source: MAE, arXiv:2111.06377, released code (`adjust_learning_rate`).
    """
    progress = jnp.asarray(progress, jnp.float32)
    rising = peak * progress / max(warmup, 1e-9)
    # sin^2 of half the angle is (1 + cos) / 2 without its cancellation near the end in float32.
    left = (total - progress) / max(total - warmup, 1e-9)
    falling = end + (peak - end) * jnp.square(jnp.sin(0.5 * jnp.pi * left))
    return jnp.where(progress < warmup, rising, falling)


def warmup_polynomial(
    step: Float[Array, "*n"] | float,
    *,
    peak: float,
    end: float,
    warmup: float,
    total: float,
    power: float,
    start: float = 1e-6,
) -> Float[Array, "*n"]:
    """Learning rate of a step, from 0: linear warm-up from `start` * peak, then a polynomial.

    Both parts reach their end with their last step: the last of all has the rate `end`.

    Source: mmengine's LinearLR and PolyLR, as Rein (arXiv:2312.04265) and PAD train heads.
    """
    step = jnp.asarray(step, jnp.float32)
    rising = peak * (start + (1 - start) * step / max(warmup - 1, 1))
    left = (total - 1 - step) / max(total - warmup - 1, 1)  # 1 minus the rest would cancel
    falling = end + (peak - end) * jnp.clip(left, 0.0, 1.0) ** power
    return jnp.where(step < warmup, rising, falling)


def warmup_steps(
    step: Float[Array, "*n"] | float,
    *,
    peak: float,
    warmup: float,
    drops: Sequence[float],
    factor: float = 0.1,
    start: float = 1e-3,
) -> Float[Array, "*n"]:
    """Learning rate of a step, from 0: linear warm-up from `start` * peak, then a staircase.

    Args:
        drops: steps from which on the rate is `factor` times what it was.

    Source: mmcv's StepLrUpdater with a linear warm-up, as GKGNet (arXiv:2308.14378) trains.
    """
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.full_like(step, peak)
    for drop in drops:
        rate = jnp.where(step >= drop, factor * rate, rate)
    return rate * jnp.minimum(start + (1 - start) * step / max(warmup, 1e-9), 1.0)


def learning_rate(config: Any, total_steps: int, batch_size: int) -> Schedule:
    """The run's schedule of the step number, from `config.optimizer`.

    Fields: `base_lr` (for 256 images a batch; the peak is base_lr * batch_size / 256), `end_lr`,
    `warmup_share` (of all steps, in [0, 1)), and `power` of a polynomial or `drops` of a staircase
    (shares of all steps, from each of which on the rate is a tenth; there `end_lr` is not read);
    without either it is a cosine.
    """
    lengths = {
        "peak": config["base_lr"] * batch_size / 256,
        "end": config["end_lr"],
        "warmup": config["warmup_share"] * total_steps,
        "total": total_steps,
    }

    def schedule(step: Any) -> Array:
        progress = jnp.asarray(step, jnp.float32)
        if "drops" in config:
            drops = [round(share * total_steps) for share in config["drops"]]
            peak, warmup = lengths["peak"], lengths["warmup"]
            return warmup_steps(progress, peak=peak, warmup=warmup, drops=drops)
        if "power" in config:
            return warmup_polynomial(progress, power=config["power"], **lengths)
        return warmup_cosine(progress, **lengths)

    return schedule


def layer_decay_scales(trainable: Tree, decay: float) -> Tree:
    """A learning-rate factor for every leaf: decay^(depth - i) for block i of the backbone.

    Blocks count through all stages of a backbone that has stages; what leads into a later stage
    goes with its first block. What comes before block 0 (patches, positions, tokens, a stem) has
    decay^(depth + 1); what is outside the backbone, and its final norms, keeps 1.

    Raises:
        ConfigError: no block of a backbone trains.

    Source: PAD's released code (`param_groups_lrd`); there embeddings are layer 0, block i is
    layer i + 1, and the exponent is depth + 1 minus the layer.
    """
    layers = _Layers.of(list(flatten(trainable)))
    if not layers.depth:
        raise ConfigError(
            "config.optimizer.layer_decay: no block of a backbone trains, so that there is no "
            "layer to count from; 1.0 is without"
        )

    def scale(path: Any, _: Any) -> float:
        return decay ** layers.distance(path_name(_keys(path)))

    return jax.tree_util.tree_map_with_path(scale, trainable)


class _Layers(NamedTuple):
    """Where the parts of a backbone stand among its blocks, by the paths of what trains."""

    starts: tuple[int, ...]  # number of the first block of each stage, and that of all blocks
    entered: int  # the stage that the first of `downsamples` leads into

    @classmethod
    def of(cls, paths: Sequence[str]) -> _Layers:
        def most(pattern: str) -> int:
            found = (re.match(f"backbone/{pattern}/", path) for path in paths)
            return max((int(m[1]) + 1 for m in found if m), default=0)

        stages, downsamples = most(r"stages/(\d+)/\d+"), most(r"downsamples/(\d+)")
        numbers = [most(rf"stages/{stage}/(\d+)") for stage in range(stages)]
        starts = itertools.accumulate(numbers or [most(r"blocks/(\d+)")], initial=0)
        return cls(tuple(starts), stages - downsamples if downsamples else 0)

    @property
    def depth(self) -> int:
        return self.starts[-1]

    def distance(self, path: str) -> int:
        """How many layers a part stands before what comes after all blocks, which is 0."""
        if found := re.match(r"backbone/blocks/(\d+)/", path):
            return self.depth - int(found[1])
        if found := re.match(r"backbone/stages/(\d+)/(\d+)/", path):
            return self.depth - self.starts[int(found[1])] - int(found[2])
        if found := re.match(r"backbone/downsamples/(\d+)/", path):
            stage = int(found[1]) + self.entered
            return self.depth - self.starts[stage] + (stage == 0)
        return self.depth + 1 if re.match(rf"backbone/({_BEFORE})\b", path) else 0


_BEFORE = "patch_embed|cls_token|pos_embed|registers|first_norm|stem|positions"


def decays(path: str, leaf: Any, *, by_layer: bool = False) -> bool:
    """Whether weight decay acts on a leaf: not on biases, norms and scales.

    Args:
        by_layer: the rule that goes with layer-wise rates, which spares the class token and
            learned positions, too.

    Source: MAE's and PAD's released code, which decays what has more than one axis; tokens have
    three there (and are vectors here), so that they decay.
    """
    if path.endswith(("cls_token", "pos_embed")):
        return not by_layer
    return leaf.ndim > 1 or path.endswith("mask_token")


def make_optimizer(
    config: Any,
    trainable: Tree,
    schedule: Schedule,
    *,
    total_steps: int,
) -> optax.GradientTransformation:
    """AdamW over the trainable tree by the rules in `config.optimizer`.

    Fields: `beta1`, `beta2`, `epsilon`, `weight_decay`, `undecayed` (a path pattern of the leaves
    that do not decay; absent: see `decays`), `layer_decay` (1 for none), `rates` (pairs of a path
    pattern and a factor of the rate; the first that matches counts), `clip_norm` (0 for none), and
    `late`: pairs of (path pattern, share of all steps) for leaves that start to
    train late. Until then such a leaf has no moments, no decay, and its bias-correction counter
    stands still, as if it were in no optimizer; the learning rate is not restarted.

    Raises:
        ConfigError: a `late` pattern, or one of `rates`, matches no trainable path.
    """
    by_layer = config["layer_decay"] != 1.0
    mask = functools.partial(decay_mask, config)
    adamw = optax.chain(
        optax.scale_by_adam(config["beta1"], config["beta2"], config["epsilon"]),
        optax.add_decayed_weights(config["weight_decay"], mask=mask),
    )
    groups: dict[Any, Any] = {"all": adamw}
    late: Sequence[tuple[str, float]] = config.get("late", ())
    for number, (_, share) in enumerate(late):
        start = round(share * total_steps)
        groups[f"late{number}"] = optax.conditionally_mask(adamw, _from(start))
    labels = _labels(trainable, [pattern for pattern, _ in late])
    parts: list[Any] = [adamw if not late else optax.partition(groups, labels)]
    if config["clip_norm"]:
        parts.insert(0, optax.clip_by_global_norm(config["clip_norm"]))
    factors = []
    if by_layer:
        factors.append(layer_decay_scales(trainable, config["layer_decay"]))
    if config.get("rates", ()):
        factors.append(rate_factors(trainable, config["rates"]))
    for scales in factors:
        parts.append(_times(scales))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def _from(start: int) -> Any:
    return lambda step, **_: step >= start


def _times(scales: Tree) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))


def decay_mask(config: Any, tree: Tree) -> Tree:
    """For every leaf whether weight decay acts on it; see `make_optimizer`."""
    undecayed = config.get("undecayed")
    by_layer = config["layer_decay"] != 1.0

    def decayed(path: Any, leaf: Any) -> bool:
        name = path_name(_keys(path))
        if undecayed is not None:
            return not re.fullmatch(undecayed, name)
        return decays(name, leaf, by_layer=by_layer)

    return jax.tree_util.tree_map_with_path(decayed, tree)


def rate_factors(trainable: Tree, rates: Sequence[tuple[str, float]]) -> Tree:
    """For every leaf the factor of the first pattern that matches its path; 1 without one.

    Raises:
        ConfigError: a pattern matches no trainable path.
    """
    names = list(flatten(trainable))
    unused = [p for p, _ in rates if not any(re.fullmatch(p, name) for name in names)]
    if unused:
        raise ConfigError(f"config.optimizer.rates: no trainable parameter matches {unused}")

    def factor(path: Any, _: Any) -> float:
        name = path_name(_keys(path))
        return next((factor for p, factor in rates if re.fullmatch(p, name)), 1.0)

    return jax.tree_util.tree_map_with_path(factor, trainable)


def _labels(trainable: Tree, patterns: Sequence[str]) -> Tree:
    used: set[str] = set()

    def label(path: Any, _: Any) -> str:
        name = path_name(_keys(path))
        for number, pattern in enumerate(patterns):
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return f"late{number}"
        return "all"

    labels = jax.tree_util.tree_map_with_path(label, trainable)
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise ConfigError(f"config.optimizer.late: no trainable parameter matches {unused}")
    return labels


def _keys(path: Any) -> tuple[Any, ...]:
    return tuple(part.key for part in path)
