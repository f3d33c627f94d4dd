"""Sites: the places of a model where a method can take hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from flax import nnx

from vadapt.nn.blocks import Branch
from vadapt.nn.convolutions import ConvNorm
from vadapt.nn.norms import GroupNorm, LayerNorm

KINDS: dict[str, tuple[type, ...]] = {
    "branch": (Branch,),
    "linear": (nnx.Linear, nnx.LinearGeneral, nnx.Einsum),
    "conv": (nnx.Conv,),
    "conv_norm": (ConvNorm,),
    "norm": (LayerNorm, GroupNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.BatchNorm, nnx.RMSNorm),
}


class Site(NamedTuple):
    """A place that holds a module.

    Attributes:
        path: where it is, as in "blocks/3/attn/inner/qkv".
        kind: "block", or a key of `KINDS`.
        module, owner, name: what stands there, what holds it, and as what.
        roles: what it does, whatever its name: "mlp_in", "mlp_out", "attn_out"; of a fused layer
            one role for each of the equal parts of its outputs: ("q", "k", "v"). Owners say so in
            their class attribute `ROLES`.
    """

    path: str
    kind: str
    module: Any
    owner: Any
    name: Any
    roles: tuple[str, ...] = ()

    def put(self, module: Any) -> None:
        """Put another module there, in place."""
        if isinstance(self.owner, list | dict | nnx.List | nnx.Dict):
            self.owner[self.name] = module
        else:
            setattr(self.owner, self.name, module)


def sites(model: Any, *kinds: str, whole: bool = False) -> list[Site]:
    """The sites of a model, or of its blocks where it is a trunk; of these kinds, or of all.

    Args:
        model: any NNX module, its layers in containers of any kind.
        whole: also what stands outside of a trunk's blocks: its stem, its last norm.
    """
    found = []
    if hasattr(model, "patch_embed"):
        found += [s._replace(roles=("input",)) for s in _inside(model.patch_embed, "patch_embed")]
    for prefix, owner, name, block in _blocks(model):
        if block is not model:
            found.append(Site(prefix, "block", block, owner, name))
        found += _inside(block, prefix)
    if whole:
        inside = {site.path for site in found}
        found += [site for site in _inside(model, "") if site.path not in inside]
    return [site for site in found if not kinds or site.kind in kinds]


def _blocks(model: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, owner, name and module of the blocks; of the model itself where it has none."""
    if hasattr(model, "stages"):
        for i, stage in enumerate(model.stages):
            for j, block in enumerate(stage):
                yield f"stages/{i}/{j}", stage, j, block
    elif hasattr(model, "blocks"):
        for i, block in enumerate(model.blocks):
            yield f"blocks/{i}", model.blocks, i, block
    else:
        yield "", None, None, model


def _inside(block: Any, prefix: str) -> Iterator[Site]:
    for path, owner in nnx.iter_graph(block):
        for name, child in _children(owner):
            kind = next((kind for kind, types in KINDS.items() if isinstance(child, types)), None)
            if kind is not None:
                parts = [prefix, *map(str, path), str(name)]
                roles = getattr(owner, "ROLES", {}).get(name, ())
                yield Site("/".join(filter(None, parts)), kind, child, owner, name, roles)


def _children(owner: Any) -> list[tuple[Any, Any]]:
    if isinstance(owner, list | nnx.List):
        return list(enumerate(owner))
    if isinstance(owner, dict | nnx.Dict):
        return list(owner.items())
    return list(vars(owner).items()) if isinstance(owner, nnx.Module) else []
