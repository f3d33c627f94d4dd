"""Weight files at the command line: look at them, export, fold adapters in, share them.

python -m vadapt.weights inspect runs/demo/adapter.safetensors
python -m vadapt.weights COMMAND --help
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vadapt.backbones.staged import Staged
from vadapt.command_line import print_error, program
from vadapt.errors import ConfigError, VadaptError, WeightsError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it went well, 1 if not (argparse ends with 2 what it cannot read)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except VadaptError as error:
        print_error(error)
        return 1
    except OSError as error:
        print_error(WeightsError(str(error)))
        return 1
    return 0


def inspect(arguments: argparse.Namespace) -> None:
    """Prints what a weight file says of itself, and what it holds, group by group."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vadapt.partition import human_bytes
    from vadapt.weights.files import read_arrays, read_header
    from vadapt.weights.hub import local_path

    path = local_path(arguments.file)
    arrays = read_arrays(path)
    header = read_header(path) if path.suffix == ".safetensors" else {}
    console = Console()
    if header:
        table = Table("header", "", box=None)
        for name, text in header.items():
            table.add_row(escape(name), escape(text))
        console.print(table, "")
    table = Table("group", "leaves", "numbers", "bytes", "dtypes", box=None)
    groups: dict[str, list[Any]] = {}
    for name, array in sorted(arrays.items()):
        groups.setdefault(_group(name, arguments.depth), []).append(array)
    for name, members in [*groups.items(), ("in all", list(arrays.values()))]:
        dtypes = Counter(str(array.dtype) for array in members)
        table.add_row(
            escape(name),
            f"{len(members):,}",
            f"{sum(array.size for array in members):,}",
            human_bytes(sum(array.nbytes for array in members)),
            ", ".join(sorted(dtypes)),
        )
    console.print(table)


def check(arguments: argparse.Namespace) -> None:
    """Says what a weight file is of, loads it, and sums up its features of a fixed image."""
    from vadapt import models
    from vadapt.weights.families import family_of
    from vadapt.weights.load import build_loaded
    from vadapt.weights.sources import arrays_of
    from vadapt.weights.summary import summary_of_features

    arrays = arrays_of(arguments.file)
    print(f"{arrays.title}: {len(arrays)} arrays, {family_of(arrays)} names")
    name, options = arguments.backbone, _options(arguments)
    if name is None:
        name, found = models.recognise(arrays)
        options = {**found, **options}
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    print(f'model: vadapt.create("{name}"{given})')
    build = functools.partial(models.create, name, **{**models.told(name, arrays), **options})
    allowed = (*models.BESIDE, *arguments.allow_unexpected)
    model, report = build_loaded(build, arrays, allow_unexpected=allowed)
    print(report)
    print(summary_of_features(model, models.statistics(name, arrays)))


def export(arguments: argparse.Namespace) -> None:
    """Writes a run's system, or a backbone with an adapter if one is given, for others to run."""
    from vadapt.weights.stablehlo import export_features, load_exported

    if arguments.format == "huggingface":
        _write_folder(arguments)
        return
    out, run = arguments.out, _run(arguments)
    input_size = arguments.input_size and _size(arguments.input_size)
    layers, given = arguments.layers, {"input_size": input_size, "dtype": arguments.dtype}
    if run is not None and layers is None:
        if arguments.as_grid:
            raise ConfigError("--as-grid is of features: say of which layers, as --layers=-1")
        run.export(out, outputs=arguments.outputs, **given)
    else:
        if arguments.outputs:
            raise ConfigError("--outputs are those of a run's task: give --run, and no --layers")
        model, seen = _seen(run, arguments)
        layers = [-1] if layers is None else layers
        given |= {"layers": layers[0] if len(layers) == 1 else layers}
        export_features(model, out, as_grid=arguments.as_grid, **seen, **given)
    print(load_exported(out))


def merge(arguments: argparse.Namespace) -> None:
    """Folds an adapter into its backbone's weights and writes those."""
    if not (arguments.run or arguments.adapter):
        raise ConfigError("nothing to merge: give --run, or --adapter with its backbone")
    _write_folder(arguments)


