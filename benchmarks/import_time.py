"""How long imports take, in fresh interpreters: `python benchmarks/import_time.py`.

Side by side: nothing, vadapt, vadapt with its library names used, jax, and flax.nnx alone.
"""

import subprocess
import sys
import time

CASES = {
    "nothing": "pass",
    "import vadapt": "import vadapt",
    "vadapt.create, split, ...": (
        "import vadapt; vadapt.create; vadapt.adapt; vadapt.split; vadapt.load_weights"
    ),
    "import jax": "import jax",
    "from flax import nnx": "from flax import nnx",
}
RUNS = 5


def main() -> None:
    """Prints the best and the median of a few runs of each case, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(RUNS):
        for name, code in CASES.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - began)
    print(f"{'':28}{'best':>8}{'median':>8}  (seconds, {RUNS} runs)")
    for name, values in seconds.items():
        print(f"{name:28}{min(values):8.3f}{sorted(values)[RUNS // 2]:8.3f}")


if __name__ == "__main__":
    main()
