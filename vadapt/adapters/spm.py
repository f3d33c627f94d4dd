"""SPM: small modules between the stages of a frozen backbone, guided by interim class maps.

The paper gives the frame: stages that stay untouched, a learned prompt between them, guided by
interim semantic maps, refined recurrently. The module's exact form is decided here; see
docs/spm.md.

Source: Prompt-Matched Semantic Segmentation, arXiv:2208.10159 (its abstracts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.data.label_maps import IGNORE
from vadapt.errors import ConfigError, nearest
from vadapt.losses.segmentation import cross_entropy
from vadapt.nn.activations import gelu_exact
from vadapt.nn.hooks import Hook, add_hook, check_place
from vadapt.nn.resize import resize_bilinear
from vadapt.nn.tokens import Tokens
from vadapt.options import takes
from vadapt.partition import Adapter, mark

GUIDANCES = ("soft", "logits", "none")
TAPS = ("matched", "raw")
SMALL = nnx.initializers.truncated_normal(0.02)

Map = Float[Array, "b h w d"]


class Semantics(nnx.Module):
    """Classes in the bottleneck: their logits, and an embedding of each (W_s, b_s and W_e)."""

    def __init__(self, hidden: int, num_classes: int, *, rngs: nnx.Rngs):
        self.classify = nnx.Linear(hidden, num_classes, kernel_init=SMALL, rngs=rngs)
        self.embed = nnx.Linear(
            num_classes,
            hidden,
            use_bias=False,
            kernel_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        mark(self, Adapter)


class Step(NamedTuple):
    """One step of the recurrence."""

    prompt: Map  # p_t
    logits: Float[Array, "b _ _ k"]  # l_t, before the softmax
    guide: Float[Array, "b _ _ k"]  # m_t, as predicted here


class Match(NamedTuple):
    """The result of a matcher."""

    output: Map
    logits: tuple[Array, ...] = ()  # of every step
    guide: Array | None = None  # of the last step


class Matcher(nnx.Module):
    """A map plus a prompt that is drawn from it, in steps that share one set of weights.

    With the bottlenecked map x and the prompt p, 0 at first, every step predicts logits from
    h = x + p and adds to p, linearly, gelu(conv([h, e])): e is the embedding of the expected class
    and conv a depth-wise 3x3. The output layer is zero at the start, so that maps pass unchanged.

    Args:
        steps: T in the formulas; 0 leaves only the output's bias.
        guidance: what is embedded: "soft" the logits' softmax, "logits" these themselves,
            "none" nothing (the logits are still predicted).
        detach_map: stop the gradient at what is embedded.
        sem_stride: predict logits on a map averaged over cells of this side; their embedding comes
            back to full size bilinearly.
    """

    def __init__(
        self,
        width: int,
        semantics: Semantics,
        *,
        steps: int = 3,
        guidance: str = "soft",
        detach_map: bool = False,
        sem_stride: int = 1,
        rngs: nnx.Rngs,
    ):
        if guidance not in GUIDANCES:
            raise ConfigError(f"unknown guidance {guidance!r}; {nearest(guidance, GUIDANCES)}")
        if steps < 0 or sem_stride < 1:
            raise ConfigError(f"{steps} steps at a sem_stride of {sem_stride}")
        hidden = semantics.classify.in_features
        self.steps, self.guidance = steps, guidance
        self.detach_map, self.sem_stride = detach_map, sem_stride
        self.semantics = semantics
        self.reduce = nnx.Linear(width, hidden, kernel_init=SMALL, rngs=rngs)
        self.mix = nnx.Conv(
            2 * hidden,
            2 * hidden,
            (3, 3),
            padding=1,
            feature_group_count=2 * hidden,
            kernel_init=SMALL,
            rngs=rngs,
        )
        self.update = nnx.Linear(2 * hidden, hidden, kernel_init=SMALL, rngs=rngs)
        self.output = nnx.Linear(hidden, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        mark(self, Adapter)

    def predict(self, state: Map) -> Float[Array, "b _ _ k"]:
        """Interim logits of a state h, at its size over `sem_stride`, rounded up."""
        side, dtype = self.sem_stride, state.dtype
        if side > 1:
            around: Any = tuple((0, -size % side) for size in state.shape[1:3])
            state = nnx.avg_pool(
                state.astype(jnp.float32),  # it divides by a float32 count
                (side, side),
                (side, side),
                padding=around,
                count_include_pad=False,
            ).astype(dtype)
        return self.semantics.classify(state)

    def guide(self, logits: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        """Return what is embedded of the logits; the softmax in float32."""
        if self.guidance == "soft":
            logits = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(logits.dtype)
        return jax.lax.stop_gradient(logits) if self.detach_map else logits

    def embed(self, guide: Float[Array, "b _ _ k"], size: Sequence[int]) -> Map:
        """The embedding of a guide, e, at (height, width)."""
        embedded = self.semantics.embed(guide)
        if self.guidance == "none":
            embedded = jnp.zeros_like(embedded)
        return resize_bilinear(embedded, size)

    def step(self, x: Map, prompt: Map, carried: Array | None = None) -> Step:
        """The next prompt; a `carried` guide, of any size, takes the place of the predicted one."""
        state = x + prompt
        logits = self.predict(state)
        guide = used = self.guide(logits)
        if carried is not None:
            used = resize_bilinear(carried, logits.shape[1:3])
        embedded = self.embed(used, x.shape[1:3])
        mixed = gelu_exact(_depthwise(self.mix, jnp.concatenate([state, embedded], axis=-1)))
        return Step(prompt + self.update(mixed), logits, guide)

    def __call__(self, features: Map, carried: Array | None = None) -> Match:
        x = self.reduce(features)
        prompt, logits, guide = jnp.zeros_like(x), (), None
        for _ in range(self.steps):
            prompt, predicted, guide = self.step(x, prompt, carried)
            logits, carried = (*logits, predicted), None
        return Match(features + self.output(prompt), logits, guide)


def _depthwise(conv: nnx.Conv, x: Map) -> Map:
    """`conv(x)` of a depth-wise 3x3 as nine products; in training 5 times as fast on a CPU."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = conv.kernel[...]
    parts = [
        padded[:, i : i + height, j : j + width] * jnp.broadcast_to(kernel[i, j, 0], x.shape)
        for i in range(3)
        for j in range(3)
    ]
    assert conv.bias is not None
    return sum(parts, jnp.broadcast_to(conv.bias[...], x.shape))


