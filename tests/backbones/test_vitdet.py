"""ViTDet's backbone: a plain ViT's weights, over maps of any size."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import compiled
from vadapt import adapters
from vadapt.backbones.vit import vit
from vadapt.backbones.vitdet import vitdet
from vadapt.errors import ConfigError, WeightsError
from vadapt.partition import EVERYTHING, Constant, flatten, split, variables
from vadapt.weights.families.mae import MAE
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

SMALL = {"depth": 2, "width": 16, "num_heads": 2}
MISSING, UNEXPECTED = (".*rel_pos.*",), ("cls_token", "norm/.*")


def test_with_pads_adapters_it_has_as_many_numbers_as_measured():
    model = nnx.eval_shape(lambda: vitdet("base", rngs=nnx.Rngs(0)))
    model = nnx.eval_shape(lambda: adapters.apply(model, "patchwise_scale", hidden=64))
    sizes = {path: leaf.size for path, leaf in flatten(split(model, EVERYTHING).trainable).items()}
    assert sum(sizes.values()) == 87_115_520
    assert sum(size for path, size in sizes.items() if "rel_pos" in path) == 92_672


def plain(**options):
    options = {**SMALL, "image_size": 32, "positions": "learned", **options}
    return vit("micro", **options, rngs=nnx.Rngs(0))


def file_of(model):
    values = {path: np.asarray(value.get_value()) for path, value in variables(model).items()}
    return revert(values, MAE)[0]


def detector(file, **options):
    options = {**SMALL, "pretrain_size": 32, "global_blocks": (1,), **options}
    made = vitdet("micro", **options, rngs=nnx.Rngs(1))
    load_weights(made, file, allow_missing=MISSING, allow_unexpected=UNEXPECTED)
    return made


def test_with_windows_as_large_as_the_map_it_is_the_plain_vit(rng):
    bare = plain(class_token=False, final_norm=False)
    model = detector(file_of(bare), window=4, image_size=32)
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    found, wanted = (compiled.run("__call__", one, images) for one in (model, bare))
    np.testing.assert_allclose(found.reshape(2, 16, 16), wanted, rtol=0, atol=1e-5)


def test_images_of_any_size_are_seen_in_whole_windows(rng):
    model = detector(file_of(plain()), window=3, image_size=64)
    images = jnp.asarray(rng.normal(size=(1, 40, 64, 3)), jnp.float32)
    assert compiled.run("__call__", model, images).shape == (1, 5, 8, 16)


def test_fixed_positions_are_no_weights():
    model = vitdet("micro", **SMALL, positions="sincos", image_size=32, pretrain_size=32,
                   global_blocks=(1,), rngs=nnx.Rngs(0))  # fmt: skip
    assert isinstance(model.pos_embed, Constant)
    assert model.pos_embed.shape == (17, 16)
    assert "pos_embed" not in flatten(split(model, EVERYTHING).trainable)


def test_what_a_file_lacks_has_to_be_allowed():
    model = vitdet("micro", **SMALL, pretrain_size=32, global_blocks=(1,), rngs=nnx.Rngs(0))
    with pytest.raises(WeightsError, match=r"rel_pos_h"):
        load_weights(model, file_of(plain()), allow_unexpected=UNEXPECTED)


def test_unknown_positions_and_sizes_name_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown positions 'sincoss'.*sincos"):
        vitdet("micro", positions="sincoss", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"unknown ViTDet variant 'bas'.*base"):
        vitdet("bas", rngs=nnx.Rngs(0))