def push(arguments: argparse.Namespace) -> None:
    """Puts an adapter file on the Hugging Face Hub."""
    from vadapt.weights import publish

    print(
        publish.push(
            arguments.file,
            arguments.repository,
            private=arguments.private,
            message=arguments.message,
        )
    )


def pull(arguments: argparse.Namespace) -> None:
    """Fetches an adapter file from the Hugging Face Hub."""
    from vadapt.weights import hub

    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    print(shutil.copyfile(hub.pull(arguments.source), out))


def _write_folder(arguments: argparse.Namespace) -> None:
    """Writes a backbone with its adapter folded, for transformers or as one file of vadapt's."""
    from vadapt import adapters
    from vadapt.weights.dropped import save_dropped, without_blocks
    from vadapt.weights.export import family_of, save_hugging_face

    out, run = Path(arguments.out), _run(arguments)
    name = arguments.backbone if run is None else run.config.model.backbone
    whole = arguments.command is merge and out.suffix
    family = None if whole else family_of(name)
    model = _build(arguments)[0] if run is None else getattr(run.model, "backbone", run.model)
    model = adapters.fold(model, strict=True)
    if family is None:
        save_dropped(out, model)
    else:
        save_hugging_face(without_blocks(model), out, family)
    print(out)


def _run(arguments: argparse.Namespace) -> Any:
    """The run that is asked for; None where a backbone is."""
    if not arguments.run:
        if arguments.backbone and arguments.weights:
            return None
        raise ConfigError(
            "say of what: --run=DIR, a workdir or the adapter file of a finished run, or "
            "--backbone=NAME and --weights=FILE"
        )
    from vadapt.trained import load_run

    told = ("backbone", "adapter", "image_size", "options", "allow_unexpected")
    given = [name for name in told if getattr(arguments, name) not in (None, [], "{}")]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{flag} does not go with --run: the run says it; leave it out")
    return load_run(arguments.run, weights=arguments.weights or "")


