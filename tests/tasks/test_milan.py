"""MILAN: which patches are seen, what is predicted, and that the teacher never trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.tasks.test_mae import shrunk_for_tests
from vadapt.backbones.vit import VARIANTS
from vadapt.configs import pad_milan_msip
from vadapt.errors import ConfigError
from vadapt.losses.features import cosine_distance
from vadapt.partition import Frozen, count, flatten, merge, split
from vadapt.tasks import make_task
from vadapt.tasks.milan import MILANTask, semantic_masking
from vadapt.training.step import StepOptions, init_state, make_step, single
from vadapt.weights.adapter_file import save_model
from vadapt.weights.files import read_arrays

# All parameters that PAD updates with MILAN's decoder, ViT-B/16.
UPDATED = 26_709_760


def small_config(arg="scenes", **changes):
    config = shrunk_for_tests(pad_milan_msip.get_config(arg), **changes)
    config.task.teacher_weights = ""
    return config


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """A micro ViT of two blocks instead of six: a third of the compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "micro", {**VARIANTS["micro"], "depth": 2})
        yield


@pytest.fixture(scope="module")
def task():
    return make_task(small_config())


@pytest.fixture(scope="module")
def model(task):
    return task.build()


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 1))
    return {"image": jnp.asarray(images, jnp.uint8)}


def jitted(function, model):
    graph, state = nnx.split(model)
    return jax.jit(lambda state: function(nnx.merge(graph, state)))(state)


def test_order_is_that_of_falling_importance_over_exponential_noise():
    importance = jax.random.uniform(jax.random.key(0), (4, 50))
    gumbel = jax.random.gumbel(jax.random.key(1), (4, 50))
    masking = semantic_masking(importance, gumbel, 0.6)
    exponential = np.exp(-np.asarray(gumbel, np.float64))
    order = np.argsort(-np.asarray(importance, np.float64) / exponential, axis=1)
    np.testing.assert_array_equal(jnp.argsort(masking.restore_ids, axis=1), order)
    np.testing.assert_array_equal(masking.keep_ids, order[:, :20])


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 49), (0.6, 78), (0.9, 19)])
def test_the_floor_of_the_share_is_kept_even_where_all_importance_underflows(ratio, kept):
    gumbel = jax.random.gumbel(jax.random.key(0), (2, 196))
    masking = semantic_masking(jnp.zeros((2, 196), jnp.bfloat16), gumbel, ratio)
    np.testing.assert_array_equal(masking.mask.sum(1), 196 - kept)
    # Nothing is important: which are kept is up to the noise, and no patch twice.
    assert len(set(np.asarray(masking.keep_ids[0]).tolist())) == kept
    assert set(np.asarray(masking.keep_ids[0])) != set(np.asarray(masking.keep_ids[1]))


def test_patches_are_kept_in_proportion_to_their_importance():
    importance = jnp.broadcast_to(jnp.array([[1.0, 2.0, 5.0]]), (20_000, 3))
    gumbel = jax.random.gumbel(jax.random.key(0), importance.shape)
    first = semantic_masking(importance, gumbel, 0.6).keep_ids[:, 0]
    shares = jnp.bincount(first, length=3) / 20_000
    np.testing.assert_allclose(shares, [0.125, 0.25, 0.625], atol=0.015)


@pytest.mark.parametrize(("teacher", "width"), [("clip_b16", 512), ("dino_b16", 768)])
def test_prediction_is_as_wide_as_the_teachers_features(teacher, width):
    config = small_config("base", **{"task.teacher": teacher})
    config.data.image_size = (224, 224)
    model = nnx.eval_shape(lambda: MILANTask(config).build())
    assert model.decoder.pred.kernel.shape == (512, width)
    parts = split(model, config.trainable)
    if teacher == "clip_b16":
        assert count(parts.trainable) == UPDATED
    assert set(flatten(parts.state)) == {"backbone/pos_embed", "decoder/pos_embed"}
    frozen = flatten(parts.frozen)
    assert "decoder/embed/kernel" in frozen
    assert "teacher/backbone/blocks/11/mlp/inner/fc1/kernel" in frozen


@pytest.mark.parametrize("arg", ["scenes", "scenes,full"])
def test_no_setting_trains_the_teacher(arg):
    config = small_config(arg)
    model = nnx.eval_shape(lambda: MILANTask(config).build())
    assert not any("teacher" in path for path in flatten(split(model, config.trainable).trainable))
    with pytest.raises(ConfigError, match="no parameter matches"):
        split(model, "teacher/.*")


def test_adapters_leave_the_model_as_it_was_until_they_train(task, model, batch):
    config = small_config()
    config.method = {"name": "none"}
    plain = MILANTask(config).build()

    def predict(model):
        images = task._normalised(batch["image"])
        return task._reconstruct(model, images, jax.random.key(0))[1]

    np.testing.assert_array_equal(jitted(predict, model), jitted(predict, plain))


def step_and_state(task, parts, options):
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    learners = single(task.loss, optimizer, lambda _: 1e-2)
    step = make_step(parts.graph, learners, options, seed=0)
    return step, init_state(parts, learners, options)


