"""Mask2Former's losses: masks matched to the classes of an image, compared at random points."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from vadapt.errors import ConfigError
from vadapt.kernels import bilinear
from vadapt.micro_batches import batch_average
from vadapt.sharding import over_batch

Loss = dict[str, Float[Array, ""]]


class Points(NamedTuple):
    """Where masks are compared, (x, y) in 0 to 1; `l` may count predictions."""

    matching: Float[Array, "*l b p 2"]  # of an image, for all its masks
    candidates: Float[Array, "*l b k c 2"]  # of a class; the least certain of them are taken
    others: Float[Array, "*l b k r 2"]  # of a class, all taken


class Settings(NamedTuple):
    """Numbers of the loss; a cost of the matching weighs what its term does, unless it is set."""

    num_points: int = 12544
    oversampling: float = 3.0  # candidates a point
    importance: float = 0.75  # the share of points that are chosen among candidates
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1  # weight of that class in the cross entropy
    class_cost: float | None = None
    mask_cost: float | None = None
    dice_cost: float | None = None

    @property
    def costs(self) -> tuple[float, float, float]:
        """Weights in the matching: of classes, of masks and of dice."""
        terms = (self.class_weight, self.mask_weight, self.dice_weight)
        costs = (self.class_cost, self.mask_cost, self.dice_cost)
        by_class, by_mask, by_dice = (
            term if cost is None else cost for term, cost in zip(terms, costs, strict=True)
        )
        return by_class, by_mask, by_dice

    @property
    def num_chosen(self) -> int:
        return int(self.importance * self.num_points)


SETTINGS = Settings()  # the released ones


def mask2former_loss(
    classes: Float[Array, "l b q k1"],
    masks: Float[Array, "l b q h w"],
    labels: Int[Array, "b H W"],
    key: Key[Array, ""] | None = None,
    *,
    points: Points | None = None,
    settings: Settings = SETTINGS,
) -> Loss:
    """Three terms for each prediction, weighted; the loss is the sum of all.

    An image has one mask for each class that its labels show. Every sum over images runs over the
    whole batch, also where it is sharded, and is divided by a sum over the whole batch: the same
    as the original's mean over devices of the number of masks. (Its classification term divides
    by each device's own weights, which differs a little for several devices.)

    Args:
        classes: logits; the last class is "no object".
        masks: logits, at any size.
        labels: classes of pixels; all others, such as 255, are ignored.
        key: draws the points, unless they are given.
        points: with a leading axis of predictions.

    Raises:
        ConfigError: neither key nor points.

    Returns:
        "loss_cls", "loss_mask" and "loss_dice" of the last prediction, "d0.loss_cls" and so on of
        those before.

    Source: Mask2Former, arXiv:2112.01527, section 3.3, by its released settings.
    """
    classes, masks = classes.astype(jnp.float32), masks.astype(jnp.float32)
    depth, batch, _, num_classes = classes.shape[0], *classes.shape[1:3], classes.shape[3] - 1
    if points is None:
        if key is None:
            raise ConfigError("points are drawn from a key; give one, or the points")
        keys = jax.random.split(key, depth)
        points = jax.vmap(lambda key: draw_points(key, batch, num_classes, settings))(keys)
    present = classes_present(labels, num_classes)

    def cost(prediction: tuple[Array, Array, Array]) -> Array:
        return matching_cost(*prediction, labels, settings)

    def least_certain(prediction: tuple[Array, Points]) -> Array:
        return uncertain_points(*prediction, settings)

    def sums(classes: Array, masks: Array, queries: Array, where: Array) -> Loss:
        return layer_sums(classes, masks, labels, queries, present, where, settings)

    costs = jax.lax.map(cost, jax.lax.stop_gradient((classes, masks, points.matching)))
    # Every device matches its own images: the loop of a match is as long as its longest.
    queries = over_batch(_match_all, jnp.moveaxis(costs, 0, 1), present).swapaxes(0, 1)
    # Masks that are compared are taken before any loop, and what has a gradient stands in none: a
    # loop would write all masks' gradients, and what each turn keeps for them.
    taken = jax.vmap(jax.vmap(_rows))(masks, jnp.maximum(queries, 0))
    where = jax.lax.map(least_certain, jax.lax.stop_gradient((taken, points)))
    found = averages(
        jax.vmap(sums)(classes, taken, queries, where), present, classes.shape[2], settings
    )
    names = [f"d{i}." for i in range(depth - 1)] + [""]
    return {
        f"{name}{term}": values[i] for i, name in enumerate(names) for term, values in found.items()
    }


def draw_points(key: Key[Array, ""], batch: int, num_classes: int, settings: Settings) -> Points:
    """Uniform points for one prediction."""
    number, chosen = settings.num_points, settings.num_chosen
    shapes = (
        (batch, number, 2),
        (batch, num_classes, int(settings.oversampling * number), 2),
        (batch, num_classes, number - chosen, 2),
    )
    keys = jax.random.split(key, len(shapes))
    return Points(*(jax.random.uniform(k, shape) for k, shape in zip(keys, shapes, strict=True)))


def classes_present(labels: Int[Array, "b H W"], num_classes: int) -> Bool[Array, "b k"]:
    """Which classes an image's labels show."""
    return (labels[..., None] == jnp.arange(num_classes)[None, None, None]).any(axis=(1, 2))


