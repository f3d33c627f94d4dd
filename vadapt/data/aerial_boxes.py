"""Published sets of small objects, as their downloads unpack: VisDrone2019-DET, TinyPerson, FLIR.

VisDrone: https://github.com/VisDrone/VisDrone-Dataset; TinyPerson:
https://github.com/ucas-vg/TinyBenchmark; FLIR ADAS: https://www.flir.com/oem/adas.
"""

from __future__ import annotations

from pathlib import Path

from vadapt.data.annotated import REGION, Draft
from vadapt.data.coco_boxes import read_coco
from vadapt.data.sources import IMAGE_SUFFIXES, find_files
from vadapt.data.untrusted import numbered_lines
from vadapt.errors import DataError, nearest

VISDRONE_CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus",
    "motor",
)  # fmt: skip
# Category 0 is an ignored region, 1 to 10 are the classes, 11 are others, which are left out.
_VISDRONE = {0: REGION, **{number + 1: number for number in range(len(VISDRONE_CLASSES))}}
_VISDRONE_OTHERS = 11
_COLUMNS = 8  # x, y, width, height, score, category, truncation, occlusion
_TINY = {
    "train": (
        "mini_annotations/tiny_set_train_sw640_sh512_all_erase.json",
        "erase_with_uncertain_dataset/train",
    ),
    "test": ("mini_annotations/tiny_set_test_all.json", "test"),
}
FLIR_CLASSES = ("person", "bicycle", "car")


def read_visdrone(root: Path, split: str) -> Draft:
    """VisDrone2019-DET's text: `VisDrone2019-DET-SPLIT/images/*.jpg` and `annotations/*.txt`.

    A line an object: "x,y,width,height,score,category,truncation,occlusion". Regions of category 0
    have no class and are ignored, so are objects of score 0; others (11) are left out.

    Args:
        split: "train", "val", "test-dev", "test-challenge"; the root may also be that folder.

    Raises:
        DataError: a folder is missing; or a line is not so, says which.
    """
    folder = f"VisDrone2019-DET-{split}"
    base = root / folder if (root / folder).is_dir() else root
    if not (base / "images").is_dir():
        known = [path.name.rpartition("DET-")[2] for path in root.glob("VisDrone2019-DET-*")]
        raise DataError(f"no {folder!r} with images in {str(root)!r}; {nearest(split, known)}")
    prefix = "" if base == root else f"{folder}/"
    draft = Draft(root, VISDRONE_CLASSES, repr(str(base)))
    for name in find_files(base / "images", IMAGE_SUFFIXES):
        place = draft.image(f"{prefix}images/{name}")
        file = (base / "annotations" / name).with_suffix(".txt")
        if not file.is_file():
            raise DataError(f"no {str(file)!r}, the annotation of {name!r}; download it again")
        if place is not None:
            _add_visdrone_lines(draft, place, file)
    return draft


def _add_visdrone_lines(draft: Draft, place: int, file: Path) -> None:
    for number, line in numbered_lines(file):
        where = f"{str(file)!r}, line {number}"
        try:
            values = [int(text) for text in line.rstrip(",").split(",")]
        except ValueError:
            values = []
        if len(values) != _COLUMNS:
            raise DataError(f"{where}: {line!r:.60} is not as VisDrone has it, 8 whole numbers")
        left, top, width, height, score, category, *_ = values
        if category == _VISDRONE_OTHERS:
            continue
        if category not in _VISDRONE:
            draft.problem("category", f"{where} (category {category})")
            continue
        kind = _VISDRONE[category]
        corners = (left, top, left + width, top + height)
        draft.box(place, corners, kind, where, ignored=kind == REGION or score == 0)


def read_visdrone_coco(root: Path, split: str, *, annotations: str = "", images: str = "") -> Draft:
    """VisDrone2019-DET as COCO's JSON, in the layout that CFPT's configs expect.

    `annotations/instances_UAVtrain.json`, `images/instances_UAVtrain/`; of "val" the images lie in
    `images/instances_UAVval/images/`. Categories have VisDrone's numbers.
    """
    folder = f"images/instances_UAV{split}" + "/images" * (split == "val")
    return read_coco(
        root,
        split,
        annotations=annotations or f"annotations/instances_UAV{split}.json",
        images=images or folder,
        numbers=_VISDRONE,
        classes=VISDRONE_CLASSES,
    )


def read_tiny_person(
    root: Path, split: str, *, annotations: str = "", images: str = "", dense: bool = False
) -> Draft:
    """TinyPerson as its benchmark has it: one class "person", without dense pictures.

    "train" is the file of tiles of 640x512 of the erased pictures, "test" that of whole pictures.
    What is ignored or uncertain is ignored.

    Args:
        root: `tiny_set`, or the folder that has it.
        dense: True keeps pictures of which an object is marked as in a dense image.

    Raises:
        DataError: an unknown split, or see `read_coco`.
    """
    if split not in _TINY and not annotations:
        raise DataError(f"TinyPerson has no split {split!r}; {nearest(split, _TINY)}")
    prefix = "tiny_set/" if (root / "tiny_set").is_dir() else ""
    file, folder = _TINY.get(split, ("", split))
    return read_coco(
        root,
        split,
        annotations=annotations or prefix + file,
        images=images or prefix + folder,
        numbers=dict.fromkeys(range(1, 3), 0),  # persons in the sea and on the earth
        classes=("person",),
        dense=dense,
    )


def read_flir(root: Path, split: str) -> Draft:
    """FLIR ADAS v1: `train` and `val` with `thermal_annotations.json`, in COCO's form.

    Categories 1, 2 and 3 are persons, bicycles and cars; others are left out.

    Args:
        root: `FLIR`, or the folder that has it.
    """
    prefix = "FLIR/" if (root / "FLIR").is_dir() else ""
    return read_coco(
        root,
        split,
        annotations=f"{prefix}{split}/thermal_annotations.json",
        images=f"{prefix}{split}",
        numbers={number + 1: number for number in range(len(FLIR_CLASSES))},
        classes=FLIR_CLASSES,
    )
