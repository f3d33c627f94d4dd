"""What an install brings: few packages, the shipped assets, one version."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import vadapt

ROOT = Path(__file__).parent.parent
MAX_PACKAGES = 45  # in a fresh environment, pip and setuptools among them
MAX_ASSET_BYTES = 3 * 2**20


def requirements(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Direct requirements of an installed package under this Python, by normalised name."""
    from packaging.requirements import Requirement

    found = set()
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in (*extras, "")]
        marker = requirement.marker
        if marker is None or any(marker.evaluate(environment) for environment in environments):
            found.add((requirement.name, tuple(requirement.extras)))
    return found


def test_a_fresh_install_is_small():
    todo, done = {("vadapt", ())}, {"pip", "setuptools"}
    while todo:
        name, extras = todo.pop()
        normal = re.sub(r"[-_.]+", "-", name).lower()
        if normal in done and not extras:
            continue
        done.add(normal)
        try:
            more = requirements(name, extras)
        except PackageNotFoundError:
            continue  # for another platform
        todo |= {item for item in more if re.sub(r"[-_.]+", "-", item[0]).lower() not in done}
    assert len(done) <= MAX_PACKAGES, sorted(done)
    assert {"jax", "flax", "optax", "grain", "orbax-checkpoint"} <= done
    assert not {"torch", "tensorflow", "tensorflow-datasets", "transformers"} & done


def test_shipped_weights_are_small():
    assets = list((ROOT / "vadapt" / "assets").glob("*.safetensors"))
    assert assets
    assert all(path.stat().st_size <= MAX_ASSET_BYTES for path in assets)


def test_the_version_is_one():
    assert distribution("vadapt").version == vadapt.__version__


def test_extras_are_the_promised_ones():
    extras = set(distribution("vadapt").metadata.get_all("Provides-Extra"))
    assert {"test", "tpu", "cuda", "torch", "notebooks", "tfds"} <= extras
