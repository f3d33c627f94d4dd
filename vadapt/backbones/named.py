"""Named backbones: a class, its options, the pixel statistics of its training, its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vadapt.options import takes

Triple = tuple[float, float, float]


class Statistics(NamedTuple):
    """Mean and standard deviation per channel, in 0-1."""

    mean: Triple
    std: Triple


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SCENES = Statistics((0.467, 0.467, 0.467), (0.198, 0.198, 0.198))  # of `vit_micro_scenes`


class Backbone(NamedTuple):
    """A named backbone: `build(**options)` is the model, with `rngs` among the options."""

    build: Callable[..., Any]
    options: Mapping[str, Any] = MappingProxyType({})
    statistics: Statistics = IMAGENET
    source: str = ""
    others: tuple[Mapping[str, Any], ...] = ()  # options that its files may be of, and do not tell


def without_positions(build: Callable[..., Any], source: str) -> Backbone:
    """One that has no table of positions: `image_size` may be given and makes no difference."""

    @takes(build)
    def create(*, image_size: Any = None, **options: Any) -> Any:
        return build(**options)

    return Backbone(create, source=source)