def matching_cost(
    classes: Float[Array, "b q k1"],
    masks: Float[Array, "b q h w"],
    points: Float[Array, "b p 2"],
    labels: Int[Array, "b H W"],
    settings: Settings = SETTINGS,
) -> Float[Array, "b q k"]:
    """Costs of matching each query with each class, present or not."""
    num_classes = classes.shape[-1] - 1
    logits = bilinear.sample(jnp.moveaxis(masks, 1, -1), points)
    targets = bilinear.sample_labels(labels, points, num_classes)

    def product(x: Array) -> Array:
        return jnp.einsum("bpq,bpk->bqk", x, targets, precision="highest")

    shares = jax.nn.sigmoid(logits)
    # softplus(-x) t + softplus(x) (1 - t) = softplus(x) - x t
    entropy = jax.nn.softplus(logits).sum(axis=1)[..., None] - product(logits)
    entropy = entropy / points.shape[1]
    sizes = shares.sum(axis=1)[..., None] + targets.sum(axis=1)[:, None]
    dice = 1.0 - (2.0 * product(shares) + 1.0) / (sizes + 1.0)
    right = jax.nn.softmax(classes, axis=-1)[..., :num_classes]
    by_class, by_mask, by_dice = settings.costs
    return by_mask * entropy + by_dice * dice - by_class * right


def _match_all(
    costs: Float[Array, "b l q k"], present: Bool[Array, "b k"], _: None
) -> Int[Array, "b l k"]:
    """`match` for every prediction."""
    shape = (*costs.shape[:2], costs.shape[3])
    return match(costs, jnp.broadcast_to(present[:, None], shape))


def match(costs: Float[Array, "*b q k"], present: Bool[Array, "*b k"]) -> Int[Array, "*b k"]:
    """The query of each class that is present, so that the sum of their costs is least.

    Absent classes cost the same with every query, and more than any other: they take what is left,
    and change nothing. -1 where there are fewer queries than classes and none is left.
    """
    *lead, num_queries, num_classes = costs.shape
    costs, present = costs.reshape(-1, num_queries, num_classes), present.reshape(-1, num_classes)
    costs = jax.lax.stop_gradient(costs)
    most = costs.max(axis=(1, 2), keepdims=True) + 1.0
    costs = jnp.where(present[:, None], costs, most)
    queries, classes = jax.vmap(optax.assignment.hungarian_algorithm)(costs)
    nobody = jnp.full(num_classes, -1, queries.dtype)
    found = jax.vmap(lambda q, k: nobody.at[k].set(q))(queries, classes)
    return found.reshape(*lead, num_classes).astype(jnp.int32)


