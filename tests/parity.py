"""Checks vadapt against golden files: `python -m tests.parity [FILE.npz ...]`.

A golden file holds what an original implementation computed: parameters under the official
checkpoint's names, inputs, outputs, cotangents and gradients. This runner builds the vadapt module
that the file names, imports the parameters with vadapt's own importer, and compares outputs and
gradients; it knows no expected value. A case also fails if its builder leaves a field of its config
unread. Without arguments it checks every file in tests/goldens.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden_modules import TOPICS
from tests.golden_modules.fields import Fields
from tests.golden_modules.programs import split_floats

GOLDENS = Path(__file__).parent / "goldens"
# One file of builders a topic, in tests/golden_modules (<system>.py, or TOPICS says); its MODULES:
# module name -> function of (config, params, inputs) -> outputs, differentiable in the last two
# (whole numbers are known while it is traced, so that shapes may depend on them).
# Besides the file's fields, a config has "out_shapes", the shapes of the outputs by name: a size
# that an image is brought back to may stand nowhere else.
# Where a file's notes exclude numbers, COUNTS: module name -> function of (output's name, or a
# gradient's, such as "grad/loss/in/x", and expected array) -> which of its numbers count.
# Where a module makes parameters of its inputs, so that a file has their gradients alone, MADE:
# module name -> function of (config, inputs) -> these parameters.
Arrays = dict[str, Any]
Sides = dict[str, Arrays]
SIDES = ("param", "in")
Builder = Callable[[Fields, Arrays, Arrays], Arrays]
Counts = Callable[[str, np.ndarray], np.ndarray]
Made = Callable[[Fields, Arrays], Arrays]


@dataclass
class Golden:
    """One golden file, taken apart."""

    path: Path
    meta: dict[str, Any]
    groups: dict[str, Arrays] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Golden:
        with np.load(path, allow_pickle=False) as file:
            golden = cls(Path(path), json.loads(str(file["meta"])))
            for key in file.files:
                if key == "meta":
                    continue
                group, name = key.split("/", 1)
                if group == "grad":
                    side, name = name.split("/", 1)
                    group = f"grad/{side}"
                    if side not in SIDES:  # of one output alone; without a side, by an input
                        first, _, rest = name.partition("/")
                        side, name = (first, rest) if first in SIDES else ("in", name)
                        group = f"{group}/{side}"
                golden.groups.setdefault(group, {})[name] = file[key]
        return golden

    def __getitem__(self, group: str) -> Arrays:
        return self.groups.get(group, {})


@dataclass
class Verdict:
    """How a case went: the largest error in units of the tolerance, and what failed."""

    name: str
    error: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return not self.why and self.error <= 1.0

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name:<40} error/tolerance {self.error:9.3g}  {self.why}".rstrip()


def check(path: str | Path) -> Verdict:
    """Runs one golden file."""
    try:
        golden = Golden.read(path)
    except Exception as error:
        return Verdict(str(path), float("nan"), f"cannot be read: {error!r}")
    name = f"{golden.meta['system']}/{golden.meta['case']}"
    config = Fields(golden.meta["config"])
    try:
        found = find_builder(golden.meta["system"], golden.meta["module"])
        error, where = max(_compare(golden, config, *found), default=(0.0, ""))
    except Exception as failure:
        return Verdict(name, float("nan"), f"{type(failure).__name__}: {failure}")
    reasons = [] if error <= 1.0 else [f"worst at {where}"]
    if unread := config.unread():
        reasons.append(f"unread in config: {', '.join(unread)}")
    return Verdict(name, error, "; ".join(reasons))


def find_builder(system: str, module: str) -> tuple[Builder, Counts, Made]:
    """The functions that build a named module, choose what counts, and make lacking parameters."""
    try:
        topic = TOPICS.get(system, system)
        cases = importlib.import_module(f"tests.golden_modules.{topic}")
    except ModuleNotFoundError as error:
        raise LookupError(f"unknown system {system!r}") from error
    if module not in cases.MODULES:
        known = sorted(cases.MODULES)
        raise LookupError(f"unknown module {module!r} of {system!r}; known: {known}")
    counts = getattr(cases, "COUNTS", {}).get(
        module, lambda name, array: np.ones(array.shape, bool)
    )
    made = getattr(cases, "MADE", {}).get(module, lambda config, inputs: {})
    return cases.MODULES[module], counts, made


def _compare(
    golden: Golden, config: Fields, builder: Builder, counts: Counts, made: Made
) -> Iterable[tuple[float, str]]:
    shapes = {name: np.shape(expected) for name, expected in golden["out"].items()}
    meta, config = golden.meta, config | {"out_shapes": shapes}
    rtol, atol = meta["rtol"], meta["atol"]
    params, inputs = _to_jax(golden["param"]), _to_jax(golden["in"] | _inside(golden))
    params = {**made(config, inputs), **params}

    def run(params: Arrays, inputs: Arrays) -> Arrays:
        return builder(config, params, inputs)

    # Gradients without cotangents are those of a total.
    cotangents = golden["cot"] or ({"total": 1.0} if golden["grad/param"] else _alone(golden))
    floats, rest = split_floats({"param": params, "in": inputs})
    # Gradients that no file expects would be most of many programs.
    wanted, held = _split_wanted(floats, golden)

    def loss(wanted: Sides, held: Sides, cotangents: Arrays) -> tuple[Any, Arrays]:
        outputs = run(*({**wanted[side], **held[side], **rest[side]} for side in SIDES))
        terms = [jnp.sum(outputs[name] * cot) for name, cot in cotangents.items()]
        return sum(terms, jnp.zeros(())), outputs

    program = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def gradients(cotangents: Arrays) -> Any:
        (_, outputs), grads = program(wanted, held, cotangents)
        return outputs, grads

    outputs, grads = gradients(cotangents) if cotangents else (run(params, inputs), {})
    for name, expected in golden["out"].items():
        if name not in outputs:
            raise LookupError(f"the module gives no output {name!r}")
        found = _thinned(np.asarray(outputs[name]), expected, meta)
        matters = counts(name, expected)
        if found.shape == expected.shape and not matters.all():
            found, expected = found[matters], expected[matters]
        yield _error(found, expected, rtol, _stated(name, meta, atol)), f"out/{name}"
    rtol, atol = meta.get("grad_rtol", rtol), meta.get("grad_atol", atol)
    every = {"grad": grads}
    for name, cotangent in cotangents.items():
        if any(golden[f"grad/{name}/{side}"] for side in SIDES):
            alone = {key: np.zeros_like(cot) for key, cot in cotangents.items()}
            every[f"grad/{name}"] = gradients({**alone, name: cotangent})[1]
    for group, grads in every.items():
        for side in SIDES:
            for name, expected in golden[f"{group}/{side}"].items():
                found = grads[side][_input_name(name, expected, grads[side])]
                found = _thinned(np.asarray(found), expected, meta)
                scale, name = _gradient_scale(expected, meta), f"{group}/{side}/{name}"
                matters = counts(name, expected)
                if found.shape == expected.shape and not matters.all():
                    found, expected = found[matters], expected[matters]
                yield _error(found, expected, rtol, atol * scale), name


def _alone(golden: Golden) -> Arrays:
    """Cotangents of the numbers of which a file gives gradients, one by one."""
    return {name: 1.0 for name in golden["out"] if golden[f"grad/{name}/in"]}


def _inside(golden: Golden) -> Arrays:
    """Zeros for outputs whose gradients a file gives: what a builder adds where they arise."""
    wanted = {
        name
        for group, arrays in golden.groups.items()
        if group.startswith("grad") and group.endswith("/in")
        for name in arrays
    }
    inside = (wanted & golden["out"].keys()) - golden["in"].keys()
    return {name: np.zeros_like(golden["out"][name]) for name in inside}


def _thinned(found: np.ndarray, expected: np.ndarray, meta: dict[str, Any]) -> np.ndarray:
    """Every k-th row or channel, where a file keeps these alone of a large array and says so."""
    if "thinned" not in meta.get("notes", "") or found.ndim != expected.ndim or not expected.size:
        return found
    steps = (-(-size // kept) for size, kept in zip(found.shape, expected.shape, strict=True))
    return found[tuple(slice(None, None, max(step, 1)) for step in steps)]


def _gradient_scale(expected: np.ndarray, meta: dict[str, Any]) -> float:
    """The largest number of a gradient, but at least 1, where a file's check says so of `atol`."""
    scaled = "atol * max(1, max|golden gradient|)" in meta.get("grad_check", "")
    return max(1.0, float(np.abs(expected).max(initial=0.0))) if scaled else 1.0


