"""Learning-rate schedules by name: warm-up, then a constant, a cosine, a polynomial, a staircase.

Each is a function of the peak rate and the number of steps; the other lengths are shares of all
steps, so that a run of another length has the same course. optax's own go by their place, as
"optax:exponential_decay", with optax's arguments. The others are written out because
optax computes `1 - x` in float32, which leaves the last rates of a long run a percent off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vadapt.options import accepted, check
from vadapt.registry import Registry

Schedule = Callable[[Any], Any]  # of a step, from 0, to its rate

SCHEDULES = Registry(
    "config.optimizer.schedule.name",
    {
        name: f"vadapt.training.schedules:{name}"
        for name in ("constant", "cosine", "covered_cosine", "polynomial", "staircase")
    },
)
# What optax calls the rate, and the length, that a schedule is made for.
_RATES, _LENGTHS = ("peak_value", "init_value", "value"), ("transition_steps", "decay_steps")


def make_schedule(settings: Any, lr: float, total_steps: int) -> Schedule:
    """The schedule of a run, from `config.optimizer.schedule`.

    Fields: `name` (in `SCHEDULES`, or the place of a function), and that function's options. It is
    given `lr` and `total_steps`; a function of optax gets them as its peak, or else its first, rate
    and as its length, where the options do not say otherwise.

    Raises:
        ConfigError: no such schedule, or an option that it does not take.

    >>> schedule = make_schedule({"name": "cosine", "warmup": 0.1}, lr=1.0, total_steps=100)
    >>> [round(float(schedule(step)), 2) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    >>> decay = {"name": "optax:exponential_decay", "decay_rate": 0.1}
    >>> round(float(make_schedule(decay, lr=1.0, total_steps=100)(50)), 3)
    0.316
    """
    name = settings["name"]
    options = {key: value for key, value in settings.items() if key != "name"}
    function = SCHEDULES[name]
    known = accepted(function)
    offered: dict[str, Any] = {"lr": lr, "total_steps": total_steps}
    offered |= dict.fromkeys([key for key in _RATES if key in known][:1], lr)
    offered |= dict.fromkeys(_LENGTHS, total_steps)
    given = {key: x for key, x in offered.items() if key in known and key not in options}
    check("optimizer.schedule", name, function, options, given=list(given))
    found = function(**given, **options)

    def schedule(step: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            return found(jnp.asarray(step, jnp.float32))

    return schedule


def constant(lr: float, total_steps: int, *, warmup: float = 0.0) -> Schedule:
    """Linear warm-up from 0 over this share of all steps, then `lr`."""
    if not warmup:
        return optax.constant_schedule(lr)
    return optax.linear_schedule(0.0, lr, max(round(warmup * total_steps), 1))


def cosine(lr: float, total_steps: int, *, warmup: float = 0.0, end: float = 0.0) -> Schedule:
    """Linear warm-up from 0, then half a cosine to the rate `end`: `warmup_cosine` of all steps."""
    return lambda step: warmup_cosine(
        step, peak=lr, end=end, warmup=warmup * total_steps, total=total_steps
    )


def covered_cosine(
    lr: float,
    total_steps: int,
    *,
    warmup: float = 0.0,
    end: float = 0.0,
    start: float = 0.0,
    cooldown: float = 0.0,
) -> Schedule:
    """Half a cosine that a linear warm-up from the rate `start` covers the beginning of, as timm's.

    Args:
        cooldown: share of all steps at the end that keep the rate `end`.
    """
    return lambda step: warmup_covers_cosine(
        step,
        peak=lr,
        end=end,
        warmup=warmup * total_steps,
        total=(1 - cooldown) * total_steps,
        start=start,
    )


def polynomial(
    lr: float,
    total_steps: int,
    *,
    warmup: float = 0.0,
    end: float = 0.0,
    power: float = 1.0,
    start: float = 1e-6,
) -> Schedule:
    """Linear warm-up, then a polynomial to the rate `end`: `warmup_polynomial` of all steps."""
    return lambda step: warmup_polynomial(
        step,
        peak=lr,
        end=end,
        warmup=warmup * total_steps,
        total=total_steps,
        power=power,
        start=start,
    )


def staircase(
    lr: float,
    total_steps: int,
    *,
    drops: Sequence[float],
    warmup: float = 0.0,
    factor: float = 0.1,
    start: float = 1e-3,
) -> Schedule:
    """Linear warm-up, then falls to a tenth at shares of all steps: `warmup_steps`."""
    at = [round(share * total_steps) for share in drops]
    return lambda step: warmup_steps(
        step, peak=lr, warmup=warmup * total_steps, drops=at, factor=factor, start=start
    )


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


def warmup_covers_cosine(
    progress: Float[Array, "*n"] | float,
    *,
    peak: float,
    end: float,
    warmup: float,
    total: float,
    start: float = 0.0,
) -> Float[Array, "*n"]:
    """Learning rate after `progress` of `total`: half a cosine, of which a warm-up hides the start.

    The warm-up goes from `start` to `peak`, where the cosine has fallen below it: the rate jumps.
    All lengths are in one unit; after `total` the rate stays `end`.

    Source: timm's CosineLRScheduler with its defaults, as SSF (arXiv:2210.08823) trains.
    """
    progress = jnp.asarray(progress, jnp.float32)
    rising = start + (peak - start) * progress / max(warmup, 1e-9)
    left = jnp.clip((total - progress) / max(total, 1e-9), 0.0, 1.0)
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
        warmup: its steps; 0 for none.
        drops: steps from which on the rate is `factor` times what it was.

    Source: mmcv's StepLrUpdater with a linear warm-up, as GKGNet (arXiv:2308.14378) trains.
    """
    step = jnp.asarray(step, jnp.float32)
    rate = jnp.full_like(step, peak)
    for drop in drops:
        rate = jnp.where(step >= drop, factor * rate, rate)
    if not warmup:
        return rate
    return rate * jnp.minimum(start + (1 - start) * step / max(warmup, 1e-9), 1.0)