def layer_sums(
    classes: Float[Array, "b q k1"],
    masks: Float[Array, "b k h w"],
    labels: Int[Array, "b H W"],
    queries: Int[Array, "b k"],
    present: Bool[Array, "b k"],
    where: Float[Array, "b k p 2"],
    settings: Settings = SETTINGS,
) -> Loss:
    """The terms of one prediction, each summed over queries or masks; see `averages`.

    Args:
        masks: of the queries matched with each class.
        queries: of each class, by `match`; of no meaning where a class is not present.
        where: the points at which masks are compared, by `uncertain_points`.
    """
    present = present & (queries >= 0)
    b, k, p, _ = where.shape
    logits = bilinear.sample(masks.reshape(b * k, *masks.shape[2:], 1), where.reshape(b * k, p, 2))
    logits, targets = logits.reshape(b, k, p), bilinear.sample_label(labels, where)
    entropy = (jax.nn.softplus(logits) - logits * targets).mean(axis=-1)
    shares = jax.nn.sigmoid(logits)
    overlap = 2.0 * (shares * targets).sum(axis=-1) + 1.0
    dice = 1.0 - overlap / (shares.sum(axis=-1) + targets.sum(axis=-1) + 1.0)
    return {
        "loss_cls": _class_sum(classes, queries, present, settings),
        "loss_mask": jnp.where(present, entropy, 0.0).sum(),
        "loss_dice": jnp.where(present, dice, 0.0).sum(),
    }


def _rows(masks: Float[Array, "q h w"], queries: Int[Array, " k"]) -> Float[Array, "k h w"]:
    return masks[queries]


def averages(
    sums: dict[str, Float[Array, "*l"]],
    present: Bool[Array, "b k"],
    num_queries: int,
    settings: Settings = SETTINGS,
) -> dict[str, Float[Array, "*l"]]:
    """The terms of predictions, weighted, from what `layer_sums` gives.

    Masks are averaged over those of the batch, of which an image without any counts as one, and
    classes over the weights of the batch's queries.
    """
    matched = jnp.minimum(present.sum(axis=-1), num_queries)  # all there are, or all queries
    masks = jnp.maximum(matched, 1).sum()
    found, rest = (x.sum().astype(jnp.float32) for x in (matched, num_queries - matched))
    weights = found + settings.no_object * rest
    return {
        "loss_cls": settings.class_weight * batch_average(sums["loss_cls"], weights, least=0.0),
        "loss_mask": settings.mask_weight * batch_average(sums["loss_mask"], masks),
        "loss_dice": settings.dice_weight * batch_average(sums["loss_dice"], masks),
    }


def uncertain_points(
    masks: Float[Array, "b k h w"], points: Points, settings: Settings
) -> Float[Array, "b k p 2"]:
    """The candidates where the masks are least certain, then the other points."""
    b, k, *size = masks.shape
    flat = jax.lax.stop_gradient(masks).reshape(b * k, *size, 1)
    logits = bilinear.sample(flat, points.candidates.reshape(b * k, -1, 2))
    _, chosen = jax.lax.top_k(-jnp.abs(logits[..., 0]), settings.num_chosen)
    chosen = chosen.reshape(b, k, -1, 1)
    taken = jnp.take_along_axis(points.candidates, chosen, axis=2)
    return jnp.concatenate([taken, points.others], axis=2)


def _class_sum(classes: Array, queries: Array, present: Array, settings: Settings) -> Array:
    """Cross entropy of all queries, "no object" for those without a mask."""
    num_queries, num_classes = classes.shape[1], classes.shape[2] - 1
    taken = queries[..., None] == jnp.arange(num_queries)[None, None]
    taken = taken & present[..., None]
    targets = jnp.where(taken.any(axis=1), taken.argmax(axis=1), num_classes)
    weights = jnp.where(targets == num_classes, settings.no_object, 1.0)
    losses = optax.softmax_cross_entropy_with_integer_labels(classes, targets)
    return (weights * losses).sum()
