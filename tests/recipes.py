"""The configs, for tests that go through all of them."""

import importlib
from pathlib import Path

CONFIGS = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))


def config_of(name, argument=""):
    return importlib.import_module(f"configs.{name}").get_config(argument)


# Without those whose version on scenes is another's to the letter: the same programs again.
DISTINCT = sorted(
    {config_of(name, "scenes").to_json(): name for name in reversed(CONFIGS)}.values()
)
