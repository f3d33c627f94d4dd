"""Position tables: whose rows are which places."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from vadapt import models
from vadapt.errors import WeightsError
from vadapt.nn.positions import resize_table
from vadapt.weights.adapter_file import load_adapter, save_adapter, save_model
from vadapt.weights.files import write_arrays
from vadapt.weights.load import load_weights
from vadapt.weights.sources import arrays_of

SIZE = {"width": 8, "depth": 1, "num_heads": 2, "patch_size": 4}


def model(rows, columns, name="vit_tiny", **options):
    return models.create(name, image_size=(4 * rows, 4 * columns), **SIZE, **options)


def values(made):
    return {path: np.asarray(v[...]) for path, v in models.variables(made).items()}


def ramps(rows, columns, extra=1):
    table = np.zeros((extra + rows * columns, 8), np.float32)
    places = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    table[extra:, :2] = np.stack([place.ravel() for place in places], 1)
    return table


@pytest.mark.parametrize("name", ["vit_tiny", "dinov2_small", "clip_base"])
def test_a_square_table_of_as_many_places_is_resized(name):
    wide = model(2, 8, name)
    report = load_weights(wide, {**values(wide), "pos_embed": ramps(4, 4)})
    assert report.resized == ["pos_embed: 4x4 to 2x8"]
    wanted = resize_table(jnp.asarray(ramps(4, 4)), (4, 4), (2, 8), way=wide.position_resize)
    np.testing.assert_array_equal(wide.pos_embed[...], wanted)
    said = load_weights(
        wide, {**values(wide), "pos_embed": ramps(2, 8)}, grids={"pos_embed": (2, 8)}
    )
    assert said.resized == []
    np.testing.assert_array_equal(wide.pos_embed[...], ramps(2, 8))


@pytest.mark.parametrize("target", [(2, 8), (8, 2), (4, 4), (3, 5)])
def test_files_of_vadapt_carry_their_grid(tmp_path, target):
    wide = model(2, 8)
    load_weights(wide, {**values(wide), "pos_embed": ramps(2, 8)}, grids={"pos_embed": (2, 8)})
    save_model(tmp_path / "model.safetensors", wide)
    assert arrays_of(tmp_path / "model.safetensors").grids == {"pos_embed": (2, 8)}
    found = model(*target)
    load_weights(found, tmp_path / "model.safetensors")
    wanted = resize_table(jnp.asarray(ramps(2, 8)), (2, 8), target)
    np.testing.assert_array_equal(found.pos_embed[...], wanted)


def test_adapter_files_carry_it_too(tmp_path):
    save_adapter(tmp_path / "a.safetensors", model(2, 8), trainable="everything")
    load_adapter(model(2, 8), tmp_path / "a.safetensors", trainable="everything")
    with pytest.raises(WeightsError, match=r"pos_embed of 2x8 places, .* has 4x4"):
        load_adapter(model(4, 4), tmp_path / "a.safetensors", trainable="everything")


def test_a_table_without_the_class_tokens_row():
    """timm's `no_embed_class`: the token itself has what its position would add."""
    made = model(4, 4)
    report = load_weights(made, {**values(made), "pos_embed": ramps(3, 3, extra=0)})
    assert report.resized == ["pos_embed: a row for the class token, 3x3 to 4x4"]
    assert not np.asarray(made.pos_embed[0]).any()
    wanted = resize_table(jnp.asarray(ramps(3, 3)), (3, 3), (4, 4))
    np.testing.assert_array_equal(made.pos_embed[...], wanted)


@pytest.mark.parametrize(
    ("grid", "rows", "class_token", "words"),
    [
        ((5, 7), 36, True, "5x7 places or of 6x6 places without the class token's row"),
        ((5, 10), 50, False, "5x10 places or of 7x7 places and a class token's row"),
    ],
)
def test_rows_that_may_mean_two_things_are_refused(tmp_path, grid, rows, class_token, words):
    made = model(*grid, class_token=class_token)
    arrays = {**values(made), "pos_embed": np.ones((rows, 8), np.float32)}
    file = tmp_path / "foreign.safetensors"
    save_file(arrays, file)
    with pytest.raises(WeightsError, match=words):
        load_weights(made, file)
    load_weights(made, file, grids={"pos_embed": grid})
    load_weights(made, arrays)  # whoever has arrays knows their grid: it is the model's
    assert made.pos_embed[...].min() == 1.0


def test_older_files_of_vadapt_may_be_of_any_grid(tmp_path):
    write_arrays(tmp_path / "a.safetensors", values(model(2, 8)), {"vadapt": "0.1"})
    with pytest.raises(WeightsError, match="of 4x4 places or of 2x8 places"):
        load_weights(model(2, 8), tmp_path / "a.safetensors")
    load_weights(model(4, 4), tmp_path / "a.safetensors")
    write_arrays(tmp_path / "b.safetensors", values(model(2, 3)), {"vadapt": "0.1"})
    with pytest.warns(UserWarning, match=r"taken for the model's own \(pos_embed: 7 rows for 2x3"):
        load_weights(model(2, 3), tmp_path / "b.safetensors")


@pytest.mark.parametrize("said", ["[]", '{"pos_embed": [1e9, 2]}', "[" * 100_000, '{"a": 3}'])
def test_grids_that_are_none_are_refused(tmp_path, said):
    made = model(2, 2)
    write_arrays(tmp_path / "a.safetensors", values(made), {"vadapt": "1", "grids": said})
    with pytest.raises(WeightsError, match=r"a.safetensors") as error:
        load_weights(made, tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_maps_of_positions_say_their_grid():
    from vadapt.weights.families import families
    from vadapt.weights.tables import revert

    options = {"width": 8, "depth": 1, "num_heads": 2, "neck": 4, "global_blocks": [0], "window": 2}
    made = models.create("sam_base", image_size=(32, 128), **options)
    square = models.create("sam_base", image_size=64, **options)
    (table,) = (one for f in families() for one in f.tables if one.family == "sam")
    arrays, _ = revert(values(square), table)
    arrays["image_encoder.pos_embed"] = ramps(2, 8, extra=0).reshape(1, 2, 8, 8)
    report = load_weights(made, arrays)
    assert not any("pos_embed" in line for line in report.resized)
    np.testing.assert_array_equal(made.pos_embed[...], ramps(2, 8, extra=0))
