"""Detection: one's own COCO file trained on, scored in the pixels of its images, and predicted."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vadapt import predict
from vadapt.boxes.nms import Detections
from vadapt.configs import cfpt_visdrone
from vadapt.data.given import read_images
from vadapt.errors import ConfigError
from vadapt.heads.boxes.dense import DenseHead
from vadapt.metrics.detection import Found, Truth
from vadapt.partition import count, split
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.tasks.box_reports import image_scores
from vadapt.tasks.detection import DetectionTask

# (left, top, right, bottom) of each image's objects, by class, in the pixels of its file.
SIZES = ((100, 60), (64, 64), (48, 120))
OBJECTS = (
    ((10, 5, 30, 25, 0), (60, 10, 96, 50, 1)),
    ((4, 8, 40, 60, 1),),
    ((3, 70, 40, 110, 0), (5, 5, 20, 30, 0), (24, 10, 44, 40, 1)),
)


def write(root, split):
    """Images of several sizes with filled boxes, as COCO has them; category ids are not ours."""
    images, annotations = [], []
    for number, ((width, height), objects) in enumerate(zip(SIZES, OBJECTS, strict=True)):
        pixels = np.full((height, width, 3), 90, np.uint8)
        for left, top, right, bottom, kind in objects:
            pixels[top:bottom, left:right] = ((250, 40, 30), (20, 60, 240))[kind]
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + number, "category_id": 7 + kind,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
        name = f"{number}.png"
        (root / split).mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels).save(root / split / name)
        images.append({"id": 10 + number, "file_name": name, "width": width, "height": height})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    (root / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("train", "val"):
        write(root, name)
    return root


def toy(root, argument="fpn", **changes):
    """CFPT's recipe on one's own COCO file, at the size of a toy."""
    config = cfpt_visdrone.get_config(argument)
    config.total_steps, config.batch_size, config.trainable = 2, 3, "everything"
    config.data.update({"layout": "coco", "path": str(root), "image_size": (64, 128)})
    config.data.update({"annotations": "train.json", "image_folder": "train", "max_boxes": 4})
    config.data.update({"longest": 128, "short_edges": (64,), "box_rule": "all"})
    config.data.update({"test_longest": 128, "test_shortest": 64})
    config.test.val.update({"annotations": "val.json", "image_folder": "val"})
    config.model.weights, config.model.options.base_width = "", 4
    config.neck.outputs, config.head.width, config.head.depth = 16, 16, 1
    config.parallel.frozen_dtype = config.parallel.step.compute_dtype = "float32"
    config.eval.update({"batch": 2, "before": 50, "most": 20, "num_worst": 2})
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run(toy(data), workdir, devices=jax.devices()[:1])


class Oracle(nnx.Module):
    """A head that finds all objects of every image, which it knows by the size of its file."""

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def __call__(self, features, key=None):
        return features

    def detect(self, predictions, sizes, *, scales, **options):
        # Which image it is, the size of its file says: scales are of x and y.
        known = jnp.asarray([[h, w] for w, h in SIZES], jnp.float32)
        files = sizes.real.astype(jnp.float32) / scales[:, ::-1]
        which = jnp.abs(known[None] - files[:, None]).sum(-1).argmin(axis=1)
        rows = np.zeros((len(OBJECTS), 3, 5), np.float32)
        valid = np.zeros((len(OBJECTS), 3), bool)
        for i, objects in enumerate(OBJECTS):
            rows[i, : len(objects)], valid[i, : len(objects)] = objects, True
        rows, valid = jnp.asarray(rows)[which], jnp.asarray(valid)[which]
        scores = jnp.where(valid, 0.9, 0.0)
        classes = rows[..., 4].astype(jnp.int32)
        return Detections(rows[..., :4], scores, classes, valid, classes)


@pytest.fixture
def oracle(data):
    task = make_task(toy(data))
    model = task.build()
    model.head = Oracle(2)
    return task, model


def test_what_is_right_in_the_pixels_of_the_files_scores_a_hundred(oracle):
    task, model = oracle
    scores, reports = task.report(model)
    assert scores["val/AP"] == scores["val/AP50"] == scores["val/AP/dog"] == 100
    assert scores == task.evaluate(model)
    rows = {row["class"]: row for row in reports["val"].rows}
    assert (rows["cat"]["objects"], rows["dog"]["objects"]) == (3, 3)
    assert reports["val"].images.scores.tolist() == [100.0] * 3


def test_a_large_image_is_seen_in_tiles(oracle, data):
    task, model = oracle
    (image,), _ = read_images(data / "val" / "1.png")
    found = task.predict_image(model, image)
    assert [box.label for box in found.boxes] == ["dog"]
    assert found.boxes[0].corners == pytest.approx((4, 8, 40, 60), abs=1e-3)
    twice = np.concatenate([image, image], axis=1)
    task.config.eval.tile, task.config.eval.tile_overlap = (64, 64), (0, 0)
    corners = sorted(box.corners for box in task.predict_image(model, twice).boxes)
    assert corners == [pytest.approx(x, abs=1e-3) for x in ((4, 8, 40, 60), (68, 8, 104, 60))]


def test_a_run_leaves_scores_pictures_and_what_it_finds(finished, data, tmp_path, capsys):
    workdir, result = finished
    assert 0 <= result["val/AP/adapted"] <= 100
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    terms = [row for row in losses if "loss_cls" in row]
    assert all(np.isfinite(row["loss_cls"]) and np.isfinite(row["loss_bbox"]) for row in terms)
    assert len(terms) == 1
    assert (workdir / "pictures" / "detections_000002.png").exists()
    out = tmp_path / "out"
    flags = [f"--workdir={workdir}", f"--images={data / 'val'}", f"--out={out}"]
    assert predict.main(flags) == 0
    content = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["0.png", "1.png", "2.png"]
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert sorted(path.name for path in (out / "boxes").iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]
    assert predict.main([*flags, "--format=csv"]) == 0
    with (out / "labels.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(content["annotations"])
    capsys.readouterr()


def test_found_objects_are_written_as_coco_has_them(oracle, data, tmp_path, monkeypatch):
    task, model = oracle
    loaded = type(
        "Run", (), {"task": task, "model": model, "name": "mine", "classes": ["cat", "dog"]}
    )
    monkeypatch.setattr("vadapt.trained.load_run", lambda *given, **more: loaded)
    outcome = predict.predict("mine", data / "val", tmp_path)
    content = json.loads((tmp_path / "coco.json").read_text())
    assert len(outcome.written) == 3
    truth = [(i + 1, kind + 1, [left, top, right - left, bottom - top])
             for i, objects in enumerate(OBJECTS)
             for left, top, right, bottom, kind in objects]  # fmt: skip
    found = [(a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"]]
    assert found == [(i, k, pytest.approx(box, abs=1e-2)) for i, k, box in truth]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert content["images"][2] == {"id": 3, "file_name": "2.png", "height": 120, "width": 48}


def test_padding_is_no_place_for_anchors_and_zero_for_the_model(data, monkeypatch):
    task = make_task(toy(data))
    batch = next(task.stream())
    model = task.build()
    seen = {}

    def loss(self, predictions, boxes, classes, valid, sizes):
        seen.update(boxes=boxes, valid=valid, sizes=sizes)
        return {"loss": jnp.zeros(())}

    monkeypatch.setattr(DenseHead, "loss", loss)
    task.loss(model, {k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(0))
    for i, (height, width) in enumerate(np.asarray(batch["size"]).tolist()):
        assert (seen["sizes"].real[i] == np.array([height, width])).all()
        assert (seen["sizes"].padded[i] == np.array([-(-height // 64), -(-width // 64)]) * 64).all()
    counts = np.asarray(seen["valid"]).sum(axis=1)
    assert sorted(counts.tolist()) == [1, 2, 3]


def test_images_are_scored_by_what_is_right_missed_and_wrong():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10.0]])
    none = np.zeros(3, bool)
    truth = Truth(np.array([0, 0, 1]), np.array([0, 1, 0]), boxes, np.full(3, 100.0), none, none)
    found = Found(np.array([0, 0, 0]), np.array([0, 0, 1]),
                  np.array([[0, 0, 10, 9], [0, 0, 10, 10], [60, 0, 70, 10.0]]),
                  np.array([0.9, 0.8, 0.7]))  # fmt: skip
    scores = image_scores(found, truth, np.arange(3), 0.3)
    # The second of one object is wrong, as is what lies elsewhere; one object is missed.
    assert scores[:2].tolist() == [pytest.approx(100 * 2 / (2 + 2 + 1)), 0.0]
    assert np.isnan(scores[2])
    assert image_scores(found, truth, np.arange(1), 0.75)[0] == pytest.approx(100 * 2 / (2 + 1 + 1))
    ignored = truth._replace(ignored=np.array([False, True, False]))
    boxes = np.array([[0, 0, 10, 9], [20, 0, 30, 10], [60, 0, 70, 10.0]])
    near = found._replace(boxes_xyxy=boxes, classes=np.array([0, 1, 1]))
    assert image_scores(near, ignored, np.arange(1), 0.75)[0] == 100


def test_an_unknown_protocol_names_the_nearest(data):
    with pytest.raises(ConfigError, match=r"unknown config.eval.protocol 'coc'; .*coco"):
        DetectionTask(toy(data, **{"eval.protocol": "coc"}))


@pytest.mark.parametrize(
    ("argument", "trained", "total"),
    [
        ("r18", 20_779_558, 20_937_062),
        ("r50", 37_270_310, 37_495_654),
        ("r101", 56_262_438, 56_487_782),
    ],
)
def test_detectors_have_as_many_numbers_as_published(argument, trained, total):
    config = cfpt_visdrone.get_config(argument)
    task = make_task(config)
    parts = split(nnx.eval_shape(lambda: task.build(pretrained=False)), config.trainable)
    dead = 66_048  # rows of the published table of channels, which nothing reads
    assert count(parts.trainable) == trained - dead
    assert count(parts.trainable) + count(parts.frozen) == total - dead