def _stated(name: str, meta: dict[str, Any], atol: float) -> float:
    """The tolerance of an output, where a file's notes give it one of its own."""
    found = re.search(rf"out/{name} [^.;]*check at atol ([\d.e-]*\d)", meta.get("notes", ""))
    return float(found[1]) if found else atol


def _input_name(name: str, expected: np.ndarray, grads: Arrays) -> str:
    """Some files give the gradient of their one image as `x`, whatever the input is called."""
    alike = [key for key, grad in grads.items() if grad.shape == expected.shape]
    return alike[0] if name == "x" and name not in grads and len(alike) == 1 else name


def _to_jax(arrays: Arrays) -> Arrays:
    return {
        name: jnp.asarray(value) if value.dtype.kind in "fiub" else value
        for name, value in arrays.items()
    }


def _split_wanted(floats: Sides, golden: Golden) -> tuple[Sides, Sides]:
    """The arrays of which a file gives gradients, and the others."""
    names: dict[str, set[str]] = {side: set() for side in SIDES}
    for group, expected in golden.groups.items():
        side = group.rpartition("/")[2]
        if group.startswith("grad/"):
            names[side] |= {_input_name(name, x, floats[side]) for name, x in expected.items()}
    return (
        {side: {k: v for k, v in floats[side].items() if k in names[side]} for side in SIDES},
        {side: {k: v for k, v in floats[side].items() if k not in names[side]} for side in SIDES},
    )


def _error(found: Any, expected: np.ndarray, rtol: float, atol: float) -> float:
    found = np.asarray(found)
    if found.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "SU" or (expected.dtype.kind in "iub" and found.dtype.kind in "iub"):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isnan(found), np.isnan(expected)):
        return float("inf")
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = np.where(found == expected, 0.0, np.abs(found - expected))
    wrong = difference > 0  # no error is none, also where the tolerance is zero
    tolerance = (atol + rtol * np.abs(expected))[wrong]
    with np.errstate(divide="ignore"):
        return float(np.nanmax(difference[wrong] / tolerance, initial=0.0))


def main(arguments: list[str]) -> int:
    """Prints one line a case; 1 if any fails or is unknown."""
    jax.config.update("jax_default_matmul_precision", "highest")
    paths = arguments or sorted(str(path) for path in GOLDENS.rglob("*.npz"))
    verdicts = []
    for path in paths:
        verdicts.append(check(path))
        print(verdicts[-1], flush=True)
    failed = sum(not verdict.passed for verdict in verdicts)
    print(f"{len(verdicts) - failed} passed, {failed} failed")
    return 1 if failed or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
