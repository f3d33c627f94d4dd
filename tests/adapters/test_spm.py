"""SPM: counts, invariants, a closed form; the twelve checks of its acceptance by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vadapt
from tests.adapters.spm_models import (
    CLASSES,
    SMALL,
    TAPS,
    TOLERANCE,
    TRUNKS,
    Segmenter,
    call,
    draw,
    matched,
    matcher,
    randomised,
    run,
    trained,
    two_tasks,
)
from tests.adapters.textures import textures
from vadapt.adapters import spm
from vadapt.backbones.convnext import ConvNeXt
from vadapt.metrics.segmentation import confusion_matrix, mean_iou
from vadapt.nn.resize import resize_bilinear
from vadapt.nn.tokens import Tokens
from vadapt.partition import Adapter, count, flatten, merge, split, variables
from vadapt.remat import rematerialise
from vadapt.weights.adapter_file import read_info
from vadapt.weights.load import with_arrays


def matches(model, features):
    """What a matcher gives."""
    return run(call, model, features)


# Check 1: counts.

WIDTHS = {
    "resnet50": ((256, 512, 1024), (128_441, 267_321, 153_986, 318_018)),
    "swin_base": ((128, 256, 512), (70_201, 151_737, 95_746, 202_434)),
    "convnext_large": ((192, 384, 768), (99_321, 209_529, 124_866, 260_226)),
    "vit_base": ((768,) * 3, (161_721, 333_369, 187_266, 384_066)),
    "vit_large": ((1024,) * 3, (211_641, 432_441, 237_186, 483_138)),
}
ONE = {256: 61_974, 512: 94_998, 1024: 161_046, 768: 128_022, 128: 45_462}


def number(widths, num_classes, hidden, **options):
    places = range(len(widths))
    options = {"num_classes": num_classes, "hidden": hidden, **options}

    def build():
        return spm.SPM(places, widths, len(widths), **options, rngs=nnx.Rngs(0))

    shapes = nnx.eval_shape(build)
    assert all(isinstance(value, Adapter) for value in variables(shapes).values())
    return count(nnx.to_pure_dict(nnx.state(shapes)))


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("column", range(4))
def test_check_1_counts_are_those_of_the_table(name, column):
    widths, counts = WIDTHS[name]
    num_classes, hidden = ((19, 32), (19, 64), (150, 32), (150, 64))[column]
    for steps in range(6) if name == "vit_base" else (3,):
        assert number(widths, num_classes, hidden, steps=steps) == counts[column]


@pytest.mark.parametrize("width", ONE)
def test_check_1_counts_of_one_boundary(width):
    assert number([width], 150, 64) == ONE[width]


def test_check_1_sharing_saves_two_boundaries_of_semantics():
    saved = 2 * (2 * 150 * 64 + 150)
    assert number((768,) * 3, 150, 64, share_sem=True) == 384_066 - saved


@pytest.mark.parametrize(
    ("name", "expected"), [("dinov2_large", 483_138), ("convnext_large", 260_226)]
)
def test_check_1_grafts_of_named_backbones_have_these_counts(name, expected):
    def build():
        return vadapt.adapt(vadapt.create(name, image_size=64), "spm", num_classes=150)

    assert count(split(nnx.eval_shape(build)).trainable) == expected


# Check 2: identity at the start.


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_check_2_a_fresh_matcher_changes_nothing(steps):
    rngs = nnx.Rngs(0)
    fresh = spm.Matcher(5, spm.Semantics(6, CLASSES, rngs=rngs), steps=steps, rngs=rngs)
    features = draw(2, 5, 7, 5)
    match = run(call, fresh, features)
    np.testing.assert_array_equal(match.output, features)
    assert len(match.logits) == steps


EVERYWHERE = {"after_stem": True, "after_last": True, "carry": True}


@pytest.mark.parametrize(
    ("name", "options"), [("vit", {}), *((name, EVERYWHERE) for name in TRUNKS)]
)
def test_check_2_a_fresh_graft_is_the_frozen_trunk_bit_for_bit(name, options, trunks, images):
    trunk = trunks[name]
    fresh = vadapt.adapt(trunk, "spm", **SMALL, **options)
    assert not trunk.hooks
    assert set(flatten(split(fresh).frozen)) == set(flatten(split(trunk).frozen))
    (maps, logits), last = run(matched_and_called, fresh, images)
    expected, plainly = run(seen_and_called, trunk, images, name=name)
    for one, other in zip((*maps, last), (*expected, plainly), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(logits) == 2 * len(fresh.between.places)


def matched_and_called(model, images):
    return matched(model, images), model(images)


def seen_and_called(trunk, images, name):
    return trunk.features(images, TAPS[name], as_grid=True), trunk(images)


# Check 3: the trunk stays frozen.


def test_check_3_training_leaves_every_array_of_the_trunk_and_changes_all_others(trunks, images):
    trunk = vadapt.adapt(trunks["resnet"], "spm", **{**SMALL, "steps": 1})
    model = Segmenter(trunk, trunk.widths, CLASSES)
    parts = split(model)
    before = {path: value[...].tobytes() for path, value in variables(model).items()}
    labels = jax.random.randint(jax.random.key(0), (2, 32, 48), 0, CLASSES)
    tree = trained(parts, [(images, labels)], steps=20)
    after = variables(merge(parts.graph, tree, parts.frozen, parts.state))
    changed = {path for path, value in after.items() if value[...].tobytes() != before[path]}
    assert changed == set(flatten(parts.trainable))
    assert any(path.endswith("/mean") for path in before)  # of batch norms


# Check 4: gradients reach the first matcher, and not what is detached.


def gradients(name, trunks, images, **options):
    """Of the head's loss on the last map alone, and of the semantic loss."""
    options = {**SMALL, "steps": 1, **options}
    parts = split(randomised(vadapt.adapt(trunks[name], "spm", **options)))
    labels = jax.random.randint(jax.random.key(0), (2, 32, 48), 0, CLASSES)

    def losses(trainable):
        model = merge(parts.graph, trainable, parts.frozen, parts.state)
        maps, logits = matched(model, images)
        return jnp.square(maps[-1]).mean(), spm.semantic_loss(logits, labels)

    @jax.jit
    def both(trainable):
        (head, semantic), back = jax.vjp(losses, trainable)
        one, zero = jnp.ones_like(head), jnp.zeros_like(semantic)
        return back((one, zero))[0], back((zero, one))[0]

    return [flatten(tree) for tree in both(parts.trainable)]


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_check_4_gradients_cross_the_frozen_stages(name, trunks, images):
    head, _ = gradients(name, trunks, images)
    for path, gradient in head.items():
        assert bool(jnp.any(gradient)), path


