"""Names of teachers' checkpoints, and MMSelfSup's."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights.test_load import official
from vadapt import models
from vadapt.backbones.teachers import TEACHERS, Kind, Tower
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.nn.activations import gelu_quick
from vadapt.partition import Frozen, variables
from vadapt.weights.families.clip import CLIP, CLIP_HF, SLIP
from vadapt.weights.families.mae import MAE
from vadapt.weights.families.mmselfsup import official_name, renamed
from vadapt.weights.load import load_weights
from vadapt.weights.tables import convert, revert

CLIP_OPTIONS = {"patch_bias": False, "first_norm": True, "activation": gelu_quick}


def small_tower(projection=5, **options):
    backbone = vit("micro", depth=2, image_size=32, rngs=nnx.Rngs(0), **options)
    return Tower(backbone, projection, rngs=nnx.Rngs(0))


def clip_file():
    """Random arrays as a CLIP file names them, a part of a text tower included."""
    rng = np.random.default_rng(0)
    values = {
        path: rng.normal(size=value.shape).astype(np.float32)
        for path, value in variables(small_tower(**CLIP_OPTIONS)).items()
    }
    arrays, lost = revert(values, CLIP, backbone="backbone/")
    assert lost == []
    text = {"transformer.resblocks.0.ln_1.weight": np.ones(4, np.float32)}
    return {**arrays, **text, "logit_scale": np.ones((), np.float32)}


@pytest.fixture
def known_tower(monkeypatch):
    """`clip_b16` as a micro ViT with two blocks."""
    options = {**CLIP_OPTIONS, "depth": 2}
    kind = Kind("micro", 5, options, TEACHERS["clip_b16"].names)
    monkeypatch.setitem(TEACHERS, "clip_b16", kind)


def test_clip_names_are_the_published_ones():
    names = set(clip_file())
    assert {
        "visual.conv1.weight",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.ln_pre.weight",
        "visual.ln_post.bias",
        "visual.proj",
        "visual.transformer.resblocks.1.attn.in_proj_weight",
        "visual.transformer.resblocks.1.attn.in_proj_bias",
        "visual.transformer.resblocks.1.attn.out_proj.weight",
        "visual.transformer.resblocks.1.ln_1.weight",
        "visual.transformer.resblocks.1.mlp.c_fc.bias",
        "visual.transformer.resblocks.1.mlp.c_proj.weight",
    } <= names
    assert clip_file()["visual.conv1.weight"].shape == (96, 3, 8, 8)
    assert clip_file()["visual.proj"].shape == (96, 5)
    assert clip_file()["visual.class_embedding"].shape == (96,)
    assert clip_file()["visual.positional_embedding"].shape == (17, 96)


@pytest.mark.parametrize("prefix", ["", "target_generator.tokenizer."], ids=["clip", "mmselfsup"])
def test_a_teacher_takes_its_part_of_a_file_and_never_trains(known_tower, tmp_path, prefix):
    arrays = {prefix + name: array for name, array in clip_file().items()}
    # MMSelfSup's file holds the student as well.
    arrays |= {"backbone.layers.0.ln1.weight": np.zeros(96, np.float32)} if prefix else {}
    np.savez(tmp_path / "clip.npz", **arrays)
    teacher = models.create_teacher("clip_b16", str(tmp_path / "clip.npz"), image_size=32)
    np.testing.assert_array_equal(teacher.proj[...], arrays[prefix + "visual.proj"])
    scale = teacher.backbone.first_norm.scale[...]
    np.testing.assert_array_equal(scale, arrays[prefix + "visual.ln_pre.weight"])
    assert {type(value) for value in variables(teacher).values()} == {Frozen}


def test_a_file_without_the_tower_or_with_a_part_of_it_is_refused(known_tower, tmp_path):
    np.savez(tmp_path / "text.npz", logit_scale=np.ones(1))
    with pytest.raises(WeightsError, match="visual"):
        models.create_teacher("clip_b16", str(tmp_path / "text.npz"), image_size=32)
    arrays = clip_file()
    del arrays["visual.proj"]
    np.savez(tmp_path / "part.npz", **arrays)
    with pytest.raises(WeightsError, match="1 missing"):
        models.create_teacher("clip_b16", str(tmp_path / "part.npz"), image_size=32)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_slip_is_a_timm_trunk_with_an_image_projection(wrapper):
    arrays = {f"{wrapper}visual.{name}": array for name, array in official(decoder=False).items()}
    arrays[f"{wrapper}image_projection"] = np.full((96, 5), 0.5, np.float32)
    tower = small_tower()
    report = load_weights(tower, arrays)
    assert report.family == "slip"
    np.testing.assert_array_equal(tower.proj[...], 0.5)
    kernel = arrays[f"{wrapper}visual.blocks.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(tower.backbone.blocks[1].mlp.inner.fc1.kernel[...], kernel)


def test_slip_and_milan_names_are_written_back_as_they_were_read():
    slip = {f"visual.{name}": array for name, array in official(decoder=False).items()}
    slip["image_projection"] = np.ones((96, 5))
    assert revert(convert(slip, SLIP)[0], SLIP)[0].keys() == slip.keys()
    milan = {f"decoder_blocks.0.attn.{name}.weight": np.ones((2, 2)) for name in ("q", "kv")}
    converted = convert(milan, MAE)[0]
    assert set(converted) == {f"decoder/blocks/0/attn/inner/{x}/kernel" for x in ("q", "kv")}
    assert revert(converted, MAE)[0].keys() == milan.keys()


def test_dino_is_a_plain_timm_trunk():
    tower = small_tower(None)
    assert load_weights(tower, official(decoder=False)).missing == []


def mmselfsup(name):
    """An official name as MMSelfSup writes it."""
    if name.startswith(("mask_token", "decoder_")):
        name = "neck." + name.replace("decoder_norm", "ln1")
    else:
        name = "backbone." + name.replace("blocks.", "layers.")
        name = name.replace("backbone.norm.", "backbone.ln1.")
    for theirs, ours in (
        ("ffn.layers.0.0", "mlp.fc1"),
        ("ffn.layers.1", "mlp.fc2"),
        (".ln1.", ".norm1."),
        (".ln2.", ".norm2."),
        ("patch_embed.projection", "patch_embed.proj"),
    ):
        name = name.replace(ours, theirs)
    return name


def test_mmselfsups_names_become_the_official_ones():
    arrays = official()
    theirs = {mmselfsup(name): array for name, array in arrays.items()}
    assert "backbone.layers.0.ffn.layers.0.0.weight" in theirs
    assert "neck.decoder_blocks.0.ln2.bias" in theirs
    assert "neck.ln1.weight" in theirs
    assert "backbone.ln1.weight" in theirs
    assert renamed(theirs).keys() == arrays.keys()
    assert renamed(arrays) is arrays


@pytest.mark.parametrize(
    ("theirs", "official"),
    [
        ("neck.decoder_blocks.7.attn.kv.bias", "decoder_blocks.7.attn.kv.bias"),
        ("backbone.layers.3.attn.proj.weight", "blocks.3.attn.proj.weight"),
        ("target_generator.tokenizer.visual.ln_pre.bias", "visual.ln_pre.bias"),
        ("data_preprocessor.mean", "data_preprocessor.mean"),
    ],
)
def test_single_names_of_mmselfsup(theirs, official):
    assert official_name(theirs) == official


def test_a_backbone_loads_from_mmselfsup_and_names_what_it_does_not_know():
    model = vit("micro", depth=2, image_size=32, positions="sincos", rngs=nnx.Rngs(0))
    theirs = {mmselfsup(name): array for name, array in official(decoder=False).items()}
    theirs["data_preprocessor.mean"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError, match=r"data_preprocessor\.mean"):
        load_weights(model, theirs)
    report = load_weights(model, theirs, allow_unexpected=[r"data_preprocessor\..*"])
    assert report.family == "mae"
    assert report.missing == []


def test_an_array_of_another_shape_is_passed_over_only_if_both_lists_say_so():
    model = vit("micro", depth=2, image_size=32, positions="sincos", rngs=nnx.Rngs(0))
    arrays = official(decoder=False)
    arrays["norm.bias"] = np.ones(7, np.float32)
    with pytest.raises(WeightsError, match="1 mismatched"):
        load_weights(model, arrays, allow_missing=["norm/.*"])
    load_weights(model, arrays, allow_missing=["norm/.*"], allow_unexpected=["norm/.*"])
    np.testing.assert_array_equal(model.norm.bias[...], jnp.zeros(96))
    np.testing.assert_array_equal(model.norm.scale[...], arrays["norm.weight"])


def clip_tower():
    return small_tower(**CLIP_OPTIONS, norm_epsilon=1e-5)


def test_a_teacher_takes_its_part_of_hugging_faces_file(known_tower, tmp_path):
    values = {
        path: np.asarray(v[...]) for path, v in variables(small_tower(**CLIP_OPTIONS)).items()
    }
    arrays, _ = revert(values, CLIP_HF, backbone="backbone/")
    arrays["text_model.final_layer_norm.weight"] = np.ones(4, np.float32)
    arrays["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    np.savez(tmp_path / "clip.npz", **arrays)
    teacher = models.create_teacher("clip_b16", str(tmp_path / "clip.npz"), image_size=32)
    np.testing.assert_array_equal(teacher.proj[...], arrays["visual_projection.weight"].T)