@pytest.fixture(scope="module")
def stepped(task, model, batch):
    """The partition, and the state after three steps."""
    parts = split(model)
    step, state = step_and_state(task, parts, StepOptions())
    step, losses = jax.jit(step), []
    for _ in range(3):
        state, metrics = step(parts.frozen, state, batch)
        losses.append(float(metrics["loss"]))
    return parts, state, losses


def matmuls(task, model, batch, **options):
    """How many matrix products a step has, as lowered."""
    parts = split(model)
    step, state = step_and_state(task, parts, StepOptions(**options))
    with jax.numpy_dtype_promotion("standard"):  # bfloat16 attention promotes its softmax
        return jax.jit(step).lower(parts.frozen, state, batch).as_text().count("dot_general")


def test_a_rematerialising_step_runs_the_student_twice_and_the_teacher_once(task, model, batch):
    student = 2 * (6 + 3) + 2 * 7  # blocks with adapters; prompting blocks
    plain = matmuls(task, model, batch)
    again = matmuls(task, model, batch, compute_dtype="bfloat16", remat="blocks")
    assert again - plain <= student


def test_training_lowers_the_loss_and_moves_only_what_it_may(stepped):
    parts, state, losses = stepped
    assert losses[-1] < losses[0] <= 4.0
    before, after = flatten(parts.trainable), flatten(state.trainable)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {"decoder/pred/kernel", "backbone/blocks/0/mlp/adapter/up/kernel"} <= moved
    assert not any("teacher" in path for path in before)


def test_the_exported_part_is_the_backbone_without_the_teacher(task, stepped, tmp_path):
    parts, state, _ = stepped
    model = merge(parts.graph, state.trainable, parts.frozen, state.variables)
    exported = split(task.export(model))
    assert all("adapter" in path or "gate" in path for path in flatten(exported.trainable))
    assert not any("teacher" in path for path in flatten(exported.frozen))
    save_model(tmp_path / "model.safetensors", model)
    names = set(read_arrays(tmp_path / "model.safetensors"))
    assert "decoder/pred/kernel" in names
    assert not any("teacher" in name for name in names)


def test_visible_tokens_carry_gradient_to_the_encoder(task, model, batch):
    def gradient(model):
        images = task._normalised(batch["image"])
        masking = task._random_masking(model, images, jax.random.key(0))
        target = jax.random.normal(jax.random.key(1), (8, 17, 96))
        visible = jnp.concatenate([jnp.ones((8, 1)), 1.0 - masking.mask], axis=1)

        def loss(latent):
            prediction = model.decoder(latent, masking.restore_ids)
            return (cosine_distance(prediction, target) * visible).sum()

        return jax.grad(loss)(model.backbone(images, keep_ids=masking.keep_ids))

    assert (jnp.abs(jitted(gradient, model)).max(axis=-1) > 0).all()


def test_the_teacher_sees_every_patch_with_the_statistics_asked_for(task, model, batch):
    images = task._normalised(batch["image"])
    assert task._for_teacher(model.teacher, images) is images
    own = MILANTask(small_config(**{"task.teacher_statistics": "teacher"}))
    seen = own._for_teacher(model.teacher, images)
    expected = (batch["image"].astype(jnp.float32) / 255.0 - 0.467) / 0.198
    np.testing.assert_allclose(seen, jnp.broadcast_to(expected, seen.shape), atol=1e-5)
    features, importance = jax.eval_shape(lambda: model.look(images))
    assert features.shape == (8, 17, 96)
    assert importance.shape == (8, 16)


def test_pixels_are_a_target_too_with_and_without_a_teachers_choice(batch):
    for semantic in (False, True):
        changes = {"task.target": "pixels", "task.semantic_masking": semantic}
        task = MILANTask(small_config(**changes))
        model = nnx.eval_shape(task.build)
        assert (model.teacher is None) == (not semantic)
        assert model.decoder.pred.kernel.shape[-1] == 8 * 8 * 3
        graph, state = nnx.split(model)

        def loss(state, task=task, graph=graph):
            return task.loss(nnx.merge(graph, state), batch, jax.random.key(0))[0]

        assert jax.eval_shape(loss, state).shape == ()
    assert "reconstruction" in task.picture_titles


def test_pictures_show_where_the_teacher_looks(task, model, batch):
    picture = task.pictures(model, {"image": np.asarray(batch["image"])})["reconstruction"]
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.target": "feature"}, "features"),
        ({"task.teacher_statistics": "own"}, "teacher"),
        ({"task.teacher": "clip_b16"}, "16 px"),
        ({"task.teacher": "clip_b61"}, "clip_b16"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        nnx.eval_shape(lambda: MILANTask(small_config(**changes)).build())


def test_a_teachers_weights_have_their_own_type(model):
    teacher = nnx.state(model.teacher, nnx.Param)
    kinds = {type(value) for _, value in nnx.to_flat_state(teacher)}
    assert kinds == {Frozen}


def test_the_papers_settings_follow_pad_msips():
    config = pad_milan_msip.get_config("large,full_layer_decay")
    assert config.optimizer.layer_decay == 0.7
    assert config.model.weights == "milan_vit_large_full.pth"
    assert config.task.teacher == "clip_b16"
    assert pad_milan_msip.get_config("scratch").model.weights == ""
