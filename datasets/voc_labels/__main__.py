"""VOC with labels of whole images: python -m vadapt.datasets.voc_labels ROOT --tfds DIR"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    from vadapt.datasets import labelled
    from vadapt.datasets.voc_labels.voc_labels_dataset_builder import Builder

    return labelled.main(Builder, __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
