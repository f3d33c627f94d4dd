"""What tests of plans share: the settings of training, and what may travel between chips."""

import jax
import pytest
from flax import nnx

from vadapt.necks.cross_layer import CrossLevelBias
from vadapt.partition import variables
from vadapt.tasks import make_task


@pytest.fixture
def as_in_training():
    """Let bfloat16 attention promote its softmax, and take products of the default precision."""
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("default"):
        yield


def sent(found):
    """Return the bytes that a plan's step sends."""
    return sum(item["bytes"] for item in found["collectives"])


def sent_besides(config):
    """Bytes of what travels besides gradients of what trains.

    Batch norms' statistics, forward and backward; and gradients that the compiler adds up over
    chips before they are folded into what trains: of Rein's tokens and values, not of the factors
    of low rank; of CFPT's biases of every two tokens, not of the tables that they are made of.
    """
    model = nnx.eval_shape(lambda: make_task(config).build(pretrained=False))
    leaves = variables(model)
    statistics = sum(x.size for path, x in leaves.items() if path.endswith(("/mean", "/var")))
    folded = 0
    for path, table in leaves.items():
        if path.endswith("tokens_a"):
            (depth, number, _), width = table.shape, leaves[path[:-1] + "b"].shape[-1]
            folded += 2 * depth * number * width
    for _, part in nnx.iter_graph(model):
        if isinstance(part, CrossLevelBias):
            tokens = sum(window ** (1 + part.spatial) for window in part.windows)
            folded += part.table.shape[-1] * tokens**2
    return 4 * (2 * statistics + folded)


def assert_adapters_promise(found, config):
    """The step fits, and no more travels between chips than gradients of what trains."""
    assert found["fits"]
    # Parts of a gradient that add up to one may be added over chips first: two hundredths more.
    assert sent(found) <= 1.02 * found["trainable_bytes"] + sent_besides(config) + 1024
