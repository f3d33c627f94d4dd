"""Small data sets with boxes in the layouts of published ones, for tests to write."""

import json

import numpy as np
from PIL import Image


def put(path, size=(60, 40), seed=0):
    """A picture of (width, height) with pixels of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def coco(images=None, annotations=None, **changes):
    """The content of a file of COCO: two images of 60x40; ids and categories are not in order."""
    return {
        "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": images
        or [
            {"id": 7, "file_name": "b.png", "width": 60, "height": 40},
            {"id": 3, "file_name": "a.png", "width": 60, "height": 40},
        ],
        "annotations": annotations
        if annotations is not None
        else [
            {"id": 1, "image_id": 3, "category_id": 9, "bbox": [10, 5, 20, 10], "area": 150.5},
            {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 60, 40], "iscrowd": 1},
            {"id": 5, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "ignore": True},
        ],
        **changes,
    }


def write_coco(root, content=None, *, file="annotations/instances_val.json", folder="val"):
    """A data set of COCO's form, with all of its images."""
    content = coco() if content is None else content
    for number, image in enumerate(content["images"]):
        put(
            root / folder / image["file_name"],
            (image.get("width", 60), image.get("height", 40)),
            number,
        )
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


def write_visdrone(root, split="train", lines=None):
    base = root / f"VisDrone2019-DET-{split}"
    lines = lines or {
        "0000001_a": "10,5,20,10,1,1,0,0\n0,0,30,40,0,0,0,0,\n48,5,5,5,1,4,0,0\n2,3,4,5,1,11,0,0\n",
        "0000002_b": "1,2,3,4,0,10,1,2\n",
    }
    for name, text in lines.items():
        put(base / "images" / f"{name}.jpg")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{name}.txt").write_text(text)
    return root


def write_tiny_person(root):
    """Training tiles of one erased picture; test pictures of which one is dense."""
    tiles = [
        {
            "id": number,
            "file_name": "labeled_images/a.jpg",
            "corner": corner,
            "width": 30,
            "height": 20,
        }
        for number, corner in enumerate([[0, 0, 30, 20], [30, 20, 60, 40]], 1)
    ]
    persons = [{"id": 1, "name": "sea_person"}, {"id": 2, "name": "earth_person"}]
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9]},
        {"id": 2, "image_id": 2, "category_id": 2, "bbox": [3, 4, 5, 6], "uncertain": True},
    ]
    write_coco(
        root,
        coco([{**tiles[0], "width": 60, "height": 40}], []),
        file="unused.json",
        folder="tiny_set/erase_with_uncertain_dataset/train",
    )
    folder = root / "tiny_set/mini_annotations"
    folder.mkdir()
    content = coco(tiles, boxes, categories=persons)
    name = "tiny_set_train_sw640_sh512_all_erase.json"
    (folder / name).write_text(json.dumps(content))
    dense = [
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [1, 1, 2, 2], "in_dense_image": True}
    ]
    dense.append({"id": 4, "image_id": 3, "category_id": 2, "bbox": [1, 1, 3, 3], "ignore": True})
    write_coco(
        root,
        coco(None, dense, categories=persons),
        file="tiny_set/mini_annotations/tiny_set_test_all.json",
        folder="tiny_set/test",
    )
    return root


def write_flir(root):
    images = [
        {"id": n, "file_name": f"thermal_8_bit/{n}.jpeg", "width": 60, "height": 40} for n in (0, 1)
    ]
    names = ["person", "bicycle", "car"]
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(names)]
    categories.append({"id": 17, "name": "dog"})
    boxes = [
        {"id": n, "image_id": 1, "category_id": kind, "bbox": [n, 2, 8, 9]}
        for n, kind in enumerate((3, 17, 1))
    ]
    content = coco(images, boxes, categories=categories)
    for split in ("train", "val"):
        write_coco(
            root, content, file=f"FLIR/{split}/thermal_annotations.json", folder=f"FLIR/{split}"
        )
    return root


def write_yolo(root):
    """Three images, one without a file of labels; a polygon among the boxes."""
    for name in ("a", "b", "c"):
        put(root / "images/val" / f"{name}.png")
    (root / "labels/val").mkdir(parents=True)
    (root / "labels/val/a.txt").write_text("1 0.5 0.5 0.5 0.25\n0 0.1 0.2 0.3 0.2 0.3 0.6\n")
    (root / "labels/val/b.txt").write_text("")
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\nval: images/val\n")
    return root


def write_voc(root):
    def thing(name, box, difficult=0):
        corners = "".join(
            f"<{side}>{x}</{side}>"
            for side, x in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        return (
            f"<object><name>{name}</name><difficult>{difficult}</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )

    (root / "Annotations").mkdir(parents=True)
    objects = {"a": thing("dog", (11, 6, 30, 15)) + thing("cat", (1, 1, 60, 40), 1), "b": ""}
    for name, text in objects.items():
        put(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename>{text}</annotation>"
        )
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    return root