@pytest.mark.parametrize("options", [{}, {"guidance": "logits", "carry": True, "share_sem": True}])
def test_check_4_detached_maps_take_no_gradient_of_the_head(options, trunks, images):
    head, semantic = gradients("convnext", trunks, images, detach_map=True, **options)
    classifiers = [path for path in head if "/classify/" in path]
    assert classifiers
    for path in classifiers:
        assert not bool(jnp.any(head[path])), path
        assert bool(jnp.any(semantic[path])), path


def test_check_4_rematerialised_gradients_are_the_same(trunks, images):
    kept = gradients("vit", trunks, images, carry=True)
    with rematerialise("blocks"):
        again = gradients("vit", trunks, images, carry=True)
    for one, other in zip(kept, again, strict=True):
        for path, gradient in one.items():
            scale = float(jnp.abs(gradient).max())
            np.testing.assert_allclose(other[path], gradient, atol=1e-5 * scale, err_msg=path)


def test_check_5_maps_sum_to_one_and_equal_logits_give_the_mean_embedding():
    model = matcher()
    logits = draw(2, 4, 3, CLASSES)
    np.testing.assert_allclose(model.guide(logits).sum(-1), 1.0, atol=1e-6)
    mean = model.semantics.embed.kernel[...].mean(axis=0)
    embedded = model.embed(model.guide(jnp.full((2, 4, 3, CLASSES), 0.7)), (4, 3))
    np.testing.assert_allclose(embedded, np.broadcast_to(mean, embedded.shape), **TOLERANCE)
    one_hot = jnp.broadcast_to(jnp.eye(CLASSES)[1], (1, 2, 2, CLASSES))
    embedded = model.embed(one_hot, (2, 2))
    row = model.semantics.embed.kernel[1]
    np.testing.assert_allclose(embedded, np.broadcast_to(row, embedded.shape), **TOLERANCE)


