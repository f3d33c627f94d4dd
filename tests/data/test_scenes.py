"""The embedded data set: the same everywhere, consistent with itself, and worth learning from."""

import functools

import numpy as np
import pytest
from PIL import Image

from vadapt.data import scenes
from vadapt.data.scenes import CATEGORIES, CLASSES, PALETTE, SceneOptions, Scenes, make_scene
from vadapt.errors import ConfigError

NUM_SCENES = 64
ARRAYS = (
    "visible", "thermal", "mask", "instances", "boxes_xyxy", "box_classes", "box_categories",
    "labels", "next_visible", "next_thermal", "next_mask", "flow",
)  # fmt: skip


@functools.cache
def drawn(domain="synthetic"):
    return [make_scene(0, i, SceneOptions(domain=domain)) for i in range(NUM_SCENES)]


@functools.cache
def stacked(name, domain="synthetic"):
    return np.stack([getattr(scene, name) for scene in drawn(domain)])


def luma(rgb):
    return rgb.astype(np.float64) @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize("domain", scenes.DOMAINS)
def test_scenes_are_equal_in_any_order_of_access(domain):
    options = SceneOptions(domain=domain)
    first, second = make_scene(3, 17, options), make_scene(3, 17, options)
    forward = {name: getattr(first, name) for name in ARRAYS}
    make_scene(3, 16, options).thermal  # noqa: B018, another scene must not matter
    backward = {name: getattr(second, name) for name in reversed(ARRAYS)}
    for name in ARRAYS:
        np.testing.assert_array_equal(forward[name], backward[name], err_msg=name)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (33, 16), (40, 97)])
def test_shapes_and_dtypes_fit_any_size(height, width):
    scene = make_scene(1, 2, SceneOptions(height, width, domain="real"))
    n = len(scene.boxes_xyxy)
    expected = {
        "visible": (np.uint8, (height, width, 3)),
        "thermal": (np.uint8, (height, width)),
        "mask": (np.uint8, (height, width)),
        "instances": (np.uint8, (height, width)),
        "boxes_xyxy": (np.float32, (n, 4)),
        "box_classes": (np.int32, (n,)),
        "box_categories": (np.int32, (n,)),
        "labels": (np.uint8, (len(CLASSES),)),
        "next_visible": (np.uint8, (height, width, 3)),
        "next_thermal": (np.uint8, (height, width)),
        "next_mask": (np.uint8, (height, width)),
        "flow": (np.float32, (height, width, 2)),
    }
    found = {name: (getattr(scene, name).dtype, getattr(scene, name).shape) for name in ARRAYS}
    assert found == expected


@pytest.mark.parametrize("name", ["visible", "thermal", "mask"])
def test_different_indices_and_seeds_differ(name):
    images = [getattr(make_scene(s, i), name).tobytes() for s in (0, 1) for i in range(8)]
    assert len(set(images)) == len(images)


def test_every_class_appears_and_none_takes_over():
    share = np.bincount(stacked("mask").ravel(), minlength=len(CLASSES)) / stacked("mask").size
    assert len(share) == len(CLASSES) == len(PALETTE)
    assert share.min() > 0.005, dict(zip(CLASSES, share.round(4), strict=True))
    assert share.max() < 0.45, dict(zip(CLASSES, share.round(4), strict=True))


def test_most_classes_are_absent_from_some_scenes():
    rates = stacked("labels").mean(0)
    assert (rates < 0.97).sum() >= 7
    assert rates.min() > 0.3


def test_labels_are_the_classes_with_enough_pixels():
    for scene in drawn():
        counts = np.bincount(scene.mask.ravel(), minlength=len(CLASSES))
        np.testing.assert_array_equal(scene.labels, counts >= 0.003 * scene.mask.size)


def test_boxes_bound_their_instances_tightly():
    for scene in drawn():
        assert scene.instances.max() == len(scene.boxes_xyxy)
        for number, box in enumerate(scene.boxes_xyxy.astype(int).tolist(), start=1):
            rows, columns = np.nonzero(scene.instances == number)
            bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == bounds
            assert 0 <= box[0] < box[2] <= 64
            assert 0 <= box[1] < box[3] <= 64


