"""VPT: published counts, where prompts stand, images by themselves, checkpoints' names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.backbones.abstract import named
from tests.backbones.drawn import drawn
from tests.compiled import run
from vadapt.adapters import vpt
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import ViT
from vadapt.errors import ConfigError, ShapeError
from vadapt.heads import label_head
from vadapt.partition import Prompt, count, split, variables
from vadapt.system import System
from vadapt.weights.families.mae import MAE
from vadapt.weights.families.swin import SWIN
from vadapt.weights.families.vpt import VPT, with_prompts
from vadapt.weights.load import load_weights
from vadapt.weights.tables import revert

SIZE = {"width": 8, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": (16, 24)}
STAGES = {"depths": (2, 2), "width": 4, "num_heads": (1, 2), "window": 2}


def plain(**options):
    return drawn(lambda: ViT(**SIZE, **options, rngs=nnx.Rngs(0)))


def stages():
    return drawn(lambda: Swin(**STAGES, rngs=nnx.Rngs(0)))


def images(number=1, size=(16, 24), seed=1):
    drawn = np.random.default_rng(seed).normal(size=(number, *size, 3))
    return jnp.asarray(drawn, jnp.float32)


def trained(model):
    return count(split(model).trainable)


@pytest.mark.parametrize("p", [1, 10, 50, 100])
def test_counts_are_the_published_ones(p):
    base = named("vit_base")
    assert count(split(base, "everything").trainable) == 85_798_656

    def number(**options):
        return trained(nnx.eval_shape(lambda: vpt.apply(base, num_tokens=p, **options)))

    assert number() == p * 768
    assert number(deep=True) == p * 768 * 12
    assert number(deep=True, project=64) == p * 64 * 12 + 64 * 768 + 768


def test_prompts_of_stages_have_their_widths():
    model = vpt.apply(stages(), num_tokens=3, deep=True)
    shapes = {path: v.shape for path, v in variables(model).items() if isinstance(v, Prompt)}
    assert shapes == {
        "vpt/prompts": (3, 4), "vpt/deep/0": (1, 3, 4), "vpt/deep/1": (2, 3, 8)
    }  # fmt: skip


def test_the_first_numbers_are_uniform_by_the_patches_size():
    model = vpt.apply(plain(), num_tokens=200, deep=True)
    limit = (6 / (3 * 64 + 8)) ** 0.5
    for rows in (model.vpt.prompts[...], model.vpt.deep["0"][...]):
        assert 0.98 * limit < np.abs(rows).max() <= limit
    assert len(np.unique(model.vpt.deep["0"][...])) == 2 * 200 * 8


def blocks_by_hand(model, x, rows, *, expand=True):
    """Blocks one after the other, with prompts of these blocks put where they belong."""
    tokens, number = model.embed(x), 0
    for i, block in enumerate(model.blocks):
        if i in rows:
            tokens = jnp.concatenate([tokens[:, :1], rows[i][None], tokens[:, 1 + number :]], 1)
            number = len(rows[i])
        tokens = block(tokens)
        if i == max(rows) and not expand:
            tokens, number = jnp.concatenate([tokens[:, :1], tokens[:, 1 + number :]], 1), 0
    return model.norm(jnp.concatenate([tokens[:, :1], tokens[:, 1 + number :]], 1))


OPTIONS = {
    "shallow": ({}, {0: "prompts"}),
    "deep": ({"deep": True}, {0: "prompts", 1: 0, 2: 1}),
    "first": ({"deep": True, "num_layers": 2}, {0: "prompts", 1: 0}),
    "first, alone": ({"deep": True, "num_layers": 2, "expand": False}, {0: "prompts", 1: 0}),
    "last": ({"deep": True, "num_layers": 2, "from_end": True}, {1: "prompts", 2: 0}),
    "shared": ({"deep": True, "shared": True}, {0: "prompts", 1: 0, 2: 0}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_blocks_have_the_prompts_that_options_say(name):
    options, wanted = OPTIONS[name]
    model = vpt.apply(plain(), num_tokens=2, **options)
    hook = model.vpt
    rows = {
        i: hook.prompts[...] if row == "prompts" else hook.deep["0"][row]
        for i, row in wanted.items()
    }
    assert trained(model) == 8 * 2 * len({*wanted.values()})
    expand = options.get("expand", True)
    found, expected = run(
        lambda model, x, *rows: (
            model(x), blocks_by_hand(model, x, dict(zip(wanted, rows, strict=True)), expand=expand)
        ),
        model, images(), *rows.values(),
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(found[0]) == 1 + 6  # nobody outside sees prompts


def added_by_hand(model, x, rows):
    tokens = model.embed(x).at[:, 1:].add(rows)
    for block in model.blocks:
        tokens = block(tokens)
    return model.norm(tokens)


@pytest.mark.parametrize(("location", "rows"), [("add", 6), ("add-1", 1)])
def test_prompts_are_added_to_patches(location, rows):
    model = vpt.apply(plain(), location=location)
    assert trained(model) == rows * 8
    found, expected = run(
        lambda model, x: (model(x), added_by_hand(model, x, model.vpt.prompts[...])),
        model, images(),
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run("__call__", model, images(size=(24, 24))).shape == (1, 10, 8)
    deep = vpt.apply(plain(), location=location, deep=True)
    assert trained(deep) == 3 * rows * 8


def test_a_frame_lies_around_the_shrunk_image():
    model = vpt.apply(plain(), location="pad", num_tokens=2)
    assert trained(model) == 3 * (16 * 24 - 12 * 20)
    hook = model.vpt
    seen = hook.look(jnp.ones((1, 16, 24, 3)))
    assert seen.shape == (1, 16, 24, 3)
    np.testing.assert_array_equal(seen[0, 2:-2, 2:-2], 1.0)
    np.testing.assert_array_equal(seen[0, :2], hook.rows[:2])
    np.testing.assert_array_equal(seen[0, 2:-2, -2:], hook.columns[:, 2:])
    found, expected = run(
        lambda model, plain, x: (model(x), plain(model.vpt.look(x))), model, plain(), images()
    )
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ShapeError, match="images of 16x24 pixels, and these have 24x24"):
        model(images(size=(24, 24)))


def with_channels(model, x):
    """The same through one convolution of all channels."""
    kernel = jnp.concatenate([model.patch_embed.proj.kernel[...], model.vpt.kernel[...]], axis=2)
    more = jnp.broadcast_to(model.vpt.channels[...], (*x.shape[:3], 4))
    wide = drawn(lambda: ViT(**SIZE, in_channels=7, rngs=nnx.Rngs(0)))
    state = nnx.state(model)
    del state["vpt"]
    del state["patch_embed"]["proj"]["kernel"]
    nnx.update(wide, state)
    wide.patch_embed.proj.kernel[...] = kernel
    return model(x), wide(jnp.concatenate([x, more], axis=-1))


def test_channels_below_have_patch_weights_of_their_own():
    model = vpt.apply(plain(), location="below", num_tokens=4)
    assert trained(model) == 4 * 16 * 24 + 64 * 4 * 8
    np.testing.assert_allclose(*run(with_channels, model, images()), atol=1e-5)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("create", [plain, stages])
def test_an_image_is_seen_alike_whatever_else_is_in_the_batch(create, deep):
    model = vpt.apply(create(), num_tokens=3, deep=deep)
    batch = images(3, (32, 40) if create is stages else (16, 24))
    together = run("__call__", model, batch)
    for i in range(3):
        alone = run("__call__", model, batch[i : i + 1])
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


def test_dropout_acts_in_training_alone_on_every_image_by_itself():
    model = vpt.apply(plain(), num_tokens=3, deep=True, dropout=0.5)
    x = jnp.broadcast_to(images(), (4, 16, 24, 3))
    plain_, drawn_ = run(lambda m, x, key: (m(x), m(x, key=key)), model, x, jax.random.key(0))
    np.testing.assert_array_equal(plain_[0], plain_[1])
    assert len(np.unique(np.asarray(drawn_)[:, 0, 0])) == 4


def test_a_head_may_average_prompts_too():
    model = vpt.apply(plain(), num_tokens=2)

    def heads(model, x):
        maps, outputs = model.extract(x, as_grid=True)
        patches, prompts = maps.reshape(1, 6, 8), outputs["prompts"]
        means = [patches.mean(1), prompts.mean(1), jnp.concatenate([prompts, patches], 1).mean(1)]
        found = []
        for pool in ("img_pool", "prompt_pool", "original"):
            head = label_head("linear", [8], 8, pool=pool, rngs=nnx.Rngs(0))
            head.norm, head.linear = (lambda x: x), (lambda x: x)
            found.append(System(model, head, layers=(-1,), norm=True)(x).logits)
        return means, found

    for expected, found in zip(*run(heads, model, images()), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    head = label_head("linear", [8], 2, pool="prompt_pool", rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="the backbone gives none: apply vpt"):
        System(plain(), head, layers=(-1,))(images())
    head.pool = "prompts"
    with pytest.raises(ConfigError, match="unknown pool 'prompts'; nearest"):
        System(model, head, layers=(-1,))(images())


def test_prompts_start_from_means_of_class_tokens():
    model, x = vpt.apply(plain(), num_tokens=3, deep=True), images(4)
    found = vpt.from_class_tokens(model, x, jnp.asarray([0, 2, 2, 0]))
    taps = plain().features(x, (0, 1, 2), norm=False)
    for rows, old, tokens in (
        (found.vpt.prompts[...], model.vpt.prompts[...], taps[0]),
        (found.vpt.deep["0"][1], model.vpt.deep["0"][1], taps[2]),
    ):
        np.testing.assert_allclose(rows[0], tokens[[0, 3], 0].mean(0), atol=1e-5)
        np.testing.assert_allclose(rows[2], tokens[[1, 2], 0].mean(0), atol=1e-5)
        np.testing.assert_array_equal(rows[1], old[1])  # of no image
    with pytest.raises(ConfigError, match="this Swin has no class token"):
        vpt.from_class_tokens(vpt.apply(stages()), x, jnp.zeros(4, int))
    with pytest.raises(ConfigError, match="without a projection"):
        vpt.from_class_tokens(vpt.apply(plain(), project=4), x, jnp.zeros(4, int))


def four_stages():
    sizes = {**STAGES, "depths": (2, 1, 1, 2), "num_heads": (1,) * 4}
    return drawn(lambda: Swin(**sizes, rngs=nnx.Rngs(0)))


DEEP = "deep_prompt_embeddings"


@pytest.mark.parametrize(
    ("create", "table", "names"),
    [
        (plain, VPT, {f"enc.transformer.{DEEP}", "enc.transformer.prompt_embeddings"}),
        (plain, MAE, {DEEP, "prompt_embeddings"}),
        (four_stages, SWIN, {f"{DEEP}_{i}" for i in range(4)} | {"prompt_embeddings"}),
    ],
    ids=["vpt", "mae", "swin"],
)
def test_checkpoints_names_load_and_are_written_back(create, table, names):
    model = vpt.apply(create(), num_tokens=2, deep=True)
    values = {path: np.asarray(v[...]) for path, v in variables(model).items()}
    arrays, lost = revert(values, with_prompts(table))
    assert lost == []
    assert {name for name in arrays if "prompt" in name} == names
    twin = vpt.apply(create(), num_tokens=2, deep=True, rngs=nnx.Rngs(5))
    report = load_weights(twin, arrays)
    assert (report.family, report.missing, report.unexpected) == (table.family, [], [])
    for path, value in variables(twin).items():
        np.testing.assert_array_equal(value[...], values[path], err_msg=path)


def test_a_projection_and_a_classifier_are_in_official_files():
    model = vpt.apply(plain(), num_tokens=2, project=3)
    values = {path: np.asarray(v[...]) for path, v in variables(model).items()}
    arrays, _ = revert(values, with_prompts(VPT))
    assert arrays["enc.transformer.prompt_proj.weight"].shape == (8, 3)
    report = load_weights(model, {**arrays, "head.last_layer.bias": np.ones(2)})
    assert (report.unused, report.missing) == (["head.last_layer.bias"], [])


@pytest.mark.parametrize(
    ("create", "options", "words"),
    [
        (plain, {"location": "prepnd"}, "unknown location 'prepnd'; nearest: 'prepend'"),
        (plain, {"num_layers": 2}, "of deep prompts: give deep=True"),
        (plain, {"deep": True, "num_layers": 4}, "num_layers is 4; the model has 3 blocks"),
        (plain, {"num_tokens": 0}, "num_tokens is 0"),
        (plain, {"location": "pad", "num_tokens": 8}, "frame of 8 pixels in an image of 16x24"),
        (plain, {"location": "pad", "deep": True}, r"\['deep'\] are not of prompts at 'pad'"),
        (lambda: plain(first_norm=True), {"location": "below"}, "a norm follows the patches"),
        (lambda: plain(relative_positions="each"), {}, "relative positions of this ViT"),
        (stages, {"project": 3, "deep": True}, "this model's stages have several"),
        (stages, {"location": "add"}, "for images of one size, and this Swin has none"),
        (
            lambda: ConvNeXt(depths=(1,), widths=(4,), normed=(0,), rngs=nnx.Rngs(0)), {},
            "the blocks of this ConvNeXt work on maps",
        ),
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused_by_name(create, options, words):
    with pytest.raises(ConfigError, match=words):
        vadapt.adapt(create(), "vpt", **options)


def test_backbones_on_maps_take_one_prompt_for_all_patches():
    model = SAMEncoder(**SIZE, window=2, global_blocks=[1], neck=None, rngs=nnx.Rngs(0))
    prompted = vadapt.adapt(model, "vpt", location="add-1", deep=True)
    assert trained(prompted) == 3 * 8
    found, before = run("__call__", prompted, images()), run("__call__", model, images())
    assert np.abs(found - before).max() > 1e-3