def test_check_5_without_guidance_nothing_depends_on_semantics():
    model, features = matcher(guidance="none"), draw(2, 4, 3, 5)
    semantic = [path for path in variables(model) if path.startswith("semantics/")]
    assert len(semantic) == 3
    other = with_arrays(model, {path: draw(*variables(model)[path].shape) for path in semantic})
    np.testing.assert_array_equal(matches(model, features).output, matches(other, features).output)
    assert (
        jnp.abs(matches(model, features).logits[0] - matches(other, features).logits[0]).max()
        > 1e-2
    )
    soft = matches(matcher(guidance="soft"), features).output
    assert jnp.abs(matches(model, features).output - soft).max() > 1e-3


@pytest.mark.parametrize("guidance", spm.GUIDANCES)
def test_check_6_steps_are_calls_of_one_step_unrolled_or_scanned(guidance):
    model, features = matcher(steps=4, guidance=guidance), draw(1, 5, 4, 5)
    match, x = model(features), model.reduce(features)
    prompt = jnp.zeros_like(x)
    for expected in match.logits:
        prompt, logits, guide = model.step(x, prompt)
        np.testing.assert_allclose(logits, expected, **TOLERANCE)
    np.testing.assert_allclose(match.guide, guide, **TOLERANCE)
    np.testing.assert_allclose(match.output, features + model.output(prompt), **TOLERANCE)

    @jax.checkpoint
    def body(prompt, _):
        return model.step(x, prompt).prompt, None

    scanned, _ = jax.lax.scan(body, jnp.zeros_like(x), None, length=4)
    np.testing.assert_allclose(scanned, prompt, **TOLERANCE)


def test_check_6_without_updates_only_the_bias_is_left_at_any_number_of_steps():
    features = draw(1, 5, 4, 5)
    for steps in (0, 1, 3):
        model = matcher(steps=steps)
        zero = {path: jnp.zeros_like(variables(model)[path][...]) for path in UPDATE}
        output = matches(with_arrays(model, zero), features).output
        bias = np.broadcast_to(model.output.bias[...], features.shape)
        np.testing.assert_allclose(output, features + bias, **TOLERANCE)
    match = matches(matcher(steps=0), features)
    assert (match.logits, match.guide) == ((), None)
    np.testing.assert_array_equal(match.output, features + bias)


UPDATE = ("update/kernel", "update/bias")

# Check 7: relabelling.


@pytest.mark.parametrize("guidance", spm.GUIDANCES)
def test_check_7_the_order_of_classes_only_orders_the_logits(guidance):
    model, features = matcher(classes=5, guidance=guidance), draw(2, 4, 3, 5)
    order = np.array([3, 0, 4, 1, 2])
    kernel, bias, embedding = (
        variables(model)[f"semantics/{name}"][...]
        for name in ("classify/kernel", "classify/bias", "embed/kernel")
    )
    permuted = with_arrays(
        model,
        {
            "semantics/classify/kernel": kernel[:, order],
            "semantics/classify/bias": bias[order],
            "semantics/embed/kernel": embedding[order],
        },
    )
    found, expected = matches(permuted, features), matches(model, features)
    np.testing.assert_allclose(found.output, expected.output, **TOLERANCE)
    for one, other in zip(found.logits, expected.logits, strict=True):
        np.testing.assert_allclose(one, other[..., order], **TOLERANCE)


