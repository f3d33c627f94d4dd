"""Makes a shipped asset of a finished run: `python -m vadapt.weights.asset WORKDIR FILE`.

The file holds every parameter of the run's model, head included, in float16: half the size, and
far finer than what training noise leaves. Loading casts it back and says so.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from vadapt.partition import variables
from vadapt.tasks import make_task
from vadapt.training.loop import fit
from vadapt.weights.files import write_arrays


def make_asset(workdir: str | Path, file: str | Path) -> int:
    """Writes the newest checkpoint's parameters; returns the file's size in bytes."""
    workdir = Path(workdir)
    config = ConfigDict(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
    # A finished run has no step left: this restores its last checkpoint and trains nothing.
    model = fit(make_task(config), config, workdir).model
    arrays = {
        name: value[...] for name, value in variables(model).items() if isinstance(value, nnx.Param)
    }
    halves = {name: np.asarray(array, np.float16) for name, array in arrays.items()}
    write_arrays(file, halves, {"config": json.dumps(config.to_dict())})
    return Path(file).stat().st_size


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m vadapt.weights.asset", description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("file")
    options = parser.parse_args(arguments)
    size = make_asset(options.workdir, options.file)
    print(f"{options.file}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
