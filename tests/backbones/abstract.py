"""Named backbones as shapes alone: large ones take seconds to trace, and several tests ask."""

import functools
from unittest import mock

from flax import nnx

from vadapt import models


@functools.cache
def named(name, **options):
    """The model of that name without a number in it; shared, so leave it as it is."""
    with mock.patch.object(nnx.RngStream, "__call__", same_key):
        return nnx.eval_shape(lambda: models.create(name, **options))


def same_key(stream):
    """A stream's own key, as nothing is drawn: a third of the time goes into new ones."""
    return stream.key[...]
