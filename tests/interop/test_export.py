"""Folders that `save_hugging_face` writes, as transformers reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.interop.references import RELATIVE, call, images, relative_error
from vadapt import adapters, models
from vadapt.weights.export import save_hugging_face

KINDS = {
    "plain": {},
    "swiglu": {"swiglu": True},
    "registers": {"num_registers": 4, "position_resize": "cubic_antialias"},
    "registers and swiglu": {
        "num_registers": 4,
        "position_resize": "cubic_antialias",
        "swiglu": True,
    },
    "no bias of qkv": {"qkv_bias": False, "norm_epsilon": 1e-5},
}
SIZE = {"width": 32, "depth": 2, "num_heads": 4}


def random(model, seed=0):
    """The model with every weight drawn anew."""
    rng = np.random.default_rng(seed)
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            node[...] = jnp.asarray(rng.normal(scale=0.3, size=node.shape), jnp.float32)
    return model


def dinov2(**options):
    # transformers samples the table at the exact step, the official code of DINOv2 does not.
    options = {"position_resize": "cubic", **SIZE, "image_size": 70, **options}
    return random(models.create("dinov2_small", **options))


def clip():
    return random(models.create("clip_base", **SIZE, image_size=32, patch_size=8))


def reread(folder):
    import transformers

    model, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    missing = set(report["missing_keys"]) - {"embeddings.mask_token"}
    assert [*missing, *report["unexpected_keys"], *report["mismatched_keys"]] == []
    return model.eval()


def run(model, pixels, **options):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x: nnx.merge(graph, state).features(x, **options))(state, pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_dinov2_computes_the_same(kind, tmp_path):
    model = dinov2(**KINDS[kind])
    theirs = reread(save_hugging_face(model, tmp_path, "dinov2"))
    for size in [(70, 70), (98, 56)]:
        expected = call(theirs, images(size)).last_hidden_state
        assert relative_error(run(model, images(size)), expected) < RELATIVE


def test_clip_computes_the_same(tmp_path):
    model = clip()
    theirs = reread(save_hugging_face(model, tmp_path, "clip"))
    for size in [(32, 32), (40, 24)]:
        outputs = call(theirs, images(size), interpolate_pos_encoding=True)
        assert relative_error(run(model, images(size), norm=False), outputs[0]) < RELATIVE
        assert relative_error(run(model, images(size))[:, 0], outputs.pooler_output) < RELATIVE


@pytest.mark.parametrize("family", ["dinov2", "clip"])
def test_a_folded_adapter_computes_the_same(family, tmp_path):
    plain = dinov2() if family == "dinov2" else clip()
    adapted = adapters.apply(plain, "lora", rank=2, targets=("q", "v", "fc2"))
    for i, block in enumerate(adapted.blocks):
        for layer in (block.attn.inner.qkv, block.mlp.inner.fc2):
            layer.lora.up[...] = jax.random.normal(jax.random.key(i), layer.lora.up.shape)
    theirs = reread(save_hugging_face(adapters.fold(adapted), tmp_path, family))
    pixels = images((70, 70) if family == "dinov2" else (32, 32))
    expected = call(theirs, pixels).last_hidden_state
    norm = family == "dinov2"
    assert relative_error(run(adapted, pixels, norm=norm), expected) < RELATIVE
    assert relative_error(run(plain, pixels, norm=norm), expected) > 1e-2
