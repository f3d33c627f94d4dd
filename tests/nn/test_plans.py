import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from tests.nn.test_trunk import Affine, plain
from vadapt.errors import ConfigError
from vadapt.nn import plans
from vadapt.nn.plans import Parallel, read, spell
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import run_blocks

numbers = st.integers(0, 11)
steps = st.one_of(
    numbers,
    st.builds(
        Parallel,
        st.lists(numbers, min_size=1, max_size=4).map(tuple),
        st.integers(1, 4),
        st.sampled_from([None, 1.0, 0.25, 1e-5]),
    ),
)


@given(st.lists(steps, max_size=14).map(tuple))
def test_what_is_spelled_is_read(plan):
    assert read(spell(plan), 12) == plan


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("0-3, (4-6)x3, 7", (0, 1, 2, 3, Parallel((4, 5, 6), 3), 7)),
        ("3-1,(0,2)*0.5", (3, 2, 1, Parallel((0, 2), 1, 0.5))),
        ("skip:2", (0, 1, 2, 6, 7)),
        ("loop_parallel:2,2", (0, 1, 2, Parallel((3, 4, 5), 2), 6, 7)),
        ("pairs:1", (0, 1, Parallel((2, 3), 1, 1.0), Parallel((4, 5), 1, 1.0), 6, 7)),
    ],
)
def test_plans_are_read_as_people_write_them(text, plan):
    assert read(text, 8) == plan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-8", r"blocks \[8\] in the plan of a model of 8"),
        ("0,,1", "cannot be read; write blocks, ranges and groups"),
        ("(0,1", "cannot be read"),
        ("(0,1)x0", "at least one loop"),
        ("skip", "cannot be read"),
        ("skip:4", "start 4 of the middle of 8 blocks; it may be 0 to 3"),
        ("switch:7", r"blocks \[8\]"),
        ("skip_one:9", r"blocks \[9\]"),
        ("0-99999999999", r"blocks \[99999999999\]"),
        ("(0-7)x101", "runs 808 blocks of a model of 8; at most 800"),
        ("loop_parallel:2,999999999", "at most 800"),
    ],
)
def test_what_is_no_plan_is_refused_in_one_line(text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        read(text, 8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("depth", [5, 12])
def test_a_middle_of_one_block_or_none_changes_nothing(depth):
    start = (depth - 1) // 2
    whole = plans.baseline(depth)
    assert plans.reverse(depth, start) == plans.random(depth, start, 3) == whole
    if depth % 2 == 0:
        assert plans.middle_repeat(depth, start) == whole
    switched = np.asarray(plans.switch(depth, 2))
    assert tuple(switched[switched]) == whole


def test_depth_and_evaluations_are_those_of_the_paper():
    """Source: the worked example of 12 layers, of which 5 are in the middle."""
    for plan, longest, evaluations in [
        (plans.skip(12, 3), 7, 7),
        (plans.parallel(12, 3), 8, 12),
        (plans.loop_parallel(12, 3), 10, 22),
        (plans.middle_repeat(12, 3), 12, 12),
    ]:
        assert (plans.longest(plan), plans.evaluations(plan)) == (longest, evaluations)


def test_groups_run_as_one_and_as_their_blocks_do_alone():
    model = plain(depth=4)
    x = Tokens(jax.random.normal(jax.random.key(1), (2, 5, model.width)), 1)
    each = [block(x.array) - x.array for block in model.blocks[1:3]]
    for scale, factor in [(None, 0.5), (1.0, 1.0), (0.25, 0.25)]:
        plan = (Parallel((1, 2), 1, scale),)
        found = run_blocks(model.blocks, x, plan=plan).x.array
        np.testing.assert_allclose(found, x.array + factor * sum(each), atol=1e-5)

    def products(blocks):
        graph, state = nnx.split(nnx.List(blocks))
        run = lambda s: run_blocks(nnx.merge(graph, s), x, plan=(Parallel((0, 1, 2)),)).x.array  # noqa: E731
        return jax.jit(run).lower(state).as_text().count("dot_general")

    assert products(list(model.blocks)) == 6


def test_gradients_of_blocks_add_up_over_repeats_and_are_zero_where_none_runs():
    blocks = nnx.List([Affine(factor) for factor in (2, 3, 4)])
    x = Tokens(jnp.ones((1, 1, 1)))

    def loss(blocks):
        return run_blocks(blocks, x, plan=(0, Parallel((0, 1)))).x.array.sum()

    # Of ((a (a + 1) + 1) + (b (a + 1) + 1)) / 2 at a = 2, b = 3.
    grads = nnx.grad(loss)(blocks)
    assert [float(grads[i].factor[...]) for i in range(3)] == [(2 * 2 + 1 + 3) / 2, 1.5, 0]
