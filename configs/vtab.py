"""VTAB-1k: one of 19 tasks from a thousand images, by one of several methods on a frozen backbone.

    python -m vadapt.main --config=configs/vtab.py:cifar,ssf --workdir=runs/cifar \\
        --config.data.path=VTAB

VTAB holds a folder for each task, with `images/` and lists such as `train800val200.txt`, as NOAH
and SSF share them (docs/multilabel.md). Images are resized whole to 224 px, and nothing is random.
With `ssf` rate, decay and drop path are those that SSF's authors give for the task. SSF
(arXiv:2210.08823) reports a mean of 73.10 over the 19 tasks, and 65.57 for full fine-tuning, with
a linear layer on the class token. The head here reads it, too, of augreg's backbone, which was
trained so, and of others the mean of the patches; a batch norm stands before it. What other
methods are set to is this package's, and nobody has trained any of these configurations here. One
accelerator, minutes; `vadapt.metrics.vtab` has both means that papers report. On a laptop, in
minutes, on objects cut from the embedded scenes:

    python -m vadapt.main --config=configs/vtab.py:scenes --workdir=runs/vtab_scenes

Arguments (after a colon, joined by commas):
    caltech101 | cifar | ...    the task, a name in `vadapt.data.vtab.TASKS`; cifar is the default
    ssf | linear | vpt | lora | adaptformer | cls_reinit+vpt    the method; ssf is the default
    augreg | mae | dinov2       the backbone, of base size; augreg (ImageNet-21k) is the default
    checkpoint | imagenet | half    the mean and deviation of pixels: those of the backbone's own
                                training (the default), or ImageNet's, or 0.5 and 0.5
    search                      train on 800 of the images, test on the other 200
    knn | probe                 no training: the nearest training images vote on a test image, or a
                                logistic regression of their features does; linear is the default
    scenes                      the embedded data set, 20 classes, and the micro backbone
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.data.vtab import TASKS

EPOCHS, COOLDOWN, IMAGES = 100, 10, 1000
READERS = ("knn", "probe")
VPT = {"name": "vpt", "num_tokens": 10, "deep": True}
METHODS = {
    "ssf": {"name": "ssf"},
    "linear": {"name": "none"},
    "vpt": VPT,
    "cls_reinit+vpt": {"name": "cls_reinit", "then": VPT},
    "lora": {"name": "lora", "rank": 8},
    "adaptformer": {"name": "adaptformer"},
}
PIXELS = {"imagenet": parts.IMAGENET, "half": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
# Name, weights, what their training did to pixels, and what images are classified by.
BACKBONES = {
    "augreg": ("vit_base", "hf:timm/vit_base_patch16_224.augreg_in21k", "half", "cls"),
    "mae": ("vit_base", "hf:facebook/vit-mae-base", "imagenet", "img_pool"),
    "dinov2": ("dinov2_base", "hf:facebook/dinov2-base", "imagenet", "img_pool"),
}
# Rate in batches of 64, weight decay and drop path of each task, as SSF's authors have them.
SSF = {
    "caltech101": (1e-3, 5e-2, 0.1),
    "cifar": (5e-3, 5e-5, 0.0),
    "clevr_count": (2e-3, 5e-2, 0.1),
    "clevr_dist": (5e-2, 5e-2, 0.1),
    "diabetic_retinopathy": (5e-3, 5e-5, 0.2),
    "dmlab": (5e-3, 5e-5, 0.1),
    "dsprites_loc": (1e-2, 5e-5, 0.0),
    "dsprites_ori": (5e-3, 5e-5, 0.2),
    "dtd": (5e-3, 5e-5, 0.0),
    "eurosat": (3e-3, 5e-2, 0.2),
    "oxford_flowers102": (5e-3, 5e-5, 0.0),
    "kitti": (1e-2, 5e-5, 0.0),
    "patch_camelyon": (5e-3, 5e-5, 0.0),
    "oxford_iiit_pet": (5e-3, 5e-5, 0.0),
    "resisc45": (2e-3, 5e-5, 0.1),
    "smallnorb_azi": (2e-2, 5e-5, 0.1),
    "smallnorb_ele": (5e-3, 5e-2, 0.2),
    "sun397": (5e-3, 5e-5, 0.0),
    "svhn": (1e-2, 5e-5, 0.0),
}
OTHERS = (1e-3, 1e-4, 0.0)


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(
        arg, *TASKS, *METHODS, *BACKBONES, *PIXELS, "checkpoint", "search", *READERS, "scenes"
    )
    name = parts.one_of(words, TASKS, "cifar")
    readers = tuple(word for word in words if word in READERS)
    method = parts.one_of(words, METHODS, "linear" if readers else "ssf")
    lr, decay, drop_path = SSF[name] if method == "ssf" else OTHERS
    config = ConfigDict({"seed": 0, "batch_size": 64, "trainable": "default", "baselines": False})
    config.total_steps = (EPOCHS + COOLDOWN) * IMAGES // config.batch_size
    config.data = parts.images_and_labels(layout=f"vtab_{name}", image_size=(224, 224))
    config.data.update({"augment": "none", "crop_area": (0.08, 1.0)})  # the latter if it crops
    config.data.num_labels = TASKS[name].num_classes
    config.data.split = "train800" if "search" in words else "train800val200"
    tested = "val200" if "search" in words else "test"
    config.test = ConfigDict({tested: {"split": tested}})
    backbone, weights, own, pool = BACKBONES[parts.one_of(words, BACKBONES, "augreg")]
    config.data.update(PIXELS[parts.one_of(words, PIXELS, own)])
    config.model = parts.backbone(backbone, weights, drop_path_rate=drop_path)
    config.model.allow_unexpected = ("decoder/.*",)  # of MAE
    config.method, config.head = ConfigDict(METHODS[method]), parts.named("linear", pool=pool)
    config.task = parts.named("classification", layers=(11,), norm=True)
    config.task.update({"train_norms": False, "load_head": False})
    config.task.update({"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0})
    shares = {"warmup": 10 / (EPOCHS + COOLDOWN), "cooldown": COOLDOWN / (EPOCHS + COOLDOWN)}
    schedule = parts.named("covered_cosine", **shares, start=1e-7, end=1e-8)
    config.optimizer = parts.adamw(lr, schedule, weight_decay=decay)
    config.parallel, config.run = parts.parallel(), parts.run()
    config.eval = parts.evaluation(batch=128, threshold=0.5, features=readers)
    if "scenes" in words:
        scenes(config)
    if readers:
        config.total_steps = 0
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: the largest object of each of a thousand scenes."""
    config.total_steps, config.batch_size = 200, 32
    config.data = parts.images_and_labels(**parts.SCENES, num_labels=20)
    config.data.update({"source": "scene_objects", "num_scenes": IMAGES})
    config.data.update({"augment": "none", "crop_area": (0.6, 1.0)})
    config.test = parts.test_scenes(256)
    parts.micro_backbone(config)
    config.task.layers, config.head.pool = (5,), "img_pool"  # of a masked autoencoder
    config.optimizer.lr = 1e-2
    parts.float32(config)
    parts.look_up_every(config, 100)
