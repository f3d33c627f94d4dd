"""Makes MSIP from the downloads of its eight data sets.

python -m vadapt.datasets.msip RAW                 what is there, what is missing, where to get it
python -m vadapt.datasets.msip RAW --out MSIP      the folders <sub-set>/thermal, and a manifest
python -m vadapt.datasets.msip MSIP --tfds DIR     a data set of TFDS, from either kind of folder
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if images of one of the eight are missing."""
    from vadapt.datasets.msip import assemble

    parser = argparse.ArgumentParser(
        prog="python -m vadapt.datasets.msip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help="holds the downloads, or the assembled folders for --tfds")
    parser.add_argument("--out", help="write the assembled folders there")
    parser.add_argument("--link", action="store_true", help="with --out: link, where not changed")
    parser.add_argument("--tfds", help="prepare the TFDS data set there, as array_record")
    options = parser.parse_args(arguments)
    if not Path(options.path).is_dir():
        parser.error(f"no folder {options.path!r}")
    if options.tfds:
        _prepare(options.path, options.tfds)
        return 0
    found = assemble.find(options.path)
    counts = None
    if options.out:
        counts = assemble.assemble(found, options.out, link=options.link)
    print(assemble.report(found, counts))
    return 0 if all(one.images for one in found) else 1


def _prepare(path: str, data_dir: str) -> None:
    import tensorflow_datasets as tfds

    from vadapt.datasets.msip.msip_dataset_builder import Builder

    builder = Builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(Path(path).resolve()))
    )
    for name, split in builder.info.splits.items():
        print(f"{builder.data_path}: {split.num_examples:,} images in {name!r}")


if __name__ == "__main__":
    raise SystemExit(main())
