"""Memory and time of loading a ViT-L from safetensors: `python -m benchmarks.load_memory`.

Side by side, each in a fresh process: `vadapt.create(name, file)`; create at random and then
`load_weights`; every array of the file read at once and then loaded; and, where it is installed,
transformers (which maps the file, so its weights are summed up once). Peaks are of the resident
set, less what the process holds after its imports, over the size of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

# Linux counts the peak of the resident set and can be asked to begin anew.
BEGIN = """
import re, sys, time
path, name = sys.argv[1:]
def memory(kind):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(kind + r":\\s+(\\d+) kB", file.read())[1])
"""
END = """
print(took, memory("VmHWM") - before)
"""
IMPORTS = """
import jax, vadapt
from vadapt import models
from vadapt.weights.load import load_weights
jax.block_until_ready(jax.numpy.zeros(3) + 1)
"""
# What each way is called, and its code: what is imported, and what is measured.
WAYS = {
    "vadapt.create(name, file)": (IMPORTS, "model = models.create(name, path)"),
    "vadapt.create, then load_weights": (
        IMPORTS,
        "model = models.create(name)\nload_weights(model, path)",
    ),
    "the whole file read first": (
        IMPORTS + "from safetensors.numpy import load_file\n",
        "model = models.create(name, load_file(path))",
    ),
    "transformers": (
        "import os, torch, transformers\n",
        "model = transformers.Dinov2Model.from_pretrained(os.path.dirname(path))\n"
        "sum(float(weight.sum()) for weight in model.parameters())",
    ),
}


def write_folder(folder: Path, name: str) -> Path:
    """Random weights and their config, as Hugging Face has them."""
    from flax import nnx

    from vadapt import models
    from vadapt.partition import variables
    from vadapt.weights.families.dinov2 import DINOV2_HF
    from vadapt.weights.files import write_arrays
    from vadapt.weights.tables import revert

    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: models.create(name))
    values = {
        path: 0.02 * rng.standard_normal(place.shape, np.float32)
        for path, place in variables(model).items()
    }
    path = folder / "model.safetensors"
    write_arrays(path, revert(values, DINOV2_HF)[0], {"format": "pt"})
    config = {
        "model_type": "dinov2",
        "hidden_size": model.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.num_heads,
        "image_size": 518,
        "use_mask_token": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return path


def measure(imports: str, code: str, path: Path, name: str) -> tuple[float, int] | str:
    """Seconds and bytes of one way in a process of its own, or why there is no such figure."""
    before = 'open("/proc/self/clear_refs", "w").write("5")\nbefore = memory("VmRSS")\n'
    measured = f"began = time.perf_counter()\n{code}\ntook = time.perf_counter() - began\n"
    program = BEGIN + imports + before + measured + END
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), name],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak)


def main() -> None:
    """Writes the file, measures every way, prints a table and stores it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a .md file for the table")
    parser.add_argument("--backbone", default="dinov2_large", help="a plain DINOv2")
    arguments = parser.parse_args()
    lines = ["| way | seconds | peak | of the file's size |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        path = write_folder(Path(folder), arguments.backbone)
        size = path.stat().st_size
        for way, (imports, code) in WAYS.items():
            found = measure(imports, code, path, arguments.backbone)
            if isinstance(found, str):
                lines.append(f"| {way} | | | {found} |")
                continue
            seconds, peak = found
            lines.append(f"| {way} | {seconds:.1f} | {peak / 2**30:.2f} GiB | {peak / size:.2f} |")
    with_what = ", ".join(f"{package} {version(package)}" for package in ("jax", "flax"))
    text = "\n".join(
        [
            "# Memory of loading",
            "",
            f"`python -m benchmarks.load_memory`, {time.strftime('%Y-%m-%d')}; "
            f"{arguments.backbone}, float32, {size / 2**20:.0f} MiB; {os.cpu_count()} CPU cores, "
            f"{with_what}.",
            "",
            *lines,
            "",
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
