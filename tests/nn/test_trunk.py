"""The one loop over blocks: taps, hooks that stack, plans, scanning, rematerialisation."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.compiled import run
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import ViT
from vadapt.errors import ConfigError, ShapeError
from vadapt.nn.hooks import Hook, add_hook
from vadapt.nn.plans import Parallel
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import run_blocks
from vadapt.partition import Prompt
from vadapt.remat import rematerialise, scanned

PACKAGE = Path(vadapt.__file__).parent
SIZE = {"width": 8, "num_heads": 2, "patch_size": 8, "image_size": (16, 24)}
# A head's nodes that look at the maps of a backbone; nothing acts around them.
NO_TRUNK = {"heads/label_graph.py"}


def plain(**options):
    return ViT(**{"depth": 3, **SIZE, **options}, rngs=nnx.Rngs(0))


TRUNKS = {
    "plain": plain,
    "registers": lambda: plain(num_registers=2),
    "rotary": lambda: plain(rotary="pairs", rotary_extent=None),
    "relative": lambda: plain(relative_positions="each"),
    "windows": lambda: SAMEncoder(
        **SIZE, depth=3, window=2, global_blocks=[1], neck=None, rngs=nnx.Rngs(0)
    ),
    "shifted": lambda: Swin(depths=(2, 1), width=4, num_heads=(1, 2), window=2, rngs=nnx.Rngs(0)),
    "staged": lambda: ConvNeXt(depths=(1, 2), widths=(4, 8), normed=(0, 1), rngs=nnx.Rngs(0)),
}


class DeepPrompts(Hook):
    """Prompts of its own at every block, which see the patches and are seen by them."""

    def __init__(self, number, width, depth):
        rows = np.random.default_rng(0).normal(size=(depth, number, width))
        self.rows = Prompt(jnp.asarray(rows, jnp.float32))

    def before(self, number, x, state):
        rows = self.rows[number].astype(x.array.dtype)
        return x.with_prompts(jnp.broadcast_to(rows, (len(x.array), *rows.shape))), state


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 24, 3)), jnp.float32)


def loops(path):
    """Lines that loop over blocks or stages and call what they loop over."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.For | ast.comprehension):
            continue
        over = {getattr(x, "attr", getattr(x, "id", "")) for x in ast.walk(node.iter)}
        names = {x.id for x in ast.walk(node.target) if isinstance(x, ast.Name)}
        called = {
            x.func.id if isinstance(x.func, ast.Name) else getattr(x.args[0], "id", "")
            for x in ast.walk(node)
            if isinstance(x, ast.Call)
            and (isinstance(x.func, ast.Name) or (ast.unparse(x.func) == "remat.call" and x.args))
        }
        if over & {"blocks", "stages", "layers"} and names & called:
            yield node.iter.lineno


def test_there_is_one_loop_over_blocks(tmp_path):
    found = {
        str(path.relative_to(PACKAGE)): lines
        for room in ("backbones", "heads", "adapters", "tasks", "nn", "necks")
        for path in sorted((PACKAGE / room).glob("*.py"))
        if (lines := list(loops(path)))
    }
    # Layers of a mask decoder and of residual branches are no blocks of a trunk.
    allowed = NO_TRUNK | {
        "backbones/resnet.py", "heads/mask2former.py", "heads/pixel_decoder.py",
    }  # fmt: skip
    assert set(found) <= allowed, found
    other = tmp_path / "other.py"
    other.write_text("def f(self, x):\n    for block in self.blocks:\n        x = block(x)\n")
    assert list(loops(other)) == [2]


def both(model, images):
    return model(images), model.extract(images)


@pytest.mark.parametrize("name", TRUNKS)
def test_features_are_what_a_call_gives_at_the_last_tap(name, images):
    called, features = run(both, TRUNKS[name](), images)
    np.testing.assert_array_equal(called.reshape(features.maps.shape), features.maps)
    tokens = called[:, 0] if called.ndim == 3 else None
    assert set(features.outputs) == (set() if tokens is None else {"class_token"})
    if tokens is not None:
        np.testing.assert_array_equal(features.outputs["class_token"], tokens)


def stacked(model, order=("rein", "spm", "prompts")):
    """The model with Rein, SPM and deep prompts on it."""
    rein = {"num_tokens": 4, "rank": 2, "query_width": 8, "start": "paper"}
    spm = {"num_classes": 3, "hidden": 4, "steps": 1}
    for name in order:
        if name == "rein":
            model = vadapt.adapt(model, "rein", **rein)
        elif name == "spm":
            stages = {} if hasattr(model, "stages") else {"num_stages": 2}
            model = vadapt.adapt(model, "spm", **spm, **stages)
        else:
            model = nnx.clone(model)
            add_hook(model, "prompts", DeepPrompts(2, model.width, model.depth))
    return model


