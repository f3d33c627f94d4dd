"""`python -m vadapt.weights`: every command, in process, and how it refuses."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tests.weights.fake_hub import serving
from tests.weights.test_convnext import DEPTHS, WIDTHS
from tests.weights.test_convnext import small as small_convnext
from vadapt import adapters, models
from vadapt.weights import hub, publish
from vadapt.weights.__main__ import main
from vadapt.weights.adapter_file import save_adapter, save_model
from vadapt.weights.export import save_hugging_face
from vadapt.weights.files import Lazy, read_arrays
from vadapt.weights.load import load_weights
from vadapt.weights.stablehlo import load_exported

SIZE = {"width": 32, "depth": 2, "num_heads": 4}
OPTIONS = [f"--options={json.dumps(SIZE)}", "--image-size", "28"]


def dinov2():
    return models.create("dinov2_small", image_size=28, **SIZE)


def trained(method, **options):
    model = adapters.apply(dinov2(), method, **options)
    if method == "lora":
        up = model.blocks[0].attn.inner.qkv.lora.up
        up[...] = jnp.linspace(-1, 1, up.size).reshape(up.shape)
    return model


@pytest.fixture
def files(tmp_path):
    """Weights, a LoRA adapter of them, and one that cannot be folded; paths as text."""
    save_hugging_face(dinov2(), tmp_path / "base", "dinov2")
    for name, method, options in (("lora", "lora", {"rank": 2}), ("pad", "patchwise_scale", {})):
        save_adapter(
            tmp_path / f"{name}.safetensors", trained(method, **options), backbone="dinov2_small"
        )
    return {
        "base": str(tmp_path / "base" / "model.safetensors"),
        "lora": str(tmp_path / "lora.safetensors"),
        "pad": str(tmp_path / "pad.safetensors"),
        "out": str(tmp_path / "out"),
    }


def model_of(files, *more):
    return ["--backbone=dinov2_small", f"--weights={files['base']}", *OPTIONS, *more]


def refused(capsys, *arguments):
    """What a command that fails says."""
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err.strip()
    assert "Traceback" not in error
    return error


def test_inspect_shows_header_groups_and_sums(files, capsys):
    assert main(["inspect", files["lora"], "--depth=4"]) == 0
    shown = capsys.readouterr().out
    for text in ("dinov2_small", '"rank": 2', "blocks/attn/inner/qkv", "in all", "512", "2.0 KiB"):
        assert text in shown
    np.savez(files["out"] + ".npz", **{"a.0.x": np.ones(3, np.float16), "a.1.x": np.ones(2)})
    assert main(["inspect", files["out"] + ".npz"]) == 0
    assert "a/x" in (shown := capsys.readouterr().out)
    assert "float16, float64" in shown


def test_inspect_reads_no_numbers(files, capsys, monkeypatch):
    def read(*_):
        raise AssertionError("numbers were read")

    monkeypatch.setattr(Lazy, "__array__", read)
    assert main(["inspect", files["base"]]) == 0
    assert "in all" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_weight_file(files, capsys, tmp_path):
    assert "no weight file at" in refused(capsys, "inspect", files["out"] + ".safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert "cannot be read" in refused(capsys, "inspect", str(tmp_path / "x.safetensors"))


def test_merge_writes_what_loads_as_a_plain_backbone(files, tmp_path, capsys):
    images = jnp.ones((1, 28, 28, 3))
    wanted = compiled.run("__call__", trained("lora", rank=2), images)
    for out, file in (("whole.safetensors", ""), ("folder", "/model.safetensors")):
        arguments = model_of(files, f"--adapter={files['lora']}", f"--out={tmp_path / out}")
        assert main(["merge", *arguments]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / out)
        merged = dinov2()
        load_weights(merged, f"{tmp_path / out}{file}")
        found = compiled.run("__call__", merged, images)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(compiled.run("__call__", dinov2(), images) - wanted).max() > 1e-2


def test_what_cannot_be_folded_is_refused(files, capsys, tmp_path):
    arguments = model_of(files, f"--adapter={files['pad']}", f"--out={files['out']}")
    assert "depends on the input" in refused(capsys, "merge", *arguments)
    assert "depends on the input" in refused(capsys, "export", "--format=huggingface", *arguments)
    assert not (tmp_path / "out").exists()


def test_export_to_stablehlo_with_an_adapter(files, capsys):
    arguments = model_of(files, f"--adapter={files['pad']}", f"--out={files['out']}")
    arguments += ["--format=stablehlo", "--layers", "0", "1", "--as-grid", "--input-size", "30"]
    assert main(["export", *arguments]) == 0
    assert "dinov2_small: uint8 [b, 30, 30, 3] -> layer_0 [b, 2, 2, 32]" in capsys.readouterr().out
    assert load_exported(files["out"])(np.zeros((2, 30, 30, 3), np.uint8))["layer_1"].shape[0] == 2


def test_export_to_hugging_face(files, tmp_path):
    out = f"--out={files['out']}"
    assert main(["export", *model_of(files, out), "--format=huggingface"]) == 0
    found, wanted = read_arrays(tmp_path / "out" / "model.safetensors"), read_arrays(files["base"])
    assert found.keys() == wanted.keys()
    assert (tmp_path / "out" / "config.json").exists()


def test_export_of_stages_asks_for_a_size(files, capsys, tmp_path):
    save_model(tmp_path / "model.safetensors", small_convnext())
    toy = json.dumps({"depths": DEPTHS, "widths": WIDTHS})
    arguments = ["--backbone=convnext_tiny", f"--weights={tmp_path / 'model.safetensors'}"]
    arguments += [f"--options={toy}", f"--out={files['out']}"]
    stablehlo = ["export", *arguments, "--format=stablehlo"]
    assert "convnext_tiny takes any size: say which with --image-size" in refused(
        capsys, *stablehlo
    )
    assert main([*stablehlo, "--image-size", "64", "96", "--as-grid"]) == 0
    assert "[b, 64, 96, 3] -> features [b, 2, 3, 10]" in capsys.readouterr().out
    (tmp_path / "out").unlink()
    assert main(["export", *arguments, "--format=huggingface"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "convnext"


def test_there_and_back_through_the_hub(files, capsys, monkeypatch, tmp_path):
    with serving() as server:
        place = {"endpoint": server.url, "token": "secret"}
        push, pull = publish.push, hub.pull
        monkeypatch.setattr(publish, "push", lambda *a, **k: push(*a, **k, **place))
        cache = {"cache_dir": tmp_path / "cache"}
        monkeypatch.setattr(hub, "pull", lambda *a, **k: pull(*a, **k, **place, **cache))
        assert main(["push", files["lora"], "me/it", "--private", "--message=Hello"]) == 0
        assert "me/it/commit/" in capsys.readouterr().out
        assert server.private == {"me/it"}
        assert main(["pull", "hf:me/it", f"--out={files['out']}"]) == 0
        assert (tmp_path / "out").read_bytes() == (tmp_path / "lora.safetensors").read_bytes()
        assert "no adapter file" in refused(capsys, "push", files["base"], "me/it")
        assert "does not exist" in refused(capsys, "pull", "hf:me/that", "--out=x")


def test_wrong_names_and_arguments_end_in_a_few_words(files, capsys):
    out, weights = f"--out={files['out']}", f"--weights={files['base']}"
    error = refused(capsys, "merge", "--backbone=dinov2_smal", weights, out, "--adapter=x")
    assert "no adapter file at 'x'" in error
    lora = f"--adapter={files['lora']}"
    error = refused(capsys, "export", "--backbone=dinov2_smal", weights, "--format=stablehlo", out)
    assert "nearest: 'dinov2_small'" in error
    error = refused(capsys, "merge", "--backbone=eva02_base", weights, out, lora)
    assert "no transformers family is known for 'eva02_base'" in error
    assert "JSON" in refused(capsys, "merge", *model_of(files, lora, out), "--options={")
    error = refused(capsys, "merge", *model_of(files, lora, out), "--image-size", "1", "2", "3")
    assert "height and width" in error
    for arguments in ([], ["exprot"], ["export"], ["pull", "hf:a/b"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    capsys.readouterr()


@pytest.mark.parametrize("command", ["inspect", "export", "merge", "push", "pull"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"python -m vadapt.weights {command}" in " ".join(capsys.readouterr().out.split())


def test_a_file_of_a_whole_model_is_no_adapter(files, capsys, tmp_path):
    save_model(tmp_path / "model.safetensors", dinov2())
    arguments = model_of(files, f"--adapter={tmp_path / 'model.safetensors'}", f"--out={tmp_path}")
    assert "is no adapter file" in refused(capsys, "merge", *arguments)
