"""Optimizers by name, and one list of rules by path: rate, weight decay, late starts."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vadapt.errors import ConfigError
from vadapt.options import check, together
from vadapt.partition import Tree, flatten, path_name
from vadapt.registry import Registry
from vadapt.training.layer_decay import layer_factors
from vadapt.training.schedules import Schedule, make_schedule

OPTIMIZERS = Registry(
    "config.optimizer.name",
    {name: f"vadapt.training.optimizers:{name}" for name in ("adamw", "sgd", "lars")},
)


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Fields of `config.optimizer`, and of each player's in `config.optimizers`.

    Besides these a section holds the options of the optimizer that it names.

    Attributes:
        name: in `OPTIMIZERS`, or the place of a function like those.
        lr: the rate at the schedule's peak, absolute.
        lr_batch: images a batch for which `lr` is meant: with another batch the rate scales in
            proportion. 0: `lr` is the rate whatever the batch.
        schedule: see `schedules.make_schedule`.
        weight_decay: as the optimizer takes it; see there.
        layer_decay: see `layer_factors`; 1 is without.
        rules: pairs of a pattern of whole paths and what it changes; see `treatments`.
        clip_norm: the largest norm of the whole gradient; 0 is without.
    """

    lr: float
    schedule: Any
    name: str = "adamw"
    lr_batch: int = 0
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    rules: Sequence[Any] = ()
    clip_norm: float = 0.0

    @classmethod
    def of(cls, config: Any, section: str = "optimizer") -> OptimizerSettings:
        """The settings of a section of a config.

        Raises:
            ConfigError: one that neither all optimizers nor this one takes, or of a wrong type.
        """
        name = config.get("name", cls.name)
        fields = together(cls, OPTIMIZERS[name])
        check(section, name, fields, dict(config), given=["decay", "decays"])
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in names})

    def peak(self, batch_size: int) -> float:
        """The highest rate of the schedule, for a batch of so many images."""
        return self.lr * (batch_size / self.lr_batch if self.lr_batch else 1.0)


class Treatment(NamedTuple):
    """How the optimizer treats a parameter."""

    rate: float  # a factor of the learning rate
    decay: float  # a factor of the weight decay
    start: float  # a share of all steps, before which it does not train


