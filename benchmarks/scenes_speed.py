"""Scenes a second on one core: `python benchmarks/scenes_speed.py`."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import time

from vadapt.data.scenes import SceneOptions, make_scene


def scenes_per_second(name: str, options: SceneOptions, count: int) -> float:
    """How many fresh scenes a second yield the attribute `name`."""
    getattr(make_scene(1, 0, options), name)
    start = time.perf_counter()
    for index in range(count):
        getattr(make_scene(0, index, options), name)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Print one line a size and domain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    names = ("visible", "thermal", "mask", "boxes_xyxy", "flow")
    print(f"{'scenes a second':24}" + "".join(f"{name:>12}" for name in names))
    for domain in ("synthetic", "real"):
        for size in (64, 96):
            options = SceneOptions(size, size, domain=domain)
            speeds = [scenes_per_second(name, options, count) for name in names]
            print(f"{f'{domain} {size}x{size}':24}" + "".join(f"{s:12.0f}" for s in speeds))


if __name__ == "__main__":
    main()
