"""Files that torch itself wrote."""

import numpy as np

from tests.weights.test_load import autoencoder, official
from vadapt.partition import variables
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