def adamw(
    decay: optax.GradientTransformation,
    decays: Callable[[Tree], Tree],
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam, with a weight decay that the moments do not see.

    Source: arXiv:1711.05101.
    """
    return optax.chain(optax.scale_by_adam(beta1, beta2, epsilon), decay)


def sgd(
    decay: optax.GradientTransformation,
    decays: Callable[[Tree], Tree],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Gradient descent with momentum; the weight decay is a part of the gradient, as in PyTorch."""
    if not momentum:
        return decay
    return optax.chain(decay, optax.trace(momentum, nesterov))


def lars(
    decay: optax.GradientTransformation,
    decays: Callable[[Tree], Tree],
    *,
    momentum: float = 0.9,
    trust_coefficient: float = 1e-3,
) -> optax.GradientTransformation:
    """SGD whose updates have, where weights decay, a norm in proportion to that of the weights.

    Source: arXiv:1708.03888; what does not decay is not scaled, and the rate comes after the
    momentum, as in MAE's released linear probe (optax.lars has it before).
    """
    scaled = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
    return optax.chain(decay, optax.masked(scaled, decays), optax.trace(momentum))


def learning_rate(config: Any, total_steps: int, batch_size: int) -> Schedule:
    """The run's schedule of the step number, from a section such as `config.optimizer`."""
    settings = OptimizerSettings.of(config)
    return make_schedule(settings.schedule, settings.peak(batch_size), total_steps)


def make_optimizer(
    config: Any, trainable: Tree, schedule: Schedule, *, total_steps: int
) -> optax.GradientTransformation:
    """The optimizer of a section such as `config.optimizer`, for the tree that it trains.

    A leaf that starts late has no moments until then, no decay, and its bias-correction counter
    stands still, as if it were in no optimizer; the learning rate is not restarted.

    Raises:
        ConfigError: see `OptimizerSettings.of` and `treatments`.
    """
    settings = OptimizerSettings.of(config)
    found = treatments(settings, trainable)
    of_path = functools.partial(_tree_of, found)
    named = {key: x for key, x in config.items() if not hasattr(settings, key)}
    base = OPTIMIZERS[settings.name](
        _decayed(settings.weight_decay, of_path),
        lambda tree: of_path(tree, lambda treatment: treatment.decay > 0),
        **named,
    )
    parts = [_started(base, trainable, of_path, total_steps)]
    if settings.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
    if any(treatment.rate != 1.0 for treatment in found.values()):
        factors = of_path(trainable, lambda treatment: treatment.rate)
        parts.append(
            optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
        )
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def treatments(settings: OptimizerSettings, trainable: Tree) -> dict[str, Treatment]:
    """How every trainable parameter is treated, by its path.

    A rule gives any of `rate` (a factor), `decay` (a factor of the weight decay) and `start` (a
    share of all steps); of each the first rule that matches a path and gives it counts. By default
    the rate is that of the layer (see `layer_factors`), which rules multiply, everything
    starts at once, and `decays` says what decays.

    Raises:
        ConfigError: a rule that matches no path, or gives something else.

    >>> rules = (("head/.*", {"rate": 0.1}), (".*bias", {"decay": 0.0, "rate": 2.0}))
    >>> settings = OptimizerSettings(lr=1.0, schedule={"name": "constant"}, rules=rules)
    >>> treatments(settings, {"head": {"bias": jnp.ones(2)}, "neck": {"w": jnp.ones((2, 2))}})
    {'head/bias': Treatment(rate=0.1, decay=0.0, start=0.0), \
'neck/w': Treatment(rate=1.0, decay=1.0, start=0.0)}
    """
    leaves = flatten(trainable)
    rules = [(pattern, dict(changes)) for pattern, changes in settings.rules]
    _check_rules(rules, list(leaves))
    by_layer = settings.layer_decay != 1.0
    layers = layer_factors(list(leaves), settings.layer_decay) if by_layer else {}

    def ruled(path: str, field: str, default: float) -> float:
        given = (
            changes[field] for p, changes in rules if field in changes and re.fullmatch(p, path)
        )
        return next(given, default)

    return {
        path: Treatment(
            rate=layers.get(path, 1.0) * ruled(path, "rate", 1.0),
            decay=ruled(path, "decay", float(decays(path, leaf, by_layer=by_layer))),
            start=ruled(path, "start", 0.0),
        )
        for path, leaf in leaves.items()
    }


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


def optimizer_table(config: Any, trainable: Tree, *, total_steps: int, batch_size: int) -> str:
    """What the settings come to, for people: a line for all parameters that are treated alike."""
    settings = OptimizerSettings.of(config)
    peak, leaves = settings.peak(batch_size), flatten(trainable)
    groups: dict[Treatment, list[str]] = {}
    for path, treatment in treatments(settings, trainable).items():
        groups.setdefault(treatment, []).append(path)
    lines = [
        f"optimizer {settings.name}, schedule {settings.schedule['name']}:",
        f"  {'peak rate':>10}  {'decay':>7}  {'from step':>9}  {'parameters':>11}  of",
    ]
    for treatment, paths in sorted(groups.items(), reverse=True):
        number = sum(math.prod(leaves[path].shape) for path in paths)
        kinds = list(dict.fromkeys(re.sub(r"^(\w+/\w+)/.+/(\w+)$", r"\1/.../\2", p) for p in paths))
        more = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
        lines.append(
            f"  {treatment.rate * peak:>10.3g}  {treatment.decay * settings.weight_decay:>7.3g}"
            f"  {round(treatment.start * total_steps):>9}  {number:>11,}"
            f"  {', '.join(kinds[:_SHOWN])}{more}"
        )
    return "\n".join(lines)


_SHOWN = 3  # names in a line of the table


def _check_rules(rules: Sequence[tuple[str, dict[str, float]]], paths: Sequence[str]) -> None:
    for pattern, changes in rules:
        if not changes or set(changes) - set(Treatment._fields):
            raise ConfigError(
                f"config.optimizer.rules: {pattern!r} gives {changes}; a rule gives some of "
                f"{', '.join(Treatment._fields)}"
            )
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ConfigError(
                f"config.optimizer.rules: no trainable parameter matches {pattern!r}; without "
                "it: --config.optimizer.rules=()"
            )


def _decayed(weight_decay: float, of_path: Callable[..., Tree]) -> optax.GradientTransformation:
    """Adds decayed weights, each by its own factor."""

    def update(updates: Any, weights: Any) -> Any:
        factors = of_path(weights, lambda treatment: treatment.decay)
        return jax.tree.map(
            lambda u, w, factor: u + (weight_decay * factor) * w if factor else u,
            updates,
            weights,
            factors,
        )

    return optax.stateless(update)


def _started(
    base: optax.GradientTransformation,
    trainable: Tree,
    of_path: Callable[..., Tree],
    total_steps: int,
) -> optax.GradientTransformation:
    """The optimizer, for each leaf from the step on at which it starts."""
    starts = of_path(trainable, lambda treatment: treatment.start)
    late = sorted({*jax.tree.leaves(starts)} - {0.0})
    if not late:
        return base
    names = {0.0: "all", **{start: f"late{number}" for number, start in enumerate(late)}}
    groups: dict[Any, Any] = {"all": base}
    for start in late:
        groups[names[start]] = optax.conditionally_mask(base, _from(round(start * total_steps)))
    return optax.partition(groups, jax.tree.map(names.get, starts))


def _from(start: int) -> Any:
    return lambda step, **_: step >= start


def _tree_of(found: Mapping[str, Treatment], tree: Tree, field: Callable[[Treatment], Any]) -> Tree:
    """A tree like this one, or like a part of what trains, of something of each treatment."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: field(found[path_name(tuple(part.key for part in path))]), tree
    )