def test_instances_are_of_the_class_that_the_mask_says():
    for scene in drawn():
        kinds = np.append(255, scene.box_classes)[scene.instances]
        inside = scene.instances > 0
        np.testing.assert_array_equal(scene.mask[inside], kinds[inside])
        assert set(scene.box_classes.tolist()) <= {CLASSES.index(c) for c in scenes.THINGS}


def test_both_domains_share_their_geometry_but_not_their_looks():
    np.testing.assert_array_equal(stacked("mask"), stacked("mask", "real"))
    np.testing.assert_array_equal(stacked("flow"), stacked("flow", "real"))
    difference = stacked("visible").astype(float) - stacked("visible", "real")
    assert np.abs(difference).mean((1, 2, 3)).min() > 5


def test_thermal_is_no_function_of_the_classes():
    thermal, mask = stacked("thermal").astype(float), stacked("mask")
    for kind in range(len(CLASSES)):
        means = [t[m == kind].mean() for t, m in zip(thermal, mask, strict=True) if kind in m]
        assert np.std(means) > 10, CLASSES[kind]
    # The best constant grey of each class leaves most of the variance unexplained.
    residual = thermal.copy()
    for kind in range(len(CLASSES)):
        residual[mask == kind] -= thermal[mask == kind].mean()
    assert residual.var() > 0.4 * thermal.var()


def test_thermal_is_no_function_of_the_visible():
    pairs = zip(stacked("visible"), stacked("thermal"), strict=True)
    correlations = [np.corrcoef(luma(v).ravel(), t.ravel())[0, 1] for v, t in pairs]
    assert abs(np.mean(correlations)) < 0.6
    assert np.std(correlations) > 0.2


def test_thermal_has_contrast_but_is_not_saturated():
    thermal = stacked("thermal")
    assert thermal.std((1, 2)).min() > 6
    assert ((thermal == 0) | (thermal == 255)).mean() < 0.02


def test_people_are_warmer_than_their_surroundings_only_in_the_cold():
    person = CLASSES.index("person")
    road = CLASSES.index("road")
    pairs = zip(stacked("thermal"), stacked("mask"), strict=True)
    warmer = [t[m == person].mean() > t[m == road].mean() for t, m in pairs if person in m]
    assert 0.15 < np.mean(warmer) < 0.97


def back_projected(frame, pixels, parts):
    """Camera points [n, 3] seen at pixels [n, 2] on the planes of the parts."""
    u = pixels[:, 0] - frame.centre_x
    v = frame.horizon_y - pixels[:, 1]
    a, b, c = frame.planes[:, parts].astype(np.float64)
    depth = 1.0 / (a * u + b * v + c)
    return np.stack([u * depth / frame.focal, v * depth / frame.focal, depth], -1)


def test_flow_is_the_motion_of_points_in_the_world():
    for scene in drawn()[:24]:
        frame, following, world = scene._now, scene._next, scene._world
        near = frame.inverse_depth[::2, ::2] > 0.02
        rows, columns = np.nonzero(near & (frame.parts[::2, ::2] == frame.seen))
        parts = frame.seen[rows, columns]
        pixels = np.stack([columns + 0.5, rows + 0.5], -1)
        before = back_projected(frame, pixels, parts)
        after = back_projected(following, pixels + scene.flow[rows, columns], parts)
        velocity = np.zeros((parts.max() + 1, 3))
        faces = np.arange(6, parts.max() + 1)
        velocity[faces] = np.insert(world.velocities[world.owners[faces - 6]], 1, 0.0, axis=1)
        velocity -= (world.street.ego[0], 0.0, world.street.ego[1])
        error = np.abs(after - before - velocity[parts]).max(-1) / before[:, 2]
        # float32 planes seen at a grazing angle lose digits; the median pixel does not.
        assert np.median(error) < 1e-5
        assert np.quantile(error, 0.98) < 1e-3


def follow(scene):
    """For the pixels that stay in the picture: their ids, and where they are in the next frame."""
    rows, columns = np.indices(scene.mask.shape)
    to_x = np.rint(columns + scene.flow[..., 0]).astype(int)
    to_y = np.rint(rows + scene.flow[..., 1]).astype(int)
    height, width = scene.mask.shape
    stays = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
    return stays, to_y[stays], to_x[stays]


def inner(mask):
    """Where all eight neighbours have the pixel's class."""
    same = np.zeros(mask.shape, bool)
    middle = mask[1:-1, 1:-1]
    around = [
        mask[i : i + middle.shape[0], j : j + middle.shape[1]] for i in range(3) for j in range(3)
    ]
    same[1:-1, 1:-1] = np.all([a == middle for a in around], 0)
    return same


