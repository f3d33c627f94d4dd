"""What is said when a file of a run cannot be written."""

import errno

import pytest

from vadapt.errors import TrainingError
from vadapt.runtime.storage import cannot_write, writing


@pytest.mark.parametrize(
    "page",
    [
        "Error writing 'a/.zarray': Failed to write 12 bytes: Cannot write [os_error_code='{}']",
        "Error writing 'a' [tensorstore_spec='{{\"shape\":[],\"a\":true}}'] [os_error_code='{}']",
        "Failed [os_error_code='{}'] [tensorstore_spec='{{\"shape\":[]}}']",
    ],
)
def test_a_page_of_tensorstores_becomes_the_systems_words(page):
    error = cannot_write("run/8", ValueError(page.format(errno.ENOSPC)))
    assert str(error).startswith("cannot write 'run/8': No space left on device. Make room there")


def test_an_error_of_the_system_keeps_its_words():
    with pytest.raises(TrainingError, match=r"'log\.txt': Permission denied"), writing("log.txt"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_any_other_error_is_told_by_its_first_line():
    assert "ValueError: one. Make" in str(cannot_write("a", ValueError("one\ntwo")))
