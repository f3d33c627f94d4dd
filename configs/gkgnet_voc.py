"""GKGNet on VOC 2007: 20 labels an image, trained on `trainval`, tested on `test`.

    python -m vadapt.main --config=configs/gkgnet_voc.py --workdir=runs/gkgnet_voc \\
        --config.data.path=VOCdevkit --config.model.weights=gkgnet_576.pth

The paper reports 96.8 mAP (GKGNet, arXiv:2308.14378), without the settings; the released code has
none for VOC either. These are COCO's at 448 px with a shorter course, the weights those of GKGNet
trained on COCO, whose labels' table and last layers are left out, or of Pyramid ViG-S. An hour on
one GPU. Objects that are difficult alone leave a label in doubt: it is neither learned nor ranked.
On a laptop, on the embedded scenes:

    python -m vadapt.main --config=configs/gkgnet_voc.py:scenes --workdir=runs/voc_scenes

Arguments are those of configs/gkgnet_coco.py.
"""

from ml_collections import ConfigDict

from configs import gkgnet_coco, parts

IMAGES = 5011


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    if not set(words) & set(gkgnet_coco.SIDES):
        words.insert(0, "448")
    config = gkgnet_coco.get_config(",".join(words))
    if "scenes" in words:
        return config
    config.batch_size = 32
    config.total_steps = 40 * IMAGES // config.batch_size
    config.data.layout, config.data.split, config.data.num_labels = "voc2007", "trainval", 20
    config.data.balance = 0.0  # no label is in fewer than one of 100 images
    config.test = ConfigDict({"test": {"split": "test"}})
    parts.look_up_every(config, 500)
    return config
