"""The flags that every command shares: a config file, and any of its settings."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vadapt import configs
from vadapt.errors import ConfigError, VadaptError, nearest

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "NAME[:ARGUMENT] of a recipe that comes with vadapt (`vadapt list recipes`), or a file of your "
    "own, FILE.py[:ARGUMENT].",
)
DROP = flags.DEFINE_list(
    "drop", [], "Settings of the config to do without, such as method.fusion,method.scale."
)

PRINT = flags.DEFINE_boolean(
    "print_config", False, "Print the settings that the other flags come to, and do nothing else."
)
# Settings of two numbers, by their last name; any other tuple may have any length.
PAIRS = ("image_size", "crop_area", "crop", "stride")
EMPTY_OR_PAIR = ("eval.crop", "eval.stride")
# Sections of data sets by name, each of which says where it differs from config.data.
_DATA_SET = r"(train|validation|test|streams)\.\w+"


def start(follow: Callable[[Any], None], required: Sequence[str], example: str) -> None:
    """Run a command of this process alone; what vadapt refuses is printed without a traceback.

    Args:
        follow: does what the flags say, which it gets.
        required, example: see `parse`.
    """

    def run(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax narrates every file it writes
        try:
            follow(flags.FLAGS)
        except VadaptError as error:
            print_error(error)
            sys.exit(1)

    app.run(run, flags_parser=lambda argv: parse(argv, required, example))


def parse(argv: list[str], required: Sequence[str], example: str) -> list[str]:
    """Reads the flags; what is wrong with them is said in a few lines and ends the program.

    `--help` with a config prints what the recipe says and its settings, `--print_config` what the
    flags come to; either ends the program, too.

    Args:
        required: flags without which there is nothing to do, besides --config.
        example: how they may be given.
    """
    defaults: dict[str, Any] = {}
    try:
        if name := _asked_about(argv):
            print(help_of(name))
            sys.exit(0)
        argv, added = split_options(argv)
        defaults = _check_overrides(argv)
        argv = sys.argv = _with_file(argv)  # where ml_collections looks for overrides
        rest = _parsed(argv)
        needed = ["config", *(() if PRINT.value else required)]
        missing = [f"--{name}" for name in needed if flags.FLAGS[name].value is None]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)} missing; expected "
                f"--config=pad_msip:scenes {example}, or --help"
            )
        if len(rest) > 1:
            raise ConfigError(f"unexpected arguments {rest[1:]}; settings are --config.name=value")
        _check_pairs(_leaves(CONFIG.value), defaults)
        change(CONFIG.value, added, DROP.value)
        if PRINT.value:
            print("\n".join(_spoken(CONFIG.value)))
            sys.exit(0)
        return rest
    except VadaptError as error:
        wrong = error
    except flags.Error as error:
        setting = re.match(r"flag --(?:no)?config\.([^=]+)=", str(error))
        default = defaults.get(setting[1]) if setting else None
        hint = (
            "" if default is None else f"; expected {type(default).__name__}, such as {default!r}"
        )
        wrong = ConfigError(f"{error}{hint}")
    print_error(wrong)
    sys.exit(1)


def _parsed(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # absl has printed the help that was asked for, and ends with 1
        sys.exit(0)


def help_of(name: str) -> str:
    """The words of a recipe, and its settings as flags.

    Raises:
        ConfigError: see `load_config`.
    """
    settings = "\n".join(f"    {line}" for line in _spoken(load_config(name)))
    file = Path(_file_of(name).partition(":")[0])
    words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return (
        f"{words}\n\nSettings of {name}, all of which can be changed by such flags:\n\n{settings}"
    )


def _asked_about(argv: Sequence[str]) -> str:
    """The config that somebody wants help on."""
    asks = {"-h", "-help", "--help", "--helpshort", "--helpfull"} & {*argv}
    return _config_name(argv) if asks else ""


def _config_name(argv: Sequence[str]) -> str:
    """The config that arguments name, the last one if there are several; "" if there is none."""
    names = re.findall(r"^--?config(?:=|\n)(.+)$", "\n".join(argv), re.MULTILINE)
    return names[-1] if names else ""


def _file_of(name: str) -> str:
    """FILE[:ARGUMENT] for the bare name of a recipe; a file that is there goes before it."""
    file, colon, argument = name.partition(":")
    if Path(file).is_file() or file not in configs.names():
        return name
    return f"{configs.FOLDER / file}.py{colon}{argument}"


def _with_file(argv: Sequence[str]) -> list[str]:
    """Arguments with the file of a recipe in the place of its bare name."""
    found = []
    for before, argument in zip(["", *argv[:-1]], argv, strict=True):
        if given := re.match(r"--?config=", argument):
            argument = given[0] + _file_of(argument[given.end() :])
        elif before in ("--config", "-config"):
            argument = _file_of(argument)
        found.append(argument)
    return found


def _spoken(config: ConfigDict) -> list[str]:
    """Every setting as a flag, in the recipe's order."""
    shown = []
    for key, value in _leaves(config).items():
        plain = (
            isinstance(value, tuple) and value and all(isinstance(x, int | float) for x in value)
        )
        text = ",".join(map(str, value)) if plain else str(value)
        shown.append(f"--config.{key}={shlex.quote(text) if text else text}")
    return shown