def _seen(run: Any, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The backbone whose features are exported, and its name, size and statistics."""
    from vadapt import models

    if run is not None:
        data, name = run.config.data, run.config.model.backbone
        seen = {"image_size": tuple(data.image_size), "statistics": (data.mean, data.std)}
        return getattr(run.model, "backbone", run.model), {**seen, "name": name}
    model, info = _build(arguments)
    known = info and info.statistics
    return model, {
        "image_size": _image_size(model, arguments),
        "statistics": known or models.statistics(arguments.backbone, arguments.weights),
        "name": arguments.backbone,
    }


def _build(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The backbone with its weights, adapted if a file says how; and what that file says."""
    from vadapt import adapters, models
    from vadapt.weights.adapter_file import read_info
    from vadapt.weights.hub import local_adapter

    options = _options(arguments)
    info = read_info(local_adapter(arguments.adapter)) if arguments.adapter else None
    allowed = tuple(arguments.allow_unexpected)
    model = models.create(
        arguments.backbone, arguments.weights, allow_unexpected=allowed, **options
    )
    return (model if info is None else adapters.adapt_from(model, info)), info


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the model's fields that the arguments give."""
    options = {"image_size": _size(arguments.image_size)} if arguments.image_size else {}
    try:
        return {**options, **json.loads(arguments.options)}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--options={arguments.options}: expected JSON, {error}") from error


def _image_size(model: Any, arguments: argparse.Namespace) -> tuple[int, int]:
    """The size that the model is for; one of stages is for any."""
    if not isinstance(model, Staged):
        return model.grid[0] * model.patch_size, model.grid[1] * model.patch_size
    if not arguments.image_size:
        raise ConfigError(f"{arguments.backbone} takes any size: say which with --image-size")
    return _size(arguments.image_size)


def _group(name: str, depth: int) -> str:
    """The first parts of a name, without the numbers of blocks."""
    parts = [part for part in name.replace("/", ".").split(".") if not part.isdigit()]
    return "/".join(parts[:depth])


def _size(sides: Sequence[int]) -> tuple[int, int]:
    if len(sides) > 2:
        raise ConfigError(f"a size is a side or height and width, got {sides}")
    return sides[0], sides[-1]


def _parser() -> argparse.ArgumentParser:
    called = program("weights", "vadapt.weights")
    parser = argparse.ArgumentParser(
        prog=called, description="Weight files: inspect, check, export, merge, share."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], example: str) -> Any:
        text = str(run.__doc__)
        added = commands.add_parser(
            run.__name__,
            help=text,
            description=text,
            epilog=f"for example: {called} {example}",
        )
        added.set_defaults(command=run)
        return added

    one = command(inspect, "inspect runs/demo/adapter.safetensors --depth=3")
    one.add_argument("file", help="a weight file, or hf:org/name")
    one.add_argument("--depth", type=int, default=2, help="parts of a name that make a group")

    one = command(check, "check hf:facebook/dinov2-small")
    one.add_argument("file", help="a weight file, a folder, a shipped asset, or hf:org/name")
    one.add_argument("--backbone", help="a name for vadapt.create, if shapes do not tell it")
    _add_fields(one)

    one = command(
        export,
        "export --run=runs/demo --input-size 512 1024 --out=system.bin; or export "
        "--backbone=dinov2_small --weights=hf:facebook/dinov2-small --out=features.bin",
    )
    _add_export(one)

    one = command(merge, "merge --run=runs/demo --out=merged/")
    _add_model(one)
    one.add_argument("--adapter", help="file of save_adapter, or hf:org/name")
    one.add_argument(
        "--out", required=True, help="a .safetensors file, or a folder for transformers"
    )

    one = command(push, "push runs/demo/adapter.safetensors org/name --private")
    one.add_argument("file", help="an adapter file")
    one.add_argument("repository", help="org/name")
    one.add_argument("--private", action="store_true", help="of a repository that is made")
    one.add_argument("--message", help="of the commit")

    one = command(pull, "pull hf:org/name --out=adapter.safetensors")
    one.add_argument("source", help="hf:org/name[@revision][/file]")
    one.add_argument("--out", required=True, help="where to copy it")
    return parser


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--adapter", help="file of save_adapter, or hf:org/name")
    parser.add_argument(
        "--format",
        choices=("stablehlo", "huggingface"),
        default="stablehlo",
        help="by default stablehlo; huggingface takes the backbone alone",
    )
    parser.add_argument("--out", required=True, help="a file; of huggingface a folder")
    stablehlo = parser.add_argument_group("of stablehlo")
    stablehlo.add_argument(
        "--layers", type=int, nargs="+", help="whose features; by default -1, of a run the answers"
    )
    stablehlo.add_argument(
        "--outputs",
        nargs="+",
        default=[],
        help="of a run's answers, such as labels probabilities; by default the first",
    )
    stablehlo.add_argument("--as-grid", action="store_true", help="maps of patches, not tokens")
    stablehlo.add_argument(
        "--input-size",
        type=int,
        nargs="+",
        metavar="SIDE",
        help="height and width of the images given, by default those that the model sees",
    )
    stablehlo.add_argument("--dtype", help="of the weights, such as bfloat16")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", help="a workdir, the adapter file of a finished run, or hf:org/name"
    )
    parser.add_argument("--backbone", help="a name for vadapt.create, where there is no run")
    parser.add_argument(
        "--weights",
        help="file, shipped asset, or hf:org/name; of a run only if they are not found, or a "
        "folder with them",
    )
    _add_fields(parser)


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", type=int, nargs="+", metavar="SIDE", help="of the model")
    parser.add_argument("--options", default="{}", metavar="JSON", help="other fields of the model")
    parser.add_argument(
        "--allow-unexpected", nargs="*", default=[], metavar="PATTERN", help="of the file's names"
    )


if __name__ == "__main__":
    sys.exit(main())
