"""ResNet against transformers' model, and dilated V1c against torch's functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.references import (
    RELATIVE,
    call,
    images,
    loaded,
    maps,
    randomised,
    relative_error,
)
from tests.weights.test_resnet import WIDTH, file_of, small
from vadapt.backbones.resnet import DEPTHS
from vadapt.weights.families.resnet import RESNET, RESNET_V1C
from vadapt.weights.load import load_weights

STAGES = (0, 1, 2, 3)
SIZES = [(64, 64), (75, 50)]
DEPTH = pytest.mark.parametrize("depth", [18, 50])


def reference(depth):
    import transformers

    widths = [WIDTH * 2**i * (4 if depth >= 50 else 1) for i in STAGES]
    config = transformers.ResNetConfig(
        embedding_size=WIDTH,
        hidden_sizes=widths,
        depths=list(DEPTHS[depth]),
        layer_type="bottleneck" if depth >= 50 else "basic",
    )
    return randomised(transformers.ResNetModel(config))


def features(model, pixels):
    return jax.jit(lambda x: model.features(x, STAGES, as_grid=True))(jnp.asarray(pixels))


@DEPTH
def test_features_are_theirs(depth, tmp_path):
    theirs, model = reference(depth), small(depth)
    assert loaded(model, theirs, tmp_path).family == "resnet_hf"
    for size in SIZES:
        pixels = images(size)
        expected = call(theirs, pixels, output_hidden_states=True).hidden_states[1:]
        for found, tensor in zip(features(model, pixels), expected, strict=True):
            assert relative_error(found, maps(tensor)) < RELATIVE, size


def in_torch(arrays, pixels, *, depth, strides, dilations, contract):
    """The stages' maps of a ResNet by torch's functions, from a file's arrays and its names."""
    import torch
    import torch.nn.functional as F

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def conv_norm(x, conv, norm, padding=0, **steps):
        x = F.conv2d(x, tensors[f"{conv}.weight"], padding=padding, **steps)
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{norm}.{part}"] for part in parts))

    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    if "stem.0.weight" in tensors:
        for i, stride in ((0, 2), (3, 1), (6, 1)):
            x = F.relu(conv_norm(x, f"stem.{i}", f"stem.{i + 1}", 1, stride=stride))
    else:
        x = F.relu(conv_norm(x, "conv1", "bn1", 3, stride=2))
    x = F.max_pool2d(x, 3, 2, 1)
    for i, number in enumerate(DEPTHS[depth]):
        for j in range(number):
            name = f"layer{i + 1}.{j}."
            stride = strides[i] if j == 0 else 1
            dilation = dilations[i]
            if contract and j == 0 and dilation > 1:
                dilation //= 2
            y = F.relu(conv_norm(x, name + "conv1", name + "bn1"))
            steps = {"padding": dilation, "dilation": dilation, "stride": stride}
            y = F.relu(conv_norm(y, name + "conv2", name + "bn2", **steps))
            y = conv_norm(y, name + "conv3", name + "bn3")
            if f"{name}downsample.0.weight" in tensors:
                shortcut = (name + "downsample.0", name + "downsample.1")
                x = conv_norm(x, *shortcut, stride=stride)
            x = F.relu(x + y)
        yield maps(x)


@pytest.mark.parametrize("table", [RESNET, RESNET_V1C], ids=lambda table: table.family)
@pytest.mark.parametrize("contract", [False, True])
def test_dilated_features_are_torchs(table, contract):
    settings = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4)}
    arrays, _ = file_of(table)
    model = small(deep_stem=table is RESNET_V1C, contract_dilation=contract, seed=1, **settings)
    load_weights(model, arrays)
    for size in SIZES:
        pixels = images(size)
        expected = in_torch(arrays, pixels, depth=50, contract=contract, **settings)
        for found, array in zip(features(model, pixels), expected, strict=True):
            assert found.shape == array.shape
            assert relative_error(found, array) < RELATIVE, size
