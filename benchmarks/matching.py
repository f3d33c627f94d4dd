"""Matching queries with classes: optax's Hungarian algorithm on the device beside SciPy's.

    python benchmarks/matching.py

As Mask2Former's loss has it: 4 images of 10 predictions, 100 queries, 19 classes. The host's time
leaves out the transfers that an accelerator would wait for.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from vadapt.losses.mask2former import match


def draw(kind, rng, shape):
    """Costs: independent; or of queries that all want the same classes, which is harder."""
    costs = rng.normal(size=shape)
    if kind == "contended":
        costs = 0.05 * costs + rng.normal(size=(*shape[:-1], 1))
    return costs.astype(np.float32)


def timed(function, repeats):
    """The result and the least seconds of a few calls: others may be at work here."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def scipy_match(costs, present):
    """The least sum of every problem's costs."""
    sums = []
    for cost, there in zip(costs, present, strict=True):
        cost = cost[:, there].astype(np.float64)
        sums.append(cost[linear_sum_assignment(cost)].sum())
    return np.array(sums)


def main():
    """Prints a line a kind of costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=40)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=19)
    options = parser.parse_args()
    shape = (options.problems, options.queries, options.classes)
    print("{} problems of {} queries and {} classes, on {}".format(*shape, jax.devices()[0]))
    print(
        f"{'costs':>12}{'classes there':>15}{'optax':>10}{'SciPy':>10}  largest difference of sums"
    )
    for kind in ("independent", "contended"):
        for share in (1.0, 0.5):
            rng = np.random.default_rng(0)
            costs = draw(kind, rng, shape)
            present = rng.random((shape[0], shape[2])) < share
            run = jax.jit(match)
            arrays = jnp.asarray(costs), jnp.asarray(present)
            run(*arrays)  # compiles
            found, fast = timed(lambda run=run, arrays=arrays: run(*arrays), 10)
            sums, slow = timed(lambda c=costs, p=present: scipy_match(c, p), 10)
            taken = np.take_along_axis(costs, np.asarray(found)[:, None], axis=1)[:, 0]
            ours = np.where(present, taken.astype(np.float64), 0.0).sum(-1)
            worst = np.abs(ours - sums).max()
            print(
                f"{kind:>12}{share:15.0%}{fast * 1e3:8.2f}ms{slow * 1e3:8.2f}ms  {worst:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
