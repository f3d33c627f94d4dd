"""Files that torch itself wrote."""

import numpy as np
import pytest

from tests.weights.test_load import autoencoder, official
from vadapt.errors import WeightsError
from vadapt.partition import variables
from vadapt.weights.files import read_arrays
from vadapt.weights.load import load_weights


def test_a_torch_checkpoint_loads_through_the_same_path(tmp_path):
    import torch

    arrays = official()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "mae.pth")
    model = autoencoder()
    assert len(load_weights(model, tmp_path / "mae.pth").loaded) == len(arrays)
    twin = autoencoder()
    load_weights(twin, arrays)
    for name, value in variables(model).items():
        np.testing.assert_array_equal(value[...], variables(twin)[name][...])


class Bomb:
    def __reduce__(self):
        return print, ("code in a weight file was run",)


def test_code_in_a_torch_file_is_not_run(tmp_path, capsys):
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in official().items()}
    torch.save({"model": tensors, "hook": Bomb()}, tmp_path / "mae.pth")
    with pytest.raises(WeightsError, match="holds more than tensors: code that reading it would"):
        load_weights(autoencoder(), tmp_path / "mae.pth")
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize("left", [0, 100, -1000])
def test_a_torch_file_cut_short_is_said_to_be_damaged(tmp_path, left):
    import torch

    path = tmp_path / "mae.pth"
    torch.save({name: torch.from_numpy(array) for name, array in official().items()}, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(WeightsError, match=r"mae.pth' (is damaged|cannot be read)"):
        load_weights(autoencoder(), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model_is_no_file_of_tensors(tmp_path):
    import torch

    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match="TorchScript"):
        load_weights(autoencoder(), tmp_path / "clip.pt")


def test_tensors_of_other_kinds_are_refused_and_repeated_ones_take_no_memory(tmp_path):
    import torch

    path = tmp_path / "a.pth"
    torch.save({"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2).bfloat16()}, path)
    arrays = read_arrays(path)
    np.testing.assert_array_equal(arrays["a"], [1, 1])
    np.testing.assert_array_equal(arrays["b"], [1, 1])
    assert arrays["b"].dtype == np.float32
    # One number, which torch repeats: a petabyte, were it read.
    torch.save({"a": torch.ones(1).bfloat16().expand(2**24, 2**24)}, path)
    with pytest.raises(WeightsError, match="1 unexpected"):
        load_weights(autoencoder(), path)
    for strange in (
        torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2).to(torch.float8_e4m3fn),
    ):
        torch.save({"a": strange}, path)
        with pytest.raises(WeightsError, match=r"a\.pth") as error:
            read_arrays(path)
        assert "\n" not in str(error.value)
