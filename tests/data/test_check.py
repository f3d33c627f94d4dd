"""The command that reads a data set before a run does."""

import numpy as np
import pytest
from PIL import Image

from vadapt.data import check
from vadapt.data.scenes import CLASSES, Scenes
from vadapt.data.segmentation import Segmentation


@pytest.fixture
def root(tmp_path):
    """Four scenes; a class that none has, a band that is ignored."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    scenes = Scenes(4, fields=("image", "mask"))
    for number in range(4):
        record = scenes[number]
        mask = record["mask"].copy()
        mask[:16] = 255
        Image.fromarray(record["image"]).save(tmp_path / f"images/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "dataset.yaml").write_text(f"classes: [{', '.join(CLASSES)}, unicorn]")
    return tmp_path


def test_everything_is_counted(root):
    summary = check.summarise(Segmentation(root))
    labels = np.stack([np.asarray(Image.open(root / f"masks/{i}.png")) for i in range(4)])
    np.testing.assert_array_equal(summary.pixels, np.bincount(labels.ravel(), minlength=256))
    assert summary.images[255] == 4
    assert summary.ignored == 0.25
    assert summary.sizes == {(64, 64): 4}
    assert not summary.problems


def test_the_command_prints_and_draws(root, tmp_path, capsys):
    assert check.main([str(root), "--out", str(tmp_path / "sheets/sheet.png"), "--rows", "2"]) == 0
    printed = capsys.readouterr().out
    assert "no pixel of: unicorn" in printed
    assert "4 images, 4 readable; 25.00% ignored pixels" in printed
    assert "4 of 64x64 (height x width)" in printed
    assert printed.rstrip().endswith("sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheets/sheet.png"))
    assert sheet.shape[1] > 3 * 240
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50


def test_problems_are_listed_and_stop_nothing(root, capsys):
    Image.new("L", (3, 3)).save(root / "masks/0.png")
    Image.new("L", (64, 64), 77).save(root / "masks/1.png")
    (root / "masks/2.png").write_bytes(b"nothing")
    sheet = root / "sheet.png"
    assert check.main([str(root), "--out", str(sheet), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "4 images, 1 readable" in printed
    assert "3 problems:" in printed
    for part in ("0.png has 3x3 pixels", "unknown ids 77 (4,096 pixels)", "no image of a known"):
        assert part in printed
    assert sheet.is_file()


@pytest.mark.parametrize("said", [True, False])
def test_masks_of_0_and_255_alone_are_asked_about(tmp_path, capsys, said):
    for folder, high in (("images", 200), ("masks", 255)):
        (tmp_path / folder).mkdir()
        pixels = np.zeros((8, 8), np.uint8)
        pixels[2:6] = high
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    text = "classes: [background, object]\n" + "remap: {0: 0, 255: 1}\n" * (not said)
    (tmp_path / "dataset.yaml").write_text(text)
    assert check.main([str(tmp_path)]) == 0  # as it asks for, the answer is understood
    printed = capsys.readouterr().out
    assert ("is it the foreground? Then write `classes: [background, NAME]`" in printed) == said
    assert ("no pixel of: object" in printed) == said


def test_a_wrong_root_is_one_message(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 1
    assert "DataError: no images" in capsys.readouterr().err
