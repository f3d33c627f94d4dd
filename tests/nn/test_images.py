"""What comes to a model and is no batch of normalized images is refused, in words."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vadapt.errors import ShapeError
from vadapt.nn.images import check_images

NAMES = {"np": np, "Image": Image}
WRONG = {
    "np.zeros((1, 64, 64, 3), np.uint8)": "of uint8; a model takes normalized floats: vadapt.pre",
    "np.zeros((64, 64, 3), np.float32)": "no batch axis; expected [b, h, w, 3]: give images[None]",
    "np.zeros((1, 3, 64, 64), np.float32)": "expected [b, h, w, 3]; their channels come first",
    "np.zeros((1, 64, 64, 1), np.float32)": "[1, 64, 64, 1] have 1 channels; expected [b, h, w, 3]",
    "np.zeros((64, 64), np.float32)": "[64, 64] have 2 axes",
    "Image.new('RGB', (64, 64))": "got a Image: vadapt.preprocess",
}
# Without the checks of shapes that tests have and users do not.
EVERY_BACKBONE = f"""
import jax, numpy as np, vadapt
from flax import nnx
from PIL import Image
from vadapt.errors import ShapeError
for name in ("vit_micro", "sam_base", "convnext_tiny", "swin_tiny", "resnet50", "vig_micro"):
    model = nnx.eval_shape(lambda: vadapt.create(name))
    for text in {list(WRONG)!r}:
        try:
            jax.eval_shape(lambda: model.features(eval(text)))
        except ShapeError as error:
            print(error)
"""


@pytest.mark.parametrize(("text", "words"), WRONG.items())
def test_what_is_no_batch_of_images_is_refused(text, words):
    with pytest.raises(ShapeError) as error:
        check_images(eval(text, NAMES), 3)
    assert words in str(error.value)


def test_a_batch_of_floats_is_taken():
    for dtype in ("float32", "bfloat16", "float16"):
        check_images(jnp.zeros((2, 3, 5, 3), dtype), 3)
    check_images(np.zeros((1, 8, 8, 1)), 1)
    check_images(jax.ShapeDtypeStruct((1, 3, 3, 3), jnp.float32), 3)


def test_every_backbone_refuses_it():
    found = subprocess.run(
        [sys.executable, "-c", EVERY_BACKBONE],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 6 * len(WRONG)
    for line, words in zip(lines, [*WRONG.values()] * 6, strict=True):
        assert words in line
