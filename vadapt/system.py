"""From a config to a model: backbone, weights, method and what stands on top meet here.

Each of them is made by name, by functions that know no config: `vadapt.models`, `vadapt.adapters`,
`vadapt.necks`, `vadapt.heads`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, Float

from vadapt import models
from vadapt.errors import ConfigError
from vadapt.necks import make_neck
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.plans import executed, spell
from vadapt.nn.trunk import Features
from vadapt.partition import Adapter, Prompt, variables

# From a backbone and random streams to the model with it, as its `backbone`, or to itself.
MakeModel = Callable[[Any, nnx.Rngs], Any]
# Whose weights are in a file: the backbone's alone, the plain model's, or the adapted model's.
Holds = Literal["backbone", "model", "adapted"]


class System(nnx.Module):
    """A backbone, a neck, and a head that reads its maps.

    Args:
        layers: numbers of the blocks (of stages, for backbones of stages) whose maps the head gets.
        norm: whether the backbone's last norm acts on them.
        neck: from these maps to the head's; None for these.
    """

    def __init__(
        self,
        backbone: Any,
        head: Any,
        *,
        layers: tuple[int, ...],
        norm: bool = False,
        neck: Callable[..., Any] | None = None,
    ):
        self.backbone, self.head = backbone, head
        self.layers, self.norm, self.neck = layers, norm, neck

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image from one place to the next, in each of the backbone's maps."""
        return tuple(models.strides(self.backbone, self.layers))

    @property
    def multiple(self) -> int:
        """Pixels that an image's sides are a multiple of where no part of it may be left out."""
        return max(self.strides)

    def features(self, images: Float[Array, "b h w c"], key: OptionalKey = None) -> Features:
        """The backbone's maps, and what adapters give besides.

        Args:
            key: makes the call a training one, here and in `decode`.
        """
        options = {"as_grid": True, "norm": self.norm, "key": key}
        return self.backbone.extract(images, self.layers, **options)

    def decode(self, features: Features, key: OptionalKey = None) -> Any:
        """The head's predictions from what `features` gives."""
        maps, read = self._for_head(features)
        return self.head(maps, key=key, **read)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """One vector per image, by which images are compared: what the head classifies.

        The head's own `embed` gives it; of a head without one, the mean of its last map.
        """
        maps, read = self._for_head(self.features(images))
        own = getattr(self.head, "embed", None)
        return maps[-1].mean(axis=(1, 2)) if own is None else own(maps, **read)

    def _for_head(self, features: Features) -> tuple[Sequence[Any], dict[str, Any]]:
        """The maps that the head gets, and the named outputs that it reads."""
        maps = features.maps if self.neck is None else self.neck(features.maps)
        names = getattr(self.head, "reads", ())
        return maps, {name: features.outputs.get(name) for name in names}

    def __call__(self, images: Float[Array, "b h w c"], key: OptionalKey = None) -> Any:
        """The head's predictions; a key makes the call a training one."""
        backbone_key, head_key = split_key(key, 2)
        return self.decode(self.features(images, backbone_key), head_key)


def alone(backbone: Any, rngs: nnx.Rngs) -> Any:
    """The backbone, with nothing on top."""
    del rngs
    return backbone


def build(
    config: Any,
    make_model: MakeModel = alone,
    *,
    options: Mapping[str, Any],
    known: Mapping[str, Any] = MappingProxyType({}),
    holds: Holds = "backbone",
    pretrained: bool = True,
) -> Any:
    """The model of a config, of any task: what `make_model` makes, with weights and the method.

    In this order: a random backbone and what stands on top of it, drawn from `config.seed`; the
    weights; the method in the backbone; the adapter that it goes on from, if there is one.

    Fields: `data.image_size`; of `config.model` those of `models.load` and `models.load_adapted`,
    `backbone`, and `plan`, in which its blocks run (see `plans.read`; by default each once, in
    order); `method`, see `models.apply_method`.

    Args:
        make_model: makes the model of a backbone; `with_head` gives one for systems.
        options: of the backbone, besides its name and the image size.
        known: what the data say and methods may need, see `models.apply_method`.
        holds: whose weights `config.model.weights` are. Those of the "adapted" model, which a run
            leaves with `config.run.save_model`, are loaded last.
        pretrained: False leaves every weight at random and reads no file.

    Raises:
        ConfigError: an adapter to go on from, and weights that hold one already; or a plan that the
            backbone cannot run.
        WeightsError: a file does not fit.
    """
    settings, rngs = config.model, nnx.Rngs(config.seed)
    told = models.told(settings.backbone, settings.weights) if pretrained else {}
    options = {**told, "image_size": tuple(config.data.image_size), **options}
    backbone = models.create(settings.backbone, rngs=rngs, **options)
    if plan := settings.get("plan", ""):
        backbone.follow(plan)
    model = make_model(backbone, rngs)
    adapter = settings.get("adapter", "") if pretrained else ""
    if adapter and holds == "adapted":
        raise ConfigError(
            f"config.model.adapter={adapter!r} goes on from a backbone's adapter, but the weights "
            "are those of a whole model: leave one of them out"
        )
    if pretrained and holds == "model":
        models.load(model, settings)
    elif pretrained and holds == "backbone" and not adapter:
        models.load(_backbone_of(model), settings)
    model = models.apply_method(model, config.method, known=known, seed=config.seed)
    _warn_of_idle(_backbone_of(model))
    if adapter:
        models.load_adapted(_backbone_of(model), settings)
    if pretrained and holds == "adapted":
        models.load(model, settings)
    return model


def _warn_of_idle(backbone: Any) -> None:
    """Say which blocks a method has adapted for nothing, as the backbone's plan leaves them out."""
    if not (plan := getattr(backbone, "plan", None)):
        return
    left_out = {f"blocks/{i}/" for i in set(range(backbone.depth)) - {*executed(plan)}}
    found = [
        path
        for path, value in variables(backbone).items()
        if isinstance(value, Adapter | Prompt) and any(map(path.startswith, left_out))
    ]
    if found:
        warnings.warn(
            f"the plan {spell(plan)} leaves out blocks in which {len(found)} adapter weights stand "
            f"({found[0]}, ...): these do nothing, and training them is in vain",
            stacklevel=3,
        )


def _backbone_of(model: Any) -> Any:
    return getattr(model, "backbone", model)


def with_head(config: Any, make_head: Callable[..., Any]) -> MakeModel:
    """A function from a backbone to its `System`, for `build`.

    Fields: `task.layers`, `task.norm`, `neck` (none where it is absent; see `make_neck`), and
    `head`, which are the options of `make_head`.

    Args:
        make_head: takes `widths` and `rngs` besides, such as a function of `vadapt.heads`.
    """
    layers = tuple(config.task.layers)

    def make(backbone: Any, rngs: nnx.Rngs) -> System:
        widths, strides = models.widths(backbone, layers), models.strides(backbone, layers)
        options = config.get("neck", {"name": "none"})
        neck, widths = make_neck(**options, widths=widths, strides=strides, rngs=rngs)
        head = make_head(**config.head, widths=widths, rngs=rngs)
        return System(backbone, head, layers=layers, norm=config.task.norm, neck=neck)

    return make
