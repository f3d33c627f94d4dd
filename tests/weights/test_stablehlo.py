"""Exported features: the direct call's numbers, any batch, and no vadapt where they run."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.backbones.test_sam import small as small_sam
from tests.compiled import run
from tests.weights.test_convnext import small as small_convnext
from tests.weights.test_resnet import small as small_resnet
from vadapt import adapters, models
from vadapt.data.resampling import resize_pillow
from vadapt.errors import WeightsError
from vadapt.weights import stablehlo
from vadapt.weights.stablehlo import export_features, load_exported

STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def model():
    plain = models.create("dinov2_small", width=32, depth=3, num_heads=4, image_size=(28, 42))
    adapted = adapters.apply(plain, "patchwise_scale", hidden=4)
    bias = np.linspace(-1.0, 1.0, 32, dtype=np.float32)
    adapted.blocks[1].mlp.adapter.up.bias[...] = jnp.asarray(bias)
    return adapted


def pictures(number, size=(28, 42)):
    return np.random.default_rng(number).integers(0, 256, (number, *size, 3), np.uint8)


def direct(model, images, **options):
    mean, std = (np.asarray(row, np.float32) for row in STATISTICS)
    pixels = jnp.asarray((images.astype(np.float32) / 255 - mean) / std)
    return run("features", model, pixels, **options)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "features.bin"
    return export_features(
        model, path, image_size=(28, 42), statistics=STATISTICS, layers=(0, -1), as_grid=True
    )


@pytest.mark.parametrize("number", [1, 3])
def test_features_are_the_direct_calls(number, model, file):
    found = load_exported(file)(pictures(number))
    wanted = direct(model, pictures(number), layers=(0, -1), as_grid=True)
    for name, features in zip(("layer_0", "layer_2"), wanted, strict=True):
        assert found[name].shape == (number, 2, 3, 32)
        np.testing.assert_allclose(found[name], features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("create", "layers", "names"),
    [
        (small_sam, (0, -1), ("layer_0", "layer_2")),
        (lambda: small_resnet(18), (1, -1), ("layer_1", "layer_3")),
        (lambda: small_convnext(normed=(0, 3)), (0, -1), ("layer_0", "layer_3")),
    ],
    ids=["sam", "resnet", "convnext"],
)
def test_features_of_maps_are_the_direct_calls(create, layers, names, tmp_path):
    model, size = create(), (32, 52)
    options = {"layers": layers, "as_grid": True}
    path = tmp_path / "features.bin"
    export_features(model, path, image_size=size, statistics=STATISTICS, **options)
    exported = load_exported(path)
    assert tuple(exported.outputs) == names
    found, wanted = exported(pictures(3, size)), direct(model, pictures(3, size), **options)
    for name, features in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found[name], features, rtol=1e-5, atol=1e-5)


def test_it_says_what_it_is(file):
    exported = load_exported(file)
    assert exported.image_size == (28, 42)
    assert exported.platforms == ("cpu", "tpu", "cuda")
    assert exported.outputs == {"layer_0": ("b", 2, 3, 32), "layer_2": ("b", 2, 3, 32)}
    assert "features: uint8 [b, 28, 42, 3] -> layer_0 [b, 2, 3, 32], " in repr(exported)


def test_jax_alone_runs_it(model, file, tmp_path):
    np.save(tmp_path / "images.npy", pictures(2))
    code = (
        "import sys, numpy as np, jax.export\n"
        f"file = jax.export.deserialize(open({str(file)!r}, 'rb').read())\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n"
        f"np.savez({str(tmp_path / 'found.npz')!r}, **file.call(images))\n"
        "print([name for name in ('vadapt', 'flax') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == "[]"
    wanted = direct(model, pictures(2), layers=-1, as_grid=True)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["layer_2"], wanted, rtol=1e-4, atol=1e-4)


def test_it_resizes_as_the_data_pipeline_does(model, tmp_path):
    path = export_features(
        model,
        tmp_path / "features.bin",
        image_size=(28, 42),
        statistics=STATISTICS,
        input_size=(41, 50),
        name="small",
    )
    exported = load_exported(path)
    assert exported.outputs == {"features": ("b", 7, 32)}
    images = pictures(2, (41, 50))
    found = exported(images)
    wanted = direct(model, np.stack([resize_pillow(image, (28, 42)) for image in images]))
    # Pillow rounds to whole numbers: up to half of one in 255.
    assert np.abs(np.asarray(found) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_weights_in_half_make_half_a_file(model, tmp_path, file):
    path = tmp_path / "features.bin"
    export_features(
        model, path, image_size=(28, 42), statistics=STATISTICS, dtype="bfloat16", as_grid=True
    )
    found = load_exported(path)(pictures(2))
    wanted = direct(model, pictures(2), as_grid=True)
    assert found.dtype == jnp.float32
    assert np.abs(np.asarray(found) - wanted).max() < 0.05 * np.abs(wanted).max()
    assert path.stat().st_size < 0.75 * file.stat().st_size


def test_what_does_not_fit_or_cannot_be_read_is_said(model, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="no exported file"):
        load_exported(tmp_path / "absent.bin")
    (tmp_path / "broken.bin").write_bytes(b"anything but a flatbuffer")
    with pytest.raises(WeightsError, match="damaged"):
        load_exported(tmp_path / "broken.bin")
    monkeypatch.setattr(stablehlo, "MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match=r"holds 2 GB.*bfloat16"):
        export_features(model, tmp_path / "x.bin", image_size=28, statistics=STATISTICS)
    assert not list(tmp_path.glob("x.bin*"))


def test_the_flatbuffers_package_is_asked_for(model, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"vadapt\[export\]"):
        export_features(model, tmp_path / "x.bin", image_size=28, statistics=STATISTICS)


def test_batches_need_not_be_numpy(file):
    images = jnp.asarray(pictures(2))
    assert load_exported(file)(images)["layer_0"].shape == (2, 2, 3, 32)