class Carried(NamedTuple):
    """The state that a forward pass carries from matcher to matcher."""

    logits: tuple[Array, ...] = ()  # of every matcher and step so far, [b, h, w, k]
    guide: Array | None = None  # of the last matcher


@takes(Matcher)
class SPM(Hook):
    """The matchers of a model, by the number of the block that each comes after.

    They give "class_maps": the interim logits of every matcher and step, which `losses` takes.

    Args:
        places: these numbers, in order; -1 for before the first.
        widths: channels at every place.
        last: number of the model's last block.
        num_classes, hidden: K and d in the formulas.
        carry: the last guide of a matcher is what the first step of the next embeds.
        share_sem: one classifier and one set of embeddings for all matchers.
        tap: what is seen of a stage: "matched" what goes on to the next, "raw" its output. What
            comes after the last stage is always seen.
        loss_weight: of the semantic loss beside the head's; lambda.
        options: those of `Matcher`.

    Raises:
        ConfigError: an option's value is unknown.
    """

    def __init__(
        self,
        places: Sequence[int],
        widths: Sequence[int],
        last: int,
        *,
        num_classes: int,
        hidden: int = 64,
        carry: bool = False,
        share_sem: bool = False,
        tap: str = "matched",
        loss_weight: float = 0.4,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if tap not in TAPS:
            raise ConfigError(f"unknown tap {tap!r}; {nearest(tap, TAPS)}")
        self.places, self.last = tuple(places), last
        self.carry, self.tap, self.loss_weight = carry, tap, loss_weight

        def semantics() -> Semantics:
            return Semantics(hidden, num_classes, rngs=rngs)

        shared = semantics() if share_sem and self.places else None
        self.matchers = nnx.List(
            [Matcher(width, shared or semantics(), **options, rngs=rngs) for width in widths]
        )

    def start(self, images: Float[Array, "b h w c"]) -> Carried:
        return Carried()

    def acts(self, number: int) -> bool:
        return number in self.places or (number == 0 and -1 in self.places)

    def before(self, number: int, x: Tokens, state: Carried) -> tuple[Tokens, Carried]:
        return self._match(-1, x, state) if number == 0 else (x, state)

    def after(self, number: int, x: Tokens, state: Carried) -> tuple[Tokens, Carried]:
        return self._match(number, x, state)

    def shown(self, number: int) -> bool:
        return self.tap == "matched" or number == self.last

    def outputs(self, state: Carried, found: Mapping[str, Any]) -> dict[str, Any]:
        return {"class_maps": state.logits}

    def losses(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Array]
    ) -> dict[str, Float[Array, ""]]:
        """The semantic loss of the pixels' labels, `batch["mask"]`, as "loss_semantic"."""
        interim = outputs.get("class_maps", ())
        if not interim or not self.loss_weight or "mask" not in batch:
            return {}
        loss = semantic_loss(interim, batch["mask"].astype(jnp.int32))
        return {"loss_semantic": self.loss_weight * loss}

    def _match(self, place: int, x: Tokens, state: Carried) -> tuple[Tokens, Carried]:
        if place not in self.places:
            return x, state
        matcher = self.matchers[self.places.index(place)]
        match = matcher(x.map, state.guide if self.carry else None)
        carried = Carried((*state.logits, *match.logits), match.guide)
        return x.with_patches(match.output), carried


