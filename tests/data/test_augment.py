"""Augmentation of whole images: ranges, determinism, what changes nothing, how often what comes."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data.augment import MEAN, ColourJitter, CropMix, RandomErasing, crop_ranges
from vadapt.data.auto_augment import (
    OPERATIONS,
    RandAugment,
    TrivialAugment,
    apply_operation,
)
from vadapt.data.resampling import resize_pillow
from vadapt.data.stream import make_stream
from vadapt.data.transforms import apply_all
from vadapt.errors import ConfigError

ALL = [
    CropMix((24, 20), probability=1),
    RandomErasing(1),
    ColourJitter(),
    TrivialAugment(),
    RandAugment(probability=1),
]


def picture(seed=0, size=(32, 40), channels=3):
    """Smooth, so that equal operations stay visible; not square."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, channels)).astype(np.uint8)
    return resize_pillow(small, size)


@given(seed=st.integers(0, 10_000), channels=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_images_stay_images_and_draws_come_from_the_generator(seed, channels):
    record = {"image": picture(seed, channels=channels), "labels": np.array([1, 0])}
    before = record["image"].copy()
    for transform in ALL:
        one, same = (transform(record, np.random.default_rng(seed)) for _ in range(2))
        assert one["image"].dtype == np.uint8
        size = (24, 20) if isinstance(transform, CropMix) else (32, 40)
        assert one["image"].shape == (*size, channels)
        np.testing.assert_array_equal(one["image"], same["image"])
        assert one["labels"] is record["labels"]
    np.testing.assert_array_equal(record["image"], before)


def test_the_whole_chain_differs_from_draw_to_draw():
    record = {"image": picture()}
    found = {apply_all(ALL, record, np.random.default_rng(i))["image"].tobytes() for i in range(20)}
    assert len(found) > 15


def test_probability_zero_and_strength_zero_change_nothing(rng):
    record = {"image": picture()}
    for transform in (
        CropMix((32, 40), probability=0),
        RandomErasing(0),
        ColourJitter(0, 0, 0),
        RandAugment(probability=0),
    ):
        np.testing.assert_array_equal(transform(record, rng)["image"], record["image"])
    nothing = {"rotate": 0, "solarize": 256, "posterize": 8, "translate_x": 0, "shear_y": 0}
    nothing |= dict.fromkeys(("colour", "contrast", "brightness", "sharpness"), 1.0)
    for name, amount in nothing.items():
        found = apply_operation(record["image"], name, amount)
        np.testing.assert_array_equal(found, record["image"], err_msg=name)


def test_ranges_of_crops_are_bands_and_nearly_everything():
    s = 0.01
    assert crop_ranges(2, s) == [(s, 1.0), (0.99, 1.0)]
    np.testing.assert_allclose(crop_ranges(3, s)[:2], [(s, 0.34), (0.34, 0.67)])
    np.testing.assert_allclose(crop_ranges(4, s)[2], (s + 0.495, s + 0.7425))
    assert [len(crop_ranges(n, s)) for n in (2, 3, 4)] == [2, 3, 4]


def test_mixed_crops_hold_what_the_image_holds():
    flat = {"image": np.full((30, 40, 3), 77, np.uint8)}
    for seed in range(20):
        mixed = CropMix((16, 16), probability=1)(flat, np.random.default_rng(seed))["image"]
        assert np.abs(mixed.astype(int) - 77).max() <= 1  # cut to whole numbers
    red = {"image": flat["image"] * np.array([3, 0, 0], np.uint8)}
    channels = sum(
        (CropMix((8, 8), probability=1)(red, np.random.default_rng(i))["image"] > 5).any((0, 1))
        for i in range(40)
    )
    assert (channels > 5).all()  # the weaker part's channels change places


def test_the_number_of_crops_is_drawn_for_every_image(monkeypatch):
    found = []
    monkeypatch.setattr(
        "vadapt.data.augment.crop_ranges", lambda n, s: found.append(n) or crop_ranges(n, s)
    )
    mix, rng = CropMix((8, 8), probability=1), np.random.default_rng(0)
    for _ in range(60):
        mix({"image": picture()}, rng)
    assert min(collections.Counter(found)[n] for n in (2, 3, 4)) > 8


def test_half_of_the_images_are_only_resized():
    record, whole = {"image": picture()}, resize_pillow(picture(), (8, 8))
    rng = np.random.default_rng(0)
    same = sum(bool((CropMix((8, 8))(record, rng)["image"] == whole).all()) for _ in range(200))
    assert 75 < same < 125


def test_erased_boxes_have_their_share_and_the_noise_its_mean():
    black = {"image": np.zeros((60, 80, 3), np.uint8)}
    shares, means = [], []
    for seed in range(200):
        erased = RandomErasing(1)(black, np.random.default_rng(seed))["image"]
        box = erased.any(-1)
        shares.append(box.mean())
        means.append(erased[box].mean(0))
        rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
        aspect = (np.ptp(rows) + 1) / (np.ptp(columns) + 1)
        assert 0.25 < aspect < 4
    assert min(shares) > 0.015
    assert max(shares) < 0.35
    np.testing.assert_allclose(np.mean(means, 0), MEAN, rtol=0.05)


def test_trivial_augment_takes_every_operation_and_level_equally_often():
    rng = np.random.default_rng(0)
    drawn = [TrivialAugment().draw(rng) for _ in range(14 * 400)]
    counts = collections.Counter(name for name, _ in drawn)
    assert len(counts) == 14
    assert min(counts.values()) > 400 - 80
    assert max(counts.values()) < 400 + 80
    amounts = {name: {a for n, a in drawn if n == name} for name in counts}
    assert amounts["rotate"] == {float(i) for i in range(-30, 31)}
    assert amounts["posterize"] == {4.0, 5.0, 6.0, 7.0, 8.0}
    assert (min(amounts["solarize"]), max(amounts["solarize"])) == (0, 256)
    assert amounts["translate_x"] == {float(i) for i in range(-10, 11)}
    np.testing.assert_allclose([min(amounts["colour"]), max(amounts["colour"])], [0.1, 1.9])
    np.testing.assert_allclose([min(amounts["shear_y"]), max(amounts["shear_y"])], [-0.3, 0.3])


def test_rand_augment_draws_two_about_its_level():
    rng = np.random.default_rng(0)
    drawn = [one for _ in range(3000) for one in RandAugment(9, 0.5, 2).draw(rng)]
    counts = collections.Counter(name for name, _ in drawn)
    assert len(counts) == 15
    assert len(drawn) == pytest.approx(3000, rel=0.1)
    turns = np.abs([amount for name, amount in drawn if name == "rotate"])
    assert turns.mean() == pytest.approx(27, rel=0.03)
    assert turns.max() <= 30
    assert min(amount for name, amount in drawn if name == "posterize") >= 1


def test_what_the_operations_do():
    image = picture()
    shifted = apply_operation(image, "translate_x", 4.0)
    np.testing.assert_array_equal(shifted[:, :-4], image[:, 4:])
    assert not shifted[:, -4:].any()
    np.testing.assert_array_equal(apply_operation(image, "translate_y_share", 0.25)[:24], image[8:])
    np.testing.assert_array_equal(apply_operation(image, "invert", 0), 255 - image)
    np.testing.assert_array_equal(apply_operation(image, "solarize", 0), 255 - image)
    np.testing.assert_array_equal(apply_operation(image, "posterize", 4), image & 0xF0)
    added = apply_operation(image, "solarize_add", 50)
    np.testing.assert_array_equal(added, np.where(image < 128, image + 50, image))
    grey = apply_operation(image, "colour", 0.0)
    assert (grey == grey[..., :1]).all()
    np.testing.assert_allclose(
        apply_operation(image, "brightness", 0.5), image * 0.5, atol=1
    )  # Pillow cuts
    assert set(OPERATIONS) >= {"identity", "auto_contrast", "equalize", "rotate"}


def test_views_of_an_image_follow_one_another_and_differ():
    source = [{"image": np.full((4, 4, 3), 10 * i, np.uint8)} for i in range(6)]
    options = {"batch_size": 9, "seed": 0, "num_threads": 0}
    plain = next(make_stream(source, [], views=3, **options))["image"][:, 0, 0, 0]
    assert (plain.reshape(3, 3) == plain[::3, None]).all()
    assert len(set(plain.tolist())) == 3
    jittered = next(make_stream(source, [RandomErasing(1)], views=3, **options))["image"]
    assert len({image.tobytes() for image in jittered}) == 9
    stream = make_stream(source, [], views=3, **options)
    stream.seek(1)
    second = next(stream)["image"][:, 0, 0, 0]
    assert set(second.tolist()) | set(plain.tolist()) == {10 * i for i in range(6)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: CropMix((8, 8), probability=2),
        lambda: CropMix((0, 8)),
        lambda: RandomErasing(area=(0.5, 0.1)),
        lambda: ColourJitter(-1),
        lambda: RandAugment(11),
    ],
)
def test_settings_that_cannot_be(make):
    with pytest.raises(ConfigError):
        make()
