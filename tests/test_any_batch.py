"""Every part can be traced for a batch of any size, as exported files are; nothing is computed."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import pytest
from flax import nnx

from vadapt import adapters, models
from vadapt.adapters import METHODS
from vadapt.backbones.staged import Staged
from vadapt.heads import LABELS, SEGMENTATION, label_head, segmentation_head
from vadapt.system import System
from vadapt.tasks.segmentation import pixel_scores

SIDE = 64
TOY = {"depth": 4, "width": 16, "num_heads": 2, "image_size": SIDE}
SMALL = {
    "mask2former": {
        **{"width": 32, "outputs": 32, "depth": 1, "num_heads": 2, "hidden": 8},
        **{"encoder_depth": 1, "encoder_hidden": 8, "linked": False, "replace_query_feat": False},
    },
    "spm": {"num_classes": 3},
}


def vit():
    return models.create("vit_micro", **TOY)


def resnet():
    return models.create("resnet50", base_width=4)


def segments(head):
    options = SMALL.get(head, {})
    made = segmentation_head(head, [16] * 4, 3, rngs=nnx.Rngs(0), **options)
    return System(vit(), made, layers=(0, 1, 2, 3)), pixel_scores


def recognizes(head):
    made = label_head(head, [16, 16], 3, rngs=nnx.Rngs(0))
    return System(vit(), made, layers=(0, 1)), lambda model, x: model(x).logits


def alone(create):
    return create(), lambda model, x: model.features(x, as_grid=True)


def adapted(method):
    create = resnet if method == "conv_adapter" else vit
    return alone(lambda: adapters.apply(create(), method, **SMALL.get(method, {})))


CASES = {
    **{f"pixels, {name}": partial(segments, name) for name in SEGMENTATION},
    **{f"labels, {name}": partial(recognizes, name) for name in LABELS},
    **{name: partial(adapted, name) for name in METHODS},
    "rotary": partial(alone, partial(models.create, "dinov3_small", **TOY)),
    "vig": partial(alone, partial(models.create, "vig_micro", image_size=SIDE)),
    "sam": partial(alone, partial(models.create, "sam_base", neck=8, global_blocks=(1,), **TOY)),
    "resnet": partial(alone, resnet),
    "swin": partial(alone, partial(models.create, "swin_micro", window=2)),
    "convnext": partial(
        alone, partial(models.create, "convnext_tiny", depths=(1,) * 4, widths=(8,) * 4)
    ),
}


@pytest.mark.filterwarnings("ignore:.*sources are too few")
@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_any_size_is_traced(name):
    functions = []

    def create():
        model, function = CASES[name]()
        functions.append(function)
        return model

    model = nnx.eval_shape(create)
    graph, state = nnx.split(model)
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 3), jnp.float32)
    found = jax.eval_shape(lambda s, x: functions[0](nnx.merge(graph, s), x), state, images)
    assert found.shape[0] == batch
    assert isinstance(model, System | Staged) or found.ndim == 4