def test_masks_follow_the_flow():
    wrong, still = [], []
    for scene in drawn():
        stays, to_y, to_x = follow(scene)
        agrees = scene.next_mask[to_y, to_x] == scene.mask[stays]
        wrong.append(1 - agrees[inner(scene.mask)[stays]].mean())
        still.append((scene.next_mask != scene.mask).mean())
    # What is left was covered by something that came nearer.
    assert np.mean(wrong) < 0.01
    assert np.max(wrong) < 0.06
    assert np.mean(still) > 0.02


def test_pictures_follow_the_flow():
    gains = []
    for scene in drawn():
        stays, to_y, to_x = follow(scene)
        now, later = luma(scene.visible), luma(scene.next_visible)
        if np.abs(scene.flow).max() > 2:
            moved = np.abs(later[to_y, to_x] - now[stays]).mean()
            gains.append(np.abs(later[stays] - now[stays]).mean() / moved)
    assert len(gains) > 20
    assert np.median(gains) > 1.1


def test_a_long_tail_makes_categories_rare():
    def shares(long_tail):
        options = SceneOptions(long_tail=long_tail)
        found = [make_scene(5, i, options).box_categories for i in range(110)]
        counts = np.bincount(np.concatenate(found), minlength=len(CATEGORIES))
        return np.sort(counts)[::-1] / counts.sum()

    balanced, tailed = shares(0.0), shares(5.0)
    assert balanced.min() > 0.015
    assert balanced.max() < 0.12
    assert tailed[:3].sum() > 0.35
    assert tailed[-5:].sum() < 0.05


def test_object_size_scales_boxes():
    def area(size):
        options = SceneOptions(128, 128, object_size=size)
        boxes = np.concatenate([make_scene(6, i, options).boxes_xyxy for i in range(40)])
        return np.median((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))

    assert area(0.5) < 0.55 * area(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "sythetic"}, "'synthetic'"),
        ({"height": 8}, "8x64"),
        ({"object_size": 0.0}, "object_size"),
        ({"long_tail": -1.0}, "long_tail"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SceneOptions(**options)


def test_negative_scenes_are_refused():
    with pytest.raises(ConfigError, match="negative"):
        make_scene(0, -1)


@pytest.mark.parametrize("view", scenes.VIEWS)
def test_records_hold_what_was_asked_for(view):
    source = Scenes(4, view=view, fields=scenes.FIELDS, seed=2)
    record, scene = source[3], make_scene(2, 3)
    assert len(source) == 4
    assert tuple(record) == scenes.FIELDS
    assert record["image"].shape == (64, 64, 3 if view == "visible" else 1)
    np.testing.assert_array_equal(record["image"].squeeze(), getattr(scene, view))
    np.testing.assert_array_equal(record["next_image"].squeeze(), getattr(scene, f"next_{view}"))
    for name in set(ARRAYS):
        np.testing.assert_array_equal(record[name], getattr(scene, name))


def test_kept_records_equal_fresh_ones():
    kept, fresh = (Scenes(5, fields=("image", "mask"), cache=cache) for cache in (True, False))
    for index in (4, 0, 4, np.int64(2)):
        for name, array in kept[index].items():
            np.testing.assert_array_equal(array, fresh[index][name])
    assert kept[4]["image"] is kept[4]["image"]
    assert not kept[4]["image"].flags.writeable


def test_sources_of_the_same_scenes_have_the_same_name():
    assert repr(Scenes(5)) == repr(Scenes(5, cache=False)) != repr(Scenes(5, seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "termal"}, "'thermal'"),
        ({"fields": ("masks",)}, "'mask'"),
        ({"num_scenes": 0}, "0"),
    ],
)
def test_sources_refuse_what_they_do_not_have(options, message):
    with pytest.raises(ConfigError, match=message):
        Scenes(**options)


def test_a_source_ends():
    with pytest.raises(IndexError, match="scene 4 of 4"):
        Scenes(4)[4]


def test_the_command_line_draws_a_sheet(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    scenes.main(["--out", str(path), "--count", "2", "--size", "64"])
    assert capsys.readouterr().out.strip() == str(path)
    width, height = Image.open(path).size
    assert width > 6 * 160
    assert height > 2 * 160
