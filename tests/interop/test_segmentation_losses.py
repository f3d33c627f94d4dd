"""Resizing and cross entropy of per-pixel scores against torch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.losses.segmentation import cross_entropy, pixel_cross_entropy
from vadapt.nn.resize import resize_bilinear


@pytest.mark.parametrize("size", [(7, 5), (2, 3), (9, 2), (16, 24), (1, 1), (4, 6)])
@pytest.mark.parametrize("source", [(4, 6), (1, 1), (5, 3)])
@pytest.mark.parametrize("corners", [False, True])
def test_resizing_is_pytorchs(source, size, corners, rng):
    import torch

    x = rng.normal(size=(2, *source, 3)).astype(np.float32)
    found = resize_bilinear(jnp.asarray(x), size, align_corners=corners)
    planes = torch.from_numpy(x.transpose(0, 3, 1, 2))
    options = {"mode": "bilinear", "align_corners": corners}
    resized = torch.nn.functional.interpolate(planes, size, **options)
    np.testing.assert_allclose(found, resized.numpy().transpose(0, 2, 3, 1), atol=2e-6)


def test_cross_entropy_and_its_gradient_are_pytorchs(rng):
    import torch

    logits = rng.normal(size=(2, 4, 6, 5)).astype(np.float32)
    labels = rng.integers(0, 5, size=(2, 8, 12))
    labels[0, :3] = 255
    planes = torch.from_numpy(logits.transpose(0, 3, 1, 2)).requires_grad_()
    resized = torch.nn.functional.interpolate(planes, (8, 12), mode="bilinear")
    target = torch.from_numpy(labels)
    each = torch.nn.functional.cross_entropy(resized, target, ignore_index=255, reduction="none")
    mean = torch.nn.functional.cross_entropy(resized, target, ignore_index=255)
    mean.backward()
    labels = jnp.asarray(labels, jnp.int32)
    found = pixel_cross_entropy(resize_bilinear(jnp.asarray(logits), (8, 12)), labels)
    np.testing.assert_allclose(found, each.detach().numpy(), atol=2e-6)

    def loss(logits):
        return cross_entropy(resize_bilinear(logits, (8, 12)), labels)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, mean.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(gradient, planes.grad.numpy().transpose(0, 2, 3, 1), atol=1e-8)
