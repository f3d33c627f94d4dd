"""VisDrone2019-DET with boxes: python -m vadapt.datasets.visdrone ROOT --tfds DIR"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    from vadapt.datasets import labelled
    from vadapt.datasets.visdrone.visdrone_dataset_builder import Builder

    return labelled.main(Builder, __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
