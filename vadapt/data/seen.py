"""Which labels ever occur: what is in no image can be neither learned nor scored."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from vadapt.data.fields import Record

_SHOWN = 8
_log = logging.getLogger("vadapt.data")


class LabelCounts:
    """A transform that changes nothing and counts the labels of the records that pass.

    Args:
        field: "mask", whose pixels are counted by class, or "labels", those that are there.
        number: of classes.

    >>> counts = LabelCounts("mask", 3)
    >>> _ = counts({"mask": np.array([[0, 2, 255]])}, np.random.default_rng(0))
    >>> counts.records, counts.totals.tolist()
    (1, [1, 0, 1])
    """

    def __init__(self, field: str, number: int):
        self.field, self.records = field, 0
        self.totals = np.zeros(number, np.int64)
        self._lock = threading.Lock()  # records pass in several threads

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        del rng
        labels, number = np.asarray(record[self.field]), len(self.totals)
        if self.field == "mask":
            found = np.bincount(labels.ravel(), minlength=number)[:number]
        else:
            found = labels > 0
        with self._lock:
            self.totals += found
            self.records += 1
        return record


class Unseen:
    """Says, once for each place, which classes do not occur there."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, where: str, classes: Sequence[str], totals: Num[np.ndarray, " k"]) -> None:
        """Warn of classes without a label, as the logger "vadapt.data" of process 0.

        Args:
            where: what was looked through, for the message.
            totals: labels of each class there.
        """
        import jax  # which reading threads have no need of

        absent = [name for name, total in zip(classes, totals, strict=True) if not total]
        if not absent or where in self._told or jax.process_index() > 0:
            return
        self._told.add(where)
        more = len(absent) - _SHOWN
        shown = ", ".join(absent[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        _log.warning(
            "%s: nothing is labelled as %s (%d of %d classes); if it should be, look at the data "
            "with python -m vadapt.data.check, or at the table of labels",
            *(where, shown, len(absent), len(classes)),
        )
