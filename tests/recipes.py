"""The configs, for tests that go through all of them."""

import importlib
import json
from pathlib import Path

import pytest

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))


def config_of(name, argument=""):
    return importlib.import_module(f"vadapt.configs.{name}").get_config(argument)


# Without those whose version on scenes is another's to the letter: the same programs again.
DISTINCT = sorted(
    {
        json.dumps(config_of(name, "scenes").to_dict(), sort_keys=True): name
        for name in reversed(CONFIGS)
    }.values()
)

# Whose heads make a step that compiles for a minute, on any backbone.
DEAR = [
    name for name in DISTINCT if config_of(name).get("head", {}).get("name") not in (None, "linear")
]


def shrunk(name, argument="scenes", *, blocks=2):
    """Return a config's version on scenes as small as it gets: for backbones of `two_blocks`.

    Args:
        blocks: 6 leaves the micro ViT as it is.
    """
    config = config_of(name, argument)
    config.total_steps = min(config.total_steps, 2)
    config.batch_size, config.data.num_scenes = 8, 16
    config.run.log_every = config.run.checkpoint_every = 1
    config.eval.every = int("test" in config)
    if "probe_scenes" in config.eval:
        config.eval.probe_scenes = 8
    for changes in config.get("test", {}).values():
        # Of the second half of the classes, two at least.
        changes.num_scenes = 8 if config.task.name == "retrieval" else 4
    if "decoder_depth" in config.task:
        config.task.decoder_depth = 1
    if config.model.backbone == "vit_micro" and blocks == 2:
        _fewer_blocks(config)
    if config.model.backbone == "vig_micro":
        config.model.options.update(widths=(24, 48), depths=(1, 1), reductions=(2, 1))
        config.task.layers = (0, 1)[-len(config.task.layers) :]
        if "drop_path_rates" in config.head:
            config.head.drop_path_rates = (0.0, 0.0)
    if config.task.name == "detection":
        config.neck.outputs = config.head.width = 32
        config.head.depth, config.eval.before, config.eval.most = 1, 50, 10
    if config.get("head", {}).get("name") == "mask2former":
        config.head.depth, config.head.loss_points = 1, 64
    return config


def _fewer_blocks(config):
    """Two blocks of the six: the others' weights have no place, maps come from these two."""
    beyond = (r"(backbone/)?blocks/[2-5]/.*", r"decoder/blocks/[1-9]/.*")
    config.model.allow_unexpected = (*config.model.allow_unexpected, *beyond)
    if "layers" in config.task:
        config.task.layers = tuple(int(layer > 2) for layer in config.task.layers)
    if config.method.name == "spm":
        with config.method.unlocked():
            config.method.num_stages = 2


def assert_trains(config, workdir, mode="train"):
    """Run a config of two steps, and look at all that it leaves."""
    import jax

    from vadapt.run import run
    from vadapt.tasks import make_task
    from vadapt.weights.adapter_file import read_info

    result = run(config, workdir, mode=mode, devices=jax.devices()[:2])
    assert result["steps"] == 2
    kinds = {"segmentation": "mean/miou", "multilabel": "clean/mAP"}
    kinds |= {"classification": "clean/top1", "retrieval": "clean/recall@1"}
    kinds |= {"detection": "clean/AP"}
    scores = {f"{kinds[config.task.name]}/adapted"} if "test" in config else {
        "probe/frozen", "probe/adapted"
    }  # fmt: skip
    assert {*scores, "trainable_parameters"} <= set(result)
    assert json.loads((workdir / "result.json").read_text()) == result
    info = read_info(workdir / "adapter.safetensors")
    assert info.backbone == config.model.backbone
    assert info.extra["options"] == json.loads(json.dumps(dict(make_task(config).backbone_options)))
    assert list((workdir / "pictures").glob("*.png"))
    if config.eval.every:  # after the first step, beside what the step says
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        assert {name.removesuffix("/adapted") for name in scores} <= {*lines[1]} - {*lines[0]}
    assert (workdir / "model.safetensors").is_file() == bool(config.run.save_model)


@pytest.fixture(scope="module")
def two_blocks():
    """The micro ViT with two of its six blocks, in all tests of a module from here on."""
    from vadapt.backbones.families import BACKBONES

    whole = BACKBONES["vit_micro"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES._parts, "vit_micro", whole._replace(options={"depth": 2}))
        yield