def load_config(name: str) -> ConfigDict:
    """The settings of NAME, a recipe that comes with vadapt, or FILE; with :ARGUMENT or without.

    Raises:
        ConfigError: there is no such recipe or file, or it refuses the argument.
    """
    file, colon, argument = _file_of(name).partition(":")
    if not Path(file).is_file():
        own = [*Path("configs").glob("*.py"), *Path().glob("*.py")]
        there = [*configs.names(), *(path.as_posix() for path in own)]
        raise ConfigError(f"no config file {file!r}; {nearest(file, there)}")
    get_config = runpy.run_path(file)["get_config"]
    try:
        return get_config(argument) if colon else get_config()
    except ValueError as error:
        raise ConfigError(f"--config={name}: {error}") from error


def split_options(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments apart from options that the recipe does not list, of what it chooses by name.

    A section that has a `name` takes any option of what goes by that name, which checks it;
    `data` those of a source of one's own, named by its place. A data set of any name can be added,
    as in `--config.test.night.path=DIR`.
    """
    name = _config_name(argv)
    if not name:
        return argv, {}
    config = load_config(name)
    kept, added = [], {}
    open_data = any(re.match(r"--config\.data\.source=.+:", argument) for argument in argv)
    for argument in argv:
        option = re.match(r"--config\.((?:\w+\.)*\w+)\.(\w+)=(.*)", argument)
        section = _section(config, option[1]) if option else None
        of_set = option and re.fullmatch(_DATA_SET, option[1])
        if (
            option
            and (section is not None or of_set)
            and option[2] not in (section or ())
            and (of_set or _is_named(config, option[1]) or (open_data and option[1] == "data"))
        ):
            added[f"{option[1]}.{option[2]}"] = option[3]
        else:
            kept.append(argument)
    return kept, added


def _section(config: ConfigDict, name: str) -> ConfigDict | None:
    found: Any = config
    for part in name.split("."):
        found = found.get(part) if isinstance(found, ConfigDict) else None
    return found if isinstance(found, ConfigDict) else None


def _is_named(config: ConfigDict, section: str) -> bool:
    """Whether a section holds the options of something that is chosen by a name."""
    return section == "model.options" or "name" in (_section(config, section) or ())


def change(config: ConfigDict, added: dict[str, str], dropped: Sequence[str]) -> None:
    """Give a config options that it does not list, and take others out of it, in place.

    Raises:
        ConfigError: there is no such setting to do without.
    """
    with config.unlocked():
        for name, text in added.items():
            section, _, key = name.rpartition(".")
            held: Any = config
            for part in section.split("."):
                if part not in held:
                    held[part] = ConfigDict()
                held = held[part]
            held[key] = _value(text)
        for name in dropped:
            section, _, key = name.removeprefix("config.").rpartition(".")
            held = _section(config, section) if section else config
            if held is None or key not in held:
                raise ConfigError(
                    f"--drop={name}: no such setting; {nearest(name, _leaves(config))}"
                )
            del held[key]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(text.split(",")) if "," in text else text


def _check_overrides(argv: list[str]) -> dict[str, Any]:
    """Every setting of the config that the arguments name, by its dotted name, before overrides.

    Raises:
        ConfigError: also for an override of no setting; names the nearest ones.
    """
    name = _config_name(argv)
    if not name:
        return {}
    settings = _leaves(load_config(name))
    sections = {key.rpartition(".")[0] for key in settings}
    for argument in argv:
        override = re.match(r"--?(?:no)?config\.([^=\[]+)", argument)
        if override and override[1] not in {*settings, *sections}:
            raise ConfigError(
                f"unknown setting config.{override[1]}; {nearest(override[1], settings)}"
            )
    return settings


def _check_pairs(settings: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuses `--config.data.image_size=64`, which the flags read as a tuple of one."""
    for key, value in settings.items():
        if not isinstance(value, tuple) or key.rpartition(".")[2] not in PAIRS:
            continue
        if len(value) != 2 and not (key in EMPTY_OR_PAIR and not value):
            more = ", or () for none" if key in EMPTY_OR_PAIR else ""
            shown = ",".join(map(str, defaults.get(key) or (64, 64)))
            raise ConfigError(
                f"config.{key} takes 2 values, as in --config.{key}={shown}{more}; it was given "
                f"{value}"
            )


def _leaves(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def program(command: str, module: str) -> str:
    """How this program was started: as `vadapt COMMAND`, else as `python -m MODULE`."""
    started = Path(sys.orig_argv[1]).stem if len(sys.orig_argv) > 1 else ""
    return f"vadapt {command}" if started == "vadapt" else f"python -m {module}"


def print_error(error: VadaptError) -> None:
    """Print what went wrong, in its own words, after all that was printed before."""
    sys.stdout.flush()
    print(f"\n{describe(error)}", file=sys.stderr, flush=True)


def describe(error: VadaptError) -> str:
    """The kind of an error and its own words, without what JAX adds of its traceback."""
    words, _, _ = str(error).partition("\n--------------------\n")
    return f"{type(error).__name__}: {words}"