@pytest.mark.parametrize("name", ["registers"])
def test_rein_spm_and_deep_prompts_stack_on_one_model(name, images):
    trunk = TRUNKS[name]()
    model = stacked(trunk)
    assert model.hooks == ("adapter", "between", "prompts")

    def call(model, images):
        return model.extract(images, (1, 2)), model(images)

    features, last = run(call, model, images)
    shape = (2, model.num_extra + 6, 8)  # prompts are dropped before anyone looks
    assert [x.shape for x in (*features.maps, last)] == [shape] * 3
    np.testing.assert_array_equal(features.maps[1], last)
    assert features.outputs["queries"].shape == (4, 8)
    assert [x.shape for x in features.outputs["class_maps"]] == [(2, 2, 3, 3)]
    prompted, _ = run(call, stacked(trunk, ["prompts"]), images)
    # Rein and SPM are zero at the start: what changes the maps is the prompts.
    np.testing.assert_array_equal(prompted.maps[1], last)
    assert jnp.abs(last - trunk(images)).max() > 1e-3


@pytest.mark.parametrize("name", ["relative", "windows", "staged"])
def test_hooks_work_or_are_refused_by_name(name, images):
    model = stacked(TRUNKS[name](), ["rein", "spm"])
    found, expected = (run("features", each, images) for each in (model, TRUNKS[name]()))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if hasattr(model, "blocks"):
        with pytest.raises(ShapeError, match=r"prompts need a sequence|grid need 7 tokens"):
            stacked(model, ["prompts"])(images)


def test_methods_are_applied_once_and_to_trunks_alone():
    model = stacked(plain(), ["rein"])
    with pytest.raises(ConfigError, match="has this method already, as its `adapter`"):
        stacked(model, ["rein"])
    with pytest.raises(ConfigError, match="Linear has no blocks"):
        add_hook(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "prompts", DeepPrompts(1, 2, 1))
    with pytest.raises(ConfigError, match="spm took hold nowhere in this ConvNeXt"):
        vadapt.adapt(
            ConvNeXt(depths=(1,), widths=(4,), normed=(0,), rngs=nnx.Rngs(0)), "spm", num_classes=2
        )


class Affine(nnx.Module):
    """x -> factor * x + 1."""

    def __init__(self, factor):
        self.factor = nnx.Param(jnp.asarray(float(factor)))

    def __call__(self, x, key=None):
        return self.factor[...] * x + 1


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (None, 4 * (3 * (2 * 1 + 1) + 1) + 1),
        ((0, 2), 4 * (2 * 1 + 1) + 1),
        ((2, 1, 1), 3 * (3 * (4 * 1 + 1) + 1) + 1),
        ((0, Parallel((1, 2))), ((3 * 3 + 1) + (4 * 3 + 1)) / 2),
        ((Parallel((0,), loops=3),), 2 * (2 * (2 * 1 + 1) + 1) + 1),
    ],
)
def test_blocks_run_as_planned(plan, expected):
    blocks = [Affine(factor) for factor in (2, 3, 4)]
    passed = run_blocks(blocks, Tokens(jnp.ones((1, 2, 3))), plan=plan)
    np.testing.assert_array_equal(passed.x.array, jnp.full((1, 2, 3), float(expected)))


def test_taps_of_blocks_that_do_not_run_take_the_nearest_lower_one():
    blocks, x = [Affine(factor) for factor in (2, 3, 4)], Tokens(jnp.ones((1, 1, 1)))
    seen = run_blocks(blocks, x, plan=(0, 2), taps=(1, 2)).seen
    assert [float(seen[tap].array.item()) for tap in (1, 2)] == [3.0, 13.0]
    seen = run_blocks(blocks, x, plan=(0, Parallel((1, 2))), taps=(1, 2)).seen
    assert float(seen[1].array.item()) == float(seen[2].array.item()) == 11.5
    with pytest.raises(ConfigError, match="no block up to 0"):
        run_blocks(blocks, x, plan=(1, 2), taps=(0,))
    with pytest.raises(ConfigError, match=r"blocks \[3\] in the plan of a model of 3"):
        run_blocks(blocks, x, plan=(0, 3))


def gradients(model, images):
    def loss(model):
        maps, outputs = model.extract(images, (0, 2), key=jax.random.key(0))
        extra = sum(jnp.square(x).sum() for x in jax.tree.leaves(outputs))
        return sum(jnp.square(x).sum() for x in maps) + extra

    return nnx.grad(loss)(model)


def test_scanned_and_rematerialised_passes_give_the_same(images):
    model = plain(depth=3, rotary="pairs", rotary_extent=None)
    lora = vadapt.adapt(model, "lora", rank=2)
    expected = run(gradients, lora, images)
    for how in (scanned(), rematerialise("blocks")):
        with how:
            found = jax.jit(gradients)(lora, images)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4 * max(1, np.abs(other).max()))


def test_scanning_makes_one_loop_of_alike_blocks(images):
    model = plain(depth=6)

    def products():
        text = jax.jit(lambda x: model.features(x)).lower(images).as_text()
        return text.count("dot_general")

    # Of each block four, and attention's two in a function that all of them call.
    assert products() == 6 * 4 + 2
    with scanned():
        assert products() == 6
        with pytest.raises(ConfigError, match=r"in the way: Rein\. Set parallel.step.scan=False"):
            stacked(model, ["rein"])(images)
