"""What files beside the weights say: heeded where a model is made, else compared."""

import json

import jax
import numpy as np
import pytest

from tests import compiled
from tests.weights.fake_hub import serving
from vadapt import models
from vadapt.errors import WeightsError
from vadapt.nn.activations import gelu_exact, gelu_quick, gelu_tanh
from vadapt.weights import hub
from vadapt.weights.beside import facts_of, read_beside
from vadapt.weights.export import save_hugging_face
from vadapt.weights.load import load_weights
from vadapt.weights.sources import arrays_of

SIZE = {"image_size": 32, "depth": 1, "width": 48}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def write(path, **fields):
    path.write_text(json.dumps(fields))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ViT of four heads, as transformers has it."""
    folder = tmp_path_factory.mktemp("vit")
    model = models.create("vit_tiny", num_heads=4, norm_epsilon=1e-3, **SIZE)
    save_hugging_face(model, folder, "vit")
    write(folder / "preprocessor_config.json", **HALVES)
    return folder


def test_a_model_is_made_as_the_files_say(folder):
    right = models.create("vit_tiny", num_heads=4, norm_epsilon=1e-3, **SIZE)
    images = jax.random.normal(jax.random.key(0), (1, 32, 32, 3))
    for source in (folder, folder / "model.safetensors"):
        found = models.create("vit_tiny", source, **SIZE)
        assert facts_of(found) == facts_of(right)
        assert facts_of(found)["num_attention_heads"] == 4
    wanted = compiled.run("__call__", right, images)
    np.testing.assert_array_equal(compiled.run("__call__", found, images), wanted)
    assert models.statistics("vit_tiny", folder).mean == (0.5, 0.5, 0.5)
    assert models.statistics("vit_tiny").mean != (0.5, 0.5, 0.5)


def test_what_is_otherwise_is_refused_and_can_be_allowed(folder):
    model = models.create("vit_tiny", num_heads=3, **SIZE)
    before = np.asarray(model.norm.scale[...])
    words = r"2 differing \(config.json/.*layer_norm_eps is 0.001, .* 1e-06.*num_attention_heads is"
    with pytest.raises(WeightsError, match=words) as error:
        load_weights(model, folder)
    assert "vadapt.create(name, weights)" in str(error.value)
    np.testing.assert_array_equal(model.norm.scale[...], before)
    with pytest.raises(WeightsError, match=r"num_attention_heads is 4, the model's is 2"):
        models.create("vit_tiny", folder, num_heads=2, **SIZE)
    load_weights(model, folder, allow_unexpected=["config.json/.*"])


@pytest.mark.parametrize(
    ("name", "said", "activation"),
    [
        ("clip_base", {"model_type": "clip_vision_model"}, gelu_quick),  # transformers' default
        ("clip_base", {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, gelu_exact),
        ("vit_tiny", {"model_type": "vit", "hidden_act": "gelu_new"}, gelu_tanh),
        ("clip_base", {"architecture": "vit_base_patch16_clip_quickgelu_224"}, gelu_quick),
    ],
)
def test_activations(tmp_path, name, said, activation):
    write(tmp_path / "config.json", **said)
    options = read_beside(tmp_path).options(models.BACKBONES[name].build)
    assert options["activation"] is activation


def test_an_activation_that_is_none_here_is_refused(folder, tmp_path):
    arrays = dict(arrays_of(folder))
    np.savez(tmp_path / "model.npz", **arrays)
    config = json.loads((folder / "config.json").read_text())
    write(tmp_path / "config.json", **{**config, "hidden_act": "relu"})
    with pytest.raises(WeightsError, match=r"config.json/hidden_act is 'relu', the model's is 'ge"):
        models.create("vit_tiny", tmp_path / "model.npz", **SIZE)


def test_files_that_lie_together_by_chance_are_not_compared(folder, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays_of(folder))
    write(tmp_path / "config.json", model_type="vit", hidden_act="relu")
    models.create("vit_tiny", tmp_path / "mine.npz", **SIZE)


def test_open_clip(tmp_path):
    vision = {"layers": 12, "width": 768, "patch_size": 16, "head_width": 96}
    write(
        tmp_path / "open_clip_config.json",
        model_cfg={"vision_cfg": vision, "quick_gelu": True},
        preprocess_cfg={"mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]},
    )
    # That of another file, where the weights are OpenCLIP's.
    write(tmp_path / "config.json", model_type="clip", vision_config={"hidden_act": "gelu"})
    (tmp_path / "open_clip_model.safetensors").touch()
    found = read_beside(tmp_path)
    assert found.file == "open_clip_config.json"
    wanted = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_attention_heads": 8}
    assert found.facts == wanted
    assert found.statistics == ((0.1, 0.2, 0.3), (1.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("pixels", "mean", "std"),
    [
        (HALVES, 0.5, 0.5),
        ({"do_normalize": False}, 0.0, 1.0),
        ({**HALVES, "rescale_factor": 1 / 127.5}, 0.25, 0.25),  # (2 x - 0.5) / 0.5
    ],
)
def test_pixels(tmp_path, pixels, mean, std):
    write(tmp_path / "preprocessor_config.json", **pixels)
    found = read_beside(tmp_path).statistics
    np.testing.assert_allclose(found, [[mean] * 3, [std] * 3])


def test_windows_and_rotations_no_shape_tells(tmp_path):
    size = {"width": 32, "depth": 2, "num_heads": 2, "image_size": 64, "neck": 8}
    right = models.create("sam_base", global_blocks=[0], window=2, **size)
    save_hugging_face(right, tmp_path / "sam", "sam")
    found = models.create("sam_base", tmp_path / "sam", **size)
    assert facts_of(found) == facts_of(right)
    with pytest.raises(WeightsError, match="window_size is 2, the model's is 3"):
        models.create("sam_base", tmp_path / "sam", **size, window=3, relative_positions=False)
    model = models.create("dinov3_small", **SIZE, num_heads=4)
    save_hugging_face(model, tmp_path / "v3", "dinov3")
    config = json.loads((tmp_path / "v3" / "config.json").read_text())
    write(tmp_path / "v3" / "config.json", **config, rope_theta=10000.0)
    with pytest.raises(WeightsError, match=r"rope_theta is 10000.0, the model's is 100.0"):
        models.create("dinov3_small", tmp_path / "v3", **SIZE)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"model_type": ["vit"]}',
        '{"pretrained_cfg": 3, "architecture": "x"}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0, 1, 1], "architecture": "x"}',
    ],
)
def test_nonsense_is_refused_in_one_line(folder, tmp_path, text):
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config.json") as error:
        models.create("vit_tiny", tmp_path, **SIZE)
    assert "\n" not in str(error.value)


def test_the_hub_serves_what_lies_beside(folder, tmp_path):
    with serving() as server:
        server.repositories["a/b"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        path = hub.download("hf:a/b", endpoint=server.url, cache_dir=tmp_path)
    assert read_beside(path).facts["num_attention_heads"] == 4
    assert read_beside(path).statistics.mean == (0.5, 0.5, 0.5)
