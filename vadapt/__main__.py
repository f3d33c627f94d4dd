"""The command `vadapt`, also `python -m vadapt`: each of its words runs a module of the package."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

import vadapt


class Command(NamedTuple):
    """A module that runs, what it is given after the arguments, and what it does."""

    module: str
    what: str
    given: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("vadapt.main", "train a recipe, or go on where its run stands"),
    "evaluate": Command(
        "vadapt.main", "score a run's newest checkpoint, without training", ("--mode=evaluate",)
    ),
    "predict": Command("vadapt.predict", "write what a trained model sees in images"),
    "plan": Command("vadapt.plan", "say what a recipe's step takes on TPUs, without one"),
    "paint": Command("vadapt.paint", "compare plans in which a backbone's blocks run otherwise"),
    "weights": Command("vadapt.weights", "inspect, check, export, merge and share weight files"),
    "check": Command("vadapt.data.check", "read masks or boxes of images before training on them"),
    "list": Command("vadapt.list", "list recipes, backbones, adapters, heads and other parts"),
}
_HELP = """\
usage: vadapt COMMAND ...

Adapt a frozen vision transformer to a new domain by training about 1% of it.

{commands}

On data that comes with the package, in minutes on two cores:

  vadapt train --config=pad_msip:scenes --workdir=runs/demo

`vadapt COMMAND --help` says more of a command, `vadapt train --config=pad_msip --help` all
settings of a recipe, `vadapt --version` which vadapt this is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 1 if there is no such command, 2 if none is given."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("", "-h", "--help", "help"):
        print(help_text(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name == "--version":
        print(f"vadapt {vadapt.__version__}")
        return 0
    if name not in COMMANDS:
        from vadapt.command_line import print_error
        from vadapt.errors import ConfigError, nearest

        print_error(ConfigError(f"unknown command {name!r}; {nearest(name, COMMANDS)}"))
        return 1
    # Parts of one's own are found where the command is called, as `python -m` finds them.
    if not sys.flags.safe_path and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    command = COMMANDS[name]
    sys.argv = [f"vadapt {name}", *rest, *command.given]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    return 0


def help_text() -> str:
    """The commands, a line each, and how to begin."""
    lines = [f"  {name:8}  {command.what}" for name, command in COMMANDS.items()]
    return _HELP.format(commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
