"""Builders of data sets for TFDS: `python -m vadapt.datasets.msip` runs the one in `datasets/msip`.

The folder is no package of its own, or Hugging Face's `datasets` could not be imported beside it.
"""

from __future__ import annotations

from vadapt.beside import folder

__path__ = [str(folder("datasets"))]
