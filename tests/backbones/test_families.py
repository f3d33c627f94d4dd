"""Named backbones: every name builds, and says which pixels its files were trained on."""

import jax
import jax.numpy as jnp
import pytest

from vadapt import models
from vadapt.backbones.families import BACKBONES
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError


@pytest.mark.filterwarnings("ignore:.*sources are too few")  # of graphs on such small images
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_name_builds_and_gives_maps_of_what_it_says(name):
    # Blocks of a plain ViT are alike: two tell what the name's own number would.
    few = {"depth": 2} if getattr(BACKBONES[name].build, "func", None) is vit else {}

    def run():
        model = models.create(name, image_size=64, **few)
        side = 2 * getattr(model, "patch_size", getattr(model, "strides", (0,))[-1])
        return model.features(jnp.zeros((1, side, side, 3)), as_grid=True)

    batch, height, width, channels = jax.eval_shape(run).shape
    assert (batch, height, width) == (1, 2, 2)
    assert channels >= 96


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_statistics_are_of_channels_in_0_1(name):
    mean, std = models.statistics(name)
    assert len(mean) == len(std) == 3
    assert all(0.0 < value < 1.0 for value in (*mean, *std))


def test_options_go_over_those_of_the_name():
    model = models.create("dinov2_small", depth=1, image_size=(28, 56), position_resize="cubic")
    assert model.grid == (2, 4)
    assert model.position_resize == "cubic"


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="dinov2_small_reg"):
        models.create("dinov2_small_regs")
    with pytest.raises(ConfigError, match="clip_base"):
        models.statistics("clip_bases")
