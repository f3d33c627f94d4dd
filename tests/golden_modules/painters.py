"""Golden cases of plans: blocks that run in other orders, and how alike their states are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import imported, nhwc
from vadapt.backbones.vit import ViT
from vadapt.kernels.attention import attention
from vadapt.metrics import layers
from vadapt.nn import plans
from vadapt.nn.activations import gelu_exact
from vadapt.nn.norms import LayerNorm
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import run_blocks
from vadapt.weights.load import with_arrays

Arrays = dict[str, Any]


def planned(variant: Fields, depth: int) -> plans.Plan:
    """The plan that a variant names, which has to be what the file says of it."""
    method = variant["method"]
    given = [variant[name] for name in ("start", "index", "seed", "loops") if name in variant]
    plan = plans.VARIANTS[method](depth, *given)
    if method == "loop_parallel":
        middle = plans.middle(depth, variant["start"])
        before, after = range(middle.start), range(middle.stop, depth)
        same(variant, head=list(before), middle=list(middle), tail=list(after))
    else:
        same(variant, order=list(plan))
    return plan


def variants(config: Fields, blocks: Any, embedded: Any, leave: Callable[[Any], Any]) -> Arrays:
    """What every variant gives, and how alike the states of the unchanged model are."""
    depth = config["num_layers"]
    found, taps = {}, range(depth)
    for name in config["variants"].names():
        plan = planned(config["variants"][name], depth)
        found[name] = leave(run_blocks(blocks, embedded, plan=plan).x.array)
    seen = run_blocks(blocks, embedded, taps=taps).seen
    states = jnp.stack([embedded.array, *(seen[tap].array for tap in taps)])
    return {**found, "cosine": layers.layer_similarity(states)}


def vit(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, act=("gelu_exact",), pre_norm=(True,), cls_token=(True,), final_norm=(True,))
    model = ViT(
        width=config["dim"],
        depth=config["num_layers"],
        num_heads=config["heads"],
        mlp_hidden=config["mlp"],
        patch_size=config["patch"],
        image_size=tuple(config["image_hw"]),
        norm_epsilon=config["ln_eps"],
        qkv_bias=config["qkv_bias"],
        rngs=nnx.Rngs(0),
    )
    model = imported(model, params)
    embedded = model.embed(nhwc(inputs["image"]))
    embedded = embedded + inputs.get("embeddings", jnp.zeros_like(embedded))
    found = variants(config, model.blocks, Tokens(embedded), lambda x: model.leave(x, -1))
    return {**found, "embeddings": embedded}


class PostNormBlock(nnx.Module):
    """A layer of BERT's encoder: norms come after the sums."""

    def __init__(self, config: Fields, params: Arrays, prefix: str, mask: Any):
        self.mask, self.num_heads = mask, config["heads"]

        def linear(name: str) -> nnx.Linear:
            weight, bias = params[f"{prefix}{name}.weight"], params[f"{prefix}{name}.bias"]
            layer = nnx.Linear(weight.shape[1], weight.shape[0], rngs=nnx.Rngs(0))
            return with_arrays(layer, {"kernel": weight.T, "bias": bias})

        def norm(name: str) -> LayerNorm:
            layer = LayerNorm(config["dim"], epsilon=config["ln_eps"])
            values = {"scale": params[f"{prefix}{name}.weight"]}
            return with_arrays(layer, {**values, "bias": params[f"{prefix}{name}.bias"]})

        self.qkv = nnx.List([linear(f"attention.self.{n}") for n in ("query", "key", "value")])
        self.out = linear("attention.output.dense")
        self.attn_norm = norm("attention.output.LayerNorm")
        self.fc1, self.fc2 = linear("intermediate.dense"), linear("output.dense")
        self.mlp_norm = norm("output.LayerNorm")

    def __call__(self, x: Any, key: Any = None) -> Any:
        heads = [
            rearrange(layer(x), "b n (h d) -> b n h d", h=self.num_heads) for layer in self.qkv
        ]
        seen = attention(*heads, mask=self.mask)
        x = self.attn_norm(x + self.out(rearrange(seen, "b n h d -> b n (h d)")))
        return self.mlp_norm(x + self.fc2(gelu_exact(self.fc1(x))))


def bert_encoder(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, act=("gelu_exact",), post_norm=(True,))
    batch, seq, _ = inputs["hidden"].shape
    hidden = params["layer.0.intermediate.dense.weight"].shape[0]
    same(config, batch=batch, seq=seq, mlp=hidden)
    mask = inputs["attention_mask"][:, None] > 0
    blocks = [
        PostNormBlock(config, params, f"layer.{i}.", mask) for i in range(config["num_layers"])
    ]
    return variants(config, blocks, Tokens(inputs["hidden"]), lambda x: x)


def execution_orders(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    longest = max(row["T"] for row in config["rows"])
    orders, lengths = [], []
    for row in config["rows"]:
        depth, method = row["T"], row["method"]
        if method == "loop_parallel_middle":
            order = list(plans.middle(depth, row["start"]))
        else:
            given = [row[name] for name in ("start", "seed") if name in row]
            order = list(plans.VARIANTS[method](depth, *given))
        orders.append(order + [-1] * (longest - len(order)))
        lengths.append(len(order))
    return {"orders": np.asarray(orders), "lengths": np.asarray(lengths)}


def layer_cosine(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    hidden = inputs["hidden"]
    same(config, batches=hidden.shape[0], num_layers=hidden.shape[1] - 1)
    return {"cosine": layers.average([layers.layer_similarity(states) for states in hidden])}


def score_normalisation(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    same(config, variants=len(inputs["scores"]), benchmarks=len(inputs["full"]))
    scores = np.asarray(inputs["scores"])
    found = layers.normalised(scores, np.asarray(inputs["random"]), np.asarray(inputs["full"]))
    return {"normalised": found, "median": np.median(found, -1), "mean": found.mean(-1)}


MODULES = {
    "vit": vit,
    "bert_encoder": bert_encoder,
    "execution_orders": execution_orders,
    "layer_cosine": layer_cosine,
    "score_normalisation": score_normalisation,
}
