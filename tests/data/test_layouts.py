"""Published data sets, written as small trees in their real layouts, come out with train ids."""

import numpy as np
import pytest
from PIL import Image

from tests.data.test_decode import png16
from vadapt.data.label_maps import CITYSCAPES, MAPILLARY
from vadapt.data.layouts import LAYOUTS
from vadapt.data.segmentation import Segmentation

SIZE = (4, 6)
VOID = 255


def mask_of(values):
    """A mask whose first pixels have these values; the rest repeats the first."""
    mask = np.full(SIZE, values[0])
    mask.flat[: len(values)] = values
    return mask


def grey(values):
    return Image.fromarray(mask_of(values).astype(np.uint8))


def indexed(values):
    """As GTA and Mapillary have it: indices into a palette of colours that mean nothing here."""
    image = grey(values)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return image


RAW = [7, 33, 0, 34], [0, 18, VOID, VOID]
TRAIN_IDS = [0, 18, VOID], [0, 18, VOID]
# layout: (split, image file, mask file, mask picture, raw values, train ids)
TREES = {
    "cityscapes": (
        "val",
        "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png",
        "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
        grey,
        *RAW,
    ),
    "cityscapes_train_ids": (
        "train",
        "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png",
        grey,
        *TRAIN_IDS,
    ),
    "gta": ("", "images/00001.png", "labels/00001.png", indexed, *RAW),
    "gta_train_ids": ("", "images/00001.png", "labels/00001_labelTrainIds.png", grey, *TRAIN_IDS),
    "synthia": ("", "RGB/0000000.png", "GT/LABELS/0000000.png", None, [3, 11, 22], [0, 18, VOID]),
    "urbansyn": ("", "rgb/rgb_0001.png", "ss/ss_0001.png", grey, [0, 18, 19], [0, 18, VOID]),
    "bdd100k": (
        "val",
        "images/10k/val/7d06fefd-f7be05a6.jpg",
        "labels/sem_seg/masks/val/7d06fefd-f7be05a6.png",
        grey,
        *TRAIN_IDS,
    ),
    "mapillary": (
        "val",
        "validation/images/_1Gn_xkw7sa_i9GU4mkxxQ.jpg",
        "validation/labels/_1Gn_xkw7sa_i9GU4mkxxQ.png",
        indexed,
        [13, 20, 65],
        [0, 12, VOID],
    ),
    "mapillary_half": (
        "val",
        "half/val_img/_1Gn_xkw7sa.jpg",
        "half/val_label/_1Gn_xkw7sa.png",
        grey,
        *TRAIN_IDS,
    ),
    "acdc": (
        "train",
        "rgb_anon/night/train/GOPR0351/GOPR0351_frame_000159_rgb_anon.png",
        "gt/night/train/GOPR0351/GOPR0351_frame_000159_gt_labelTrainIds.png",
        grey,
        *TRAIN_IDS,
    ),
    "ade20k": (
        "val",
        "images/validation/ADE_val_00000001.jpg",
        "annotations/validation/ADE_val_00000001.png",
        grey,
        [1, 150, 0],
        [0, 149, VOID],
    ),
    "soda": (
        "test",
        "InfraredSemanticLabel/JPEGImages/000001.jpg",
        "InfraredSemanticLabel/SegmentationClassPNG/000001.png",
        indexed,
        [0, 20],
        [0, 20],
    ),
    "mfnet": ("val_test", "thermal_imgs/00001D.png", "labels/00001D.png", grey, [0, 8], [0, 8]),
}


def write(root, image, mask, picture, values):
    for path in (root / image, root / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (90, 60, 30)).save(root / image)
    if picture is None:  # SYNTHIA: class, instance and nothing, 16 bits each
        ids = mask_of(values)
        planes = np.stack([ids, ids * 300, ids * 0], -1).astype(np.uint16)
        (root / mask).write_bytes(png16(planes))
    else:
        picture(values).save(root / mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_give_train_ids(tmp_path, layout):
    split, image, mask, picture, raw, train = TREES[layout]
    write(tmp_path, image, mask, picture, raw)
    listed = LAYOUTS[layout].splits.get(split, "")
    if str(listed).endswith(".txt"):
        (tmp_path / listed).write_text(image.rpartition("/")[2].partition(".")[0] + "\n")
    if layout == "acdc":  # a split takes every condition
        for condition in ("fog", "rain", "snow"):
            paths = (path.replace("night", condition) for path in (image, mask))
            write(tmp_path, *paths, picture, raw)
    source = Segmentation(tmp_path, split, layout=layout)
    assert len(source) == (4 if layout == "acdc" else 1)
    record = source[0]
    assert record["mask"].flat[: len(train)].tolist() == train
    assert record["image"].shape == (*SIZE, 3)
    assert len(source.palette) == len(source.classes)


def test_acdc_can_be_read_by_condition(tmp_path):
    _, image, mask, picture, raw, _ = TREES["acdc"]
    write(tmp_path, image, mask, picture, raw)
    assert len(Segmentation(tmp_path, "train_night", layout="acdc")) == 1


def test_tables_have_the_published_numbers_of_classes():
    counts = {name: len(layout.classes) for name, layout in LAYOUTS.items()}
    others = {"ade20k": 150, "soda": 21, "mfnet": 9}
    assert counts == {name: others.get(name, 19) for name in LAYOUTS}
    assert len(MAPILLARY) == 66
    for layout in LAYOUTS.values():
        assert len(set(layout.classes)) == len(layout.classes)
    assert CITYSCAPES[18] == "bicycle"
