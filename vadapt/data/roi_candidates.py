"""Computes the candidates of objects for every image of an MSIP tree, once.

    python -m vadapt.data.roi_candidates ROOT --workers 16

writes `<sub-set>/roi.npz` beside each `<sub-set>/thermal`. It may be killed at any time: what was
found is kept, and the same command goes on from there. With `--picture OUT.png` it draws the
candidates and random crops of some images instead, of scenes if no ROOT is given.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vadapt.data.decode import decode_image
from vadapt.data.msip import IMAGES, list_images, list_subsets
from vadapt.data.progress import progress_bar
from vadapt.data.roi_table import PACKED, RoiTable
from vadapt.data.selective_search import PUBLISHED, SearchSettings, find_candidates
from vadapt.data.untrusted import parse_json, read_bytes
from vadapt.errors import DataError

_MOST_MIB = 2048  # of the lines of a sub-set
_CHUNK = 4  # images a worker takes at a time; a killed run loses that many a worker


def compute(
    root: str | os.PathLike[str],
    *,
    subsets: Sequence[str] | None = None,
    settings: SearchSettings = PUBLISHED,
    workers: int | None = None,
) -> dict[str, str]:
    """Packs the candidates of all images into `<sub-set>/roi.npz`; images done before are kept.

    Args:
        workers: processes; by default one a core. 1 computes in this one.

    Returns:
        The images that could not be read, and why; they are tried again by the next run.

    Raises:
        DataError: the tree is not as `vadapt.data.msip` says, or holds candidates that were found
            with other settings.
    """
    root = Path(root).expanduser()
    folders = [root / name for name in list_subsets(root, subsets)]
    journals = [Journal(folder, settings) for folder in folders]
    images = [list_images(folder) for folder in folders]
    todo = [
        [name for name in names if name not in journal.found]
        for names, journal in zip(images, journals, strict=True)
    ]
    broken: dict[str, str] = {}
    workers = min(workers or os.cpu_count() or 1, max(sum(map(len, todo)) // _CHUNK, 1))
    with progress_bar() as progress, _pool(workers) as pool:
        for folder, journal, names, missing in zip(folders, journals, images, todo, strict=True):
            bar = progress.add_task(
                folder.name, total=len(names), completed=len(names) - len(missing)
            )
            work = ((str(folder / IMAGES / name), settings) for name in missing)
            results = map(_one, work) if pool is None else pool.map(_one, work, chunksize=_CHUNK)
            for name, result in zip(missing, results, strict=True):
                if isinstance(result, str):
                    broken[str(folder / IMAGES / name)] = result
                else:
                    journal.add(name, result)
                progress.advance(bar)
            journal.pack(names)
    return broken


class Journal:
    """Findings so far for one sub-set: the packed file, and lines of the runs since.

    Every line is written whole and flushed, so that a run may end at any time.
    """

    def __init__(self, folder: Path, settings: SearchSettings):
        self.packed, self.lines = folder / PACKED, folder / ".roi.jsonl"
        self.settings = dataclasses.asdict(settings)
        self.found: dict[str, np.ndarray] = {}
        self._file: Any = None
        self._new = False
        if self.packed.is_file():
            table = RoiTable.load(self.packed)
            self._check(table.settings, self.packed)
            self.found.update(table)
        if self.lines.is_file():
            self._read_lines()

    def _read_lines(self) -> None:
        text = read_bytes(self.lines, _MOST_MIB)
        complete = text[: text.rfind(b"\n") + 1]
        if complete != text:  # the run was killed while it wrote the last one
            os.truncate(self.lines, len(complete))
        head, *rows = complete.splitlines() or [b"{}"]
        if complete:
            self._check(parse_json(head, self.lines), self.lines)
        for number, row in enumerate(rows, 2):
            try:
                name, boxes = parse_json(row, self.lines)
                self.found[str(name)] = np.array(boxes, np.int32).reshape(-1, 4)
            except (TypeError, ValueError, OverflowError) as error:
                raise DataError(
                    f"{str(self.lines)!r}, line {number} is no name with boxes ({error}); delete "
                    "the file to compute them anew"
                ) from error
        self._new = bool(rows)

    def _check(self, settings: dict[str, Any], path: Path) -> None:
        if settings != self.settings:
            raise DataError(
                f"{str(path)!r} holds candidates found with {settings}, not {self.settings}; "
                "delete it to compute them anew, or give the same settings"
            )

    def add(self, name: str, boxes: np.ndarray) -> None:
        """Notes the candidates of one image, on the disk too."""
        if self._file is None:
            self._file = self.lines.open("a", encoding="utf-8")
            if self._file.tell() == 0:
                self._file.write(json.dumps(self.settings) + "\n")
        self.found[name], self._new = boxes, True
        self._file.write(json.dumps([name, boxes.tolist()]) + "\n")
        self._file.flush()

    def pack(self, names: Iterable[str]) -> None:
        """Writes the packed file, in the order of the names, and drops the lines."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._new or not self.packed.is_file():
            rois = {name: self.found[name] for name in names if name in self.found}
            RoiTable.of(rois, self.settings).save(self.packed)
        self.lines.unlink(missing_ok=True)


def _one(work: tuple[str, SearchSettings]) -> np.ndarray | str:
    """The candidates of an image file, or why there are none."""
    path, settings = work
    try:
        grey = decode_image(Path(path).read_bytes(), 1)[..., 0]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return find_candidates(grey, settings)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes, none of them for one worker; what they have not begun ends with them."""
    if workers <= 1:
        yield None
        return
    # Not forked: the parent may have threads (rich's, JAX's), and a fork of those may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this worker when the command is killed; it would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command gets it too, and ends the pool
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _settings(options: argparse.Namespace) -> SearchSettings:
    return SearchSettings(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(SearchSettings)}
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vadapt.data.roi_candidates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", nargs="?", help="holds <sub-set>/thermal/<image>")
    parser.add_argument("--subsets", nargs="+", help="by default every folder of the root")
    parser.add_argument("--workers", type=int, help="processes; by default one a core")
    for field in dataclasses.fields(SearchSettings):
        kind = int if isinstance(field.default, int) and field.type == "int" else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument(
        "--picture", metavar="OUT.png", help="draw some images, write no candidates"
    )
    parser.add_argument("--count", type=int, default=6, help="images of the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the picture's images and crops")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if an image could not be read."""
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = _settings(options)
    if options.picture:
        from vadapt.data.roi_picture import draw

        draw(options.picture, options.root, settings, count=options.count, seed=options.seed)
        print(options.picture)
        return 0
    if options.root is None:
        parser.error("give the root of the images, or --picture OUT.png")
    try:
        broken = compute(
            options.root, subsets=options.subsets, settings=settings, workers=options.workers
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        return 130
    for path, reason in broken.items():
        print(f"cannot read {path}: {reason}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
