"""Parts of a user's own module are used like vadapt's, without editing a file of the package."""

import os
import sys

import pytest

from tests.processes import PATIENCE, spawn
from vadapt import catalogue
from vadapt.adapters import METHODS
from vadapt.backbones.families import BACKBONES
from vadapt.errors import ConfigError
from vadapt.registry import Registry

# What a user writes: a backbone, an adapter, a neck, a head with its loss, a source and a task.
OWN = '''
import jax.numpy as jnp
from flax import nnx

from vadapt.backbones.vit import ViT
from vadapt.data.scenes import SceneOptions, Scenes
from vadapt.heads.linear import LinearHead
from vadapt.losses.segmentation import cross_entropy
from vadapt.nn.hooks import Hook, add_hook
from vadapt.partition import Adapter
from vadapt.tasks.segmentation import SegmentationTask


def toy(*, width: int = 8, **options):
    return ViT(width=width, depth=1, num_heads=2, patch_size=8, **options)


class Shift(Hook):
    """One learned vector, added to the patches after every block."""

    def __init__(self, width):
        self.vector = Adapter(jnp.zeros((width,)))

    def after(self, number, x, state):
        return x.with_patches(x.patches + self.vector[...].astype(x.array.dtype)), state


def shift(model, *, times: int = 1, rngs=None):
    """Shift what every block gives."""
    model = nnx.clone(model)
    add_hook(model, "shift", Shift(model.width))
    return model


def halved(widths, *, rngs):
    """Maps of half the size."""
    return lambda maps: tuple(x[:, ::2, ::2] for x in maps), tuple(widths)


class Squares(LinearHead):
    """A linear head on the squares of its maps."""

    def __call__(self, maps, key=None):
        return super().__call__([x * x for x in maps])


def twice(scores, labels):
    """Twice the cross entropy."""
    print("my own loss")
    return 2 * cross_entropy(scores, labels)


def two_scenes(view: str, image_size: tuple[int, int], first_seed: int = 7):
    print("my own seed", first_seed)
    return Scenes(2, view=view, fields=("image", "mask"), seed=first_seed,
                  options=SceneOptions(*image_size))


class Task(SegmentationTask):
    """Segmentation, said aloud."""

    def loss(self, model, batch, key):
        print("my own task")
        return super().loss(model, batch, key)
'''


SOURCELESS = (
    *("tasks", "sources", "losses of pixels", "necks", "heads of labels"),
    *("optimizers", "schedules", "recipes"),
)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "my_parts.py").write_text(OWN)
    return tmp_path


def test_parts_of_ones_own_train_from_the_command_line(own):
    flags = [
        "--config=configs/linear_dinov2.py:scenes", f"--workdir={own / 'run'}",
        "--config.model.backbone=my_parts:toy", "--config.model.weights=",
        "--config.model.options.width=12", "--config.task.layers=0,",
        "--config.method.name=my_parts:shift", "--config.method.times=2",
        "--config.neck.name=my_parts:halved", "--config.head.name=my_parts:Squares",
        "--config.head.loss=my_parts:twice",
        "--config.data.source=my_parts:two_scenes", "--config.data.first_seed=9",
        "--config.task.name=my_parts:Task",
        "--config.total_steps=1", "--config.batch_size=2", "--config.eval.batch=2",
    ]  # fmt: skip
    path = os.pathsep.join([str(own), os.environ.get("PYTHONPATH", "")])
    process = spawn([sys.executable, "-m", "vadapt.main", *flags], PYTHONPATH=path)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors[-2000:]
    assert "my own task" in output
    assert "my own loss" in output
    assert "my own seed 9" in output
    assert "my_parts:shift" in (own / "run" / "config.json").read_text()


def test_a_place_that_is_not_there_is_said(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own))
    assert METHODS["my_parts:shift"].__name__ == "shift"
    for name in ("my_parts:shft", "my_prts:shift"):
        with pytest.raises(ConfigError, match=f"method='{name}': .*'?(shft|my_prts)"):
            METHODS[name]
    sys.modules.pop("my_parts")


def test_names_are_given_once():
    parts = Registry("config.head.name", {"path": "pathlib:Path"})

    @parts.register("mine")
    def mine():
        """Mine."""

    assert parts["mine"] is mine
    assert [*parts] == ["path", "mine"]
    parts.register("mine")(mine)  # a module that is imported again
    for name in ("mine", "path"):
        with pytest.raises(ConfigError, match=f"'{name}' is taken"):
            parts.register(name)(print)


def test_the_list_has_a_line_for_every_part(capsys):
    assert catalogue.main([]) == 0
    shown = capsys.readouterr().out
    for kind, parts in catalogue.KINDS.items():
        assert f"{kind}:" in shown
        for name in parts:
            if not getattr(parts[name], "__module__", "vadapt.").startswith("vadapt."):
                continue  # another test's own
            (line,) = {one for one in catalogue.lines(kind) if one.split()[0] == name}
            what, source = catalogue.describe(parts[name])
            assert line in shown
            assert len(what) > 15, line
            assert source or kind in SOURCELESS, line
    sizes = [catalogue.describe(BACKBONES[f"vit_{size}"])[0] for size in ("small", "base")]
    assert sizes == [f"A plain vision transformer: vit('{size}')" for size in ("small", "base")]
    assert "ResNet(50, deep_stem=True)" in catalogue.describe(BACKBONES["resnet50_v1c"])[0]
    assert catalogue.main(["adapters"]) == 0
    assert "rein" in (shown := capsys.readouterr().out)
    assert "vit_base" not in shown
    assert catalogue.main(["adaptres"]) == 1
    assert "nearest: 'adapters'" in capsys.readouterr().err