def semantic_loss(
    logits: Sequence[Float[Array, "b _ _ k"]],
    labels: Int[Array, "b H W"],
    *,
    ignore: int = IGNORE,
) -> Float[Array, ""]:
    """Mean cross entropy of interim logits, resized to the labels; 0 without logits."""
    size = labels.shape[1:]
    losses = [
        cross_entropy(resize_bilinear(each.astype(jnp.float32), size), labels, ignore=ignore)
        for each in logits
    ]
    return jnp.stack(losses).mean() if losses else jnp.zeros(())


def stage_ends(depth: int, num_stages: int) -> tuple[int, ...]:
    """Numbers of the last blocks of equal groups; the first groups take what is left over.

    >>> stage_ends(24, 4), stage_ends(6, 4)
    ((5, 11, 17, 23), (1, 3, 4, 5))
    """
    if not 1 <= num_stages <= depth:
        raise ConfigError(f"{num_stages} stages of {depth} blocks")
    size, more = divmod(depth, num_stages)
    return tuple(size * (i + 1) + min(i + 1, more) - 1 for i in range(num_stages))


@takes(SPM)
def apply(
    model: Any,
    *,
    after_stem: bool = False,
    after_last: bool = False,
    num_stages: int = 4,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> Any:
    """Put a matcher between the stages of a model, as its `between`; the given one stays as it is.

    Args:
        model: a backbone of `blocks`, which are cut into groups, or of `stages` (a matcher comes
            before the down-sampling that opens the next).
        after_stem, after_last: a matcher more, before the first stage or after the last.
        num_stages: groups of equal numbers of blocks; not for a model of stages.
        options: those of `SPM` from `num_classes` on, and of `Matcher` from `steps` on.

    Raises:
        ConfigError: the model has no such places, or an option's value is unknown.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), num_classes=8, hidden=16)
    >>> count(split(model).trainable) == 3 * (2 * 96 * 16 + 96 + 33 * 8 + 2 * 16**2 + 22 * 16)
    True
    """
    check_place(model, "between")
    model = nnx.clone(model)
    if hasattr(model, "stages"):
        ends, widths = model.ends, model.widths
        first = model.stem_width if after_stem else 0
    else:
        ends, first = stage_ends(model.depth, num_stages), model.width
        widths = (model.width,) * num_stages
    places = {-1: first} if after_stem else {}
    places.update(zip(ends, widths, strict=True))
    if not after_last:
        del places[ends[-1]]
    hook = SPM(tuple(places), tuple(places.values()), ends[-1], rngs=rngs or nnx.Rngs(0), **options)
    add_hook(model, "between", hook)
    return model
