"""Labels that occur nowhere are counted and named."""

import numpy as np

from vadapt.data.seen import LabelCounts, Unseen


def test_labels_of_images_are_counted_and_the_record_stays():
    counts, rng = LabelCounts("labels", 3), np.random.default_rng(0)
    for labels in ([1, 0, -1], [1, 0, 0]):
        record = {"labels": np.array(labels, np.int8)}
        assert counts(record, rng) is record
    assert (counts.records, counts.totals.tolist()) == (2, [2, 0, 0])  # doubt is no label


def test_many_are_named_in_part_and_once_a_place(caplog):
    unseen, classes = Unseen(), [f"c{number}" for number in range(20)]
    totals = (np.arange(20) < 9).astype(int)
    for where in ("here", "here", "there"):
        unseen.tell(where, classes, totals)
    unseen.tell("everywhere", classes, np.ones(20))
    assert [text.partition(":")[0] for text in caplog.messages] == ["here", "there"]
    assert "as c9, c10, c11, c12, c13, c14, c15, c16 and 3 more (11 of 20 classes)" in caplog.text
