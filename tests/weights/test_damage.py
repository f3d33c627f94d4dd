"""Sources that cannot be loaded: one clear error each, and the model stays what it was."""

import pickle
import shutil

import jax
import numpy as np
import pytest

from tests.weights.test_dinov2 import official, small
from vadapt import models
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.files import write_arrays
from vadapt.weights.load import load_weights

SIZE = {"width": 32, "depth": 3, "num_heads": 4, "mlp_hidden": 128, "image_size": 70}


@pytest.fixture(scope="module")
def arrays():
    return official()


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture
def refuses(model):
    """Loads a source, which must fail with these words and leave no trace."""

    def refuse(source, words, **allowed):
        before = {path: np.asarray(value[...]) for path, value in variables(model).items()}
        with pytest.raises(WeightsError, match=words) as error:
            load_weights(model, source, **allowed)
        assert "\n" not in str(error.value)
        for path, value in variables(model).items():
            np.testing.assert_array_equal(value[...], before[path], err_msg=path)
        with pytest.raises(WeightsError, match=words):
            models.create("dinov2_small", source, **SIZE)

    return refuse


def test_a_missing_tensor(arrays, refuses, tmp_path):
    write_arrays(
        tmp_path / "a.safetensors", {k: v for k, v in arrays.items() if k != "norm.weight"}
    )
    refuses(tmp_path / "a.safetensors", r"nothing was loaded.* 1 missing \(norm/scale\)")


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("blocks.1.mlp.fc1.weight", (128, 31), r"fc1/kernel: file \(31, 128\), model \(32, 128\)"),
        ("blocks.0.norm1.bias", (), r"norm/bias: file \(\), model \(32,\)"),
        ("patch_embed.proj.weight", (32, 588), r"proj/kernel: file \(32, 588\), model \(14,"),
        ("pos_embed", (1, 24, 32), r"pos_embed: file \(24, 32\), model \(26, 32\)"),
    ],
)
def test_a_wrong_shape(arrays, refuses, tmp_path, name, shape, words):
    changed = {**arrays, name: np.zeros(shape, np.float32)}
    write_arrays(tmp_path / "a.safetensors", changed)
    refuses(tmp_path / "a.safetensors", "1 mismatched .*" + words)


def test_a_wrong_family(refuses, tmp_path):
    clip = {f"visual.{name}": np.ones(4, np.float32) for name in ("ln_pre.weight", "ln_pre.bias")}
    write_arrays(tmp_path / "clip.safetensors", clip)
    refuses(tmp_path / "clip.safetensors", "clip weights: .* missing .*2 unexpected")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".index"])
@pytest.mark.parametrize("left", [0, 4, 300, -100])
def test_a_file_cut_short(arrays, refuses, tmp_path, suffix, left):
    path = tmp_path / f"model{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".safetensors":
        write_arrays(path, arrays)
    else:
        path = tmp_path / "model.safetensors.index.json"
        path.write_text('{"weight_map": {"cls_token": "' + "x" * 600 + '.safetensors"}}')
    data = path.read_bytes()
    path.write_bytes(data[:left])
    refuses(path, "cannot be read as .* fetch it again")


def test_a_safetensors_file_of_nonsense(refuses, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"<html>not found</html>" * 50)
    refuses(tmp_path / "a.safetensors", "cannot be read as .safetensors")


def test_a_shard_that_is_not_there(refuses, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"cls_token": "one.safetensors"}}')
    refuses(index, "no weight file at .*one.safetensors")


class Bomb:
    def __reduce__(self):
        return print, ("code in a weight file was run",)


def test_pickled_code_in_a_numpy_file(refuses, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", weight=np.array([Bomb()], dtype=object))
    refuses(tmp_path / "a.npz", "cannot be read as .npz .*allow_pickle")
    assert "was run" not in capsys.readouterr().out


def test_a_pickle_under_another_name(refuses, tmp_path, capsys):
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Bomb()))
    refuses(tmp_path / "a.npz", "cannot be read as .npz")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Bomb()))
    refuses(tmp_path / "a.pkl", "none of the suffixes .safetensors")
    assert "was run" not in capsys.readouterr().out


def save_orbax(folder, model):
    import orbax.checkpoint as ocp
    from flax import nnx

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, nnx.to_pure_dict(nnx.state(model)))


def test_an_orbax_checkpoint_loads_and_a_damaged_one_does_not(refuses, tmp_path):
    other = small()
    other.norm.bias[...] = np.arange(32, dtype=np.float32)
    save_orbax(tmp_path / "steps" / "7" / "default", other)
    fresh = small()
    for folder in ("steps", "steps/7", "steps/7/default"):
        load_weights(fresh, tmp_path / folder)
        for path, value in variables(other).items():
            np.testing.assert_array_equal(variables(fresh)[path][...], value[...], err_msg=path)
        fresh = small()
    for part in (tmp_path / "steps/7/default").rglob("d"):
        shutil.rmtree(part)
    refuses(tmp_path / "steps", "cannot be read as an orbax checkpoint")


def test_a_folder_of_something_else(refuses, tmp_path):
    (tmp_path / "notes.txt").touch()
    refuses(tmp_path, "holds neither model.safetensors, .* nor an orbax checkpoint")


def test_weights_lie_on_the_mesh_from_the_start(arrays, tmp_path):
    write_arrays(tmp_path / "a.safetensors", arrays)
    from vadapt import sharding

    with jax.set_mesh(sharding.make_mesh(fsdp=4)):
        model = models.create("dinov2_small", tmp_path / "a.safetensors", **SIZE)
    kernel = model.patch_embed.proj.kernel[...]  # the only one worth splitting at this size
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    assert len(model.norm.bias[...].sharding.device_set) == 8
    whole = models.create("dinov2_small", tmp_path / "a.safetensors", **SIZE)
    for path, value in variables(whole).items():
        np.testing.assert_array_equal(variables(model)[path][...], value[...], err_msg=path)
    # A model that lies on a mesh keeps its places when weights are loaded into it.
    load_weights(model, tmp_path / "a.safetensors")
    assert model.patch_embed.proj.kernel[...].sharding == kernel.sharding


def test_a_checkpoint_that_claims_more_than_its_files_is_not_read(refuses, tmp_path, monkeypatch):
    save_orbax(tmp_path / "steps" / "7" / "default", small())
    monkeypatch.setattr("vadapt.weights.orbax_files._MOST_EXPANDED", 0)
    monkeypatch.setattr("vadapt.weights.orbax_files._SLACK", 100)
    refuses(tmp_path / "steps", r"claims [\d,]+ bytes, far more than the files have")