# Check 8: shapes and tokens.


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 7), (1, 1, 3), (3, 4, 2)])
@pytest.mark.parametrize("sem_stride", [1, 2, 3])
def test_check_8_maps_of_any_size_keep_their_shape(shape, sem_stride):
    match = matches(matcher(sem_stride=sem_stride), draw(*shape, 5))
    assert match.output.shape == (*shape, 5)
    rows, columns = (-(-side // sem_stride) for side in shape[1:])
    assert match.logits[-1].shape == (shape[0], rows, columns, CLASSES)


def test_check_8_class_token_and_registers_pass_and_patches_are_row_major(trunks, images):
    model = randomised(vadapt.adapt(trunks["vit"], "spm", **SMALL))
    tokens = Tokens(draw(2, 3 + 4 * 6, 8), num_special=3, grid=(4, 6))
    onward, _ = model.between.after(1, tokens, model.between.start(images))
    np.testing.assert_array_equal(onward.special, tokens.special)
    expected = model.between.matchers[0](tokens.map).output.reshape(2, 24, 8)
    np.testing.assert_array_equal(onward.patches, expected)
    assert jnp.abs(onward.patches - tokens.patches).min() > 0


# Check 9: locality.


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_check_9_a_pixel_reaches_as_far_as_there_are_steps(steps):
    model, features = matcher(steps=steps), draw(1, 11, 12, 5)
    before, after = (matches(model, x).output for x in (features, features.at[0, 5, 4].add(1.0)))
    rows, columns = np.indices((11, 12))
    near = np.maximum(abs(rows - 5), abs(columns - 4)) <= steps
    changed = np.abs(after - before).max(axis=-1)[0] > 0
    np.testing.assert_array_equal(changed, near)


def test_check_9_a_shifted_input_gives_a_shifted_output():
    steps, whole = 2, draw(1, 13, 14, 5)
    model = matcher(steps=steps)
    one, other = (matches(model, x).output for x in (whole[:, :11, :11], whole[:, 2:, 3:]))
    inner = slice(steps, -steps)
    np.testing.assert_allclose(
        one[:, 2:, 3:][:, inner, inner], other[:, :9, :8][:, inner, inner], **TOLERANCE
    )


# Check 10: a closed form.


def test_check_10_one_pixel_by_hand():
    model = matcher(width=1, classes=1, hidden=1, steps=1)
    values = {path: jnp.zeros_like(value[...]) for path, value in variables(model).items()}
    values["reduce/kernel"] = jnp.full((1, 1), 2.0)
    values["semantics/classify/kernel"] = jnp.full((1, 1), 3.0)  # of no effect
    values["semantics/embed/kernel"] = jnp.full((1, 1), 0.5)
    values["mix/kernel"] = jnp.zeros((3, 3, 1, 2)).at[1, 1, 0].set(jnp.array([1.0, 2.0]))
    values["update/kernel"] = jnp.array([[0.3], [-0.4]])
    values["output/kernel"] = jnp.full((1, 1), 0.5)
    output = matches(with_arrays(model, values), jnp.ones((1, 1, 1, 1))).output
    np.testing.assert_allclose(output, 1.1249060, rtol=1e-6)


# Check 11: it learns.


def learned(seed, method, steps=30):
    """Mean IoU on new textures after training on others; random frozen stages."""
    rng, widths = np.random.default_rng(seed), (16, 24)
    trunk = ConvNeXt(
        depths=(1, 1),
        widths=widths,
        normed=(0, 1),
        layer_scale=1.0,
        rngs=nnx.Rngs(seed),
    )
    if method:
        options = {"num_classes": 4, "hidden": 16, "rngs": nnx.Rngs(seed)}
        trunk = vadapt.adapt(trunk, "spm", **options)
    parts = split(Segmenter(trunk, widths, 4, seed=seed))
    tree = trained(parts, [textures(rng, 16) for _ in range(4)], steps=steps)
    images, labels = textures(rng, 32)
    scores = run(call, merge(parts.graph, tree, parts.frozen, parts.state), images)
    prediction = resize_bilinear(scores, labels.shape[1:]).argmax(axis=-1)
    return mean_iou(np.asarray(confusion_matrix(prediction, labels, 4)))


def test_check_11_it_learns_more_than_its_head_alone():
    for seed in range(3):
        alone, matched = learned(seed, method=False), learned(seed, method=True)
        print(f"seed {seed}: {alone:.3f} alone, {matched:.3f} matched")
        assert matched > alone + 0.05, (seed, alone, matched)


def test_check_12_packages_are_swapped_without_compiling_again(images, tmp_path):
    tasks = two_tasks()
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path, model in zip(paths, tasks, strict=True):
        vadapt.save_adapter(path, model, backbone="resnet", classes=["sky", "road", path.stem])
    assert read_info(paths[1]).classes == ("sky", "road", "b")
    assert dict(read_info(paths[1]).methods[0]) == {"name": "spm", **SMALL}
    resident = nnx.clone(tasks[0])
    parts = split(resident)
    traced = []

    @jax.jit
    def resident_call(package, frozen, state, images):
        traced.append(1)
        return merge(parts.graph, package, frozen, state)(images)

    outputs = []
    for path in (paths[0], paths[1], paths[0]):
        vadapt.load_adapter(resident, path)
        package = split(resident).trainable
        outputs.append(np.asarray(resident_call(package, parts.frozen, parts.state, images)))
    assert len(traced) == resident_call._cache_size() == 1
    assert outputs[0].tobytes() == outputs[2].tobytes()
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2
    for model, output in zip(tasks, outputs, strict=False):
        np.testing.assert_array_equal(run(call, model, images), output)
