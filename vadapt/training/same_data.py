"""A check that the training data are those that a checkpoint was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vadapt.data.identity import Identity
from vadapt.data.stream import LONE
from vadapt.errors import DataError

DATA = "data"  # in what a checkpoint says of itself: identities by the names of data sets


def check_data(
    before: Mapping[str, Any], now: Mapping[str, Identity], where: str, *, allowed: bool
) -> list[str]:
    """Lines for the log about data sets that changed.

    Args:
        before: what the checkpoint says of itself. Those of older versions say nothing of their
            data, and go on.
        now: see `vadapt.data.stream.Stream.identity`.
        where: names the checkpoint.

    Raises:
        DataError: one changed, and that is not allowed.
    """
    there = before.get(DATA) or {}
    changes = [_change(name, there[name], now[name]) for name in now if name in there]
    said = [change for change in changes if change]
    if said and not allowed:
        raise DataError(
            f"the data changed since {where}: {'; '.join(said)}. Bring back what was there, or go "
            "on with what is here: --config.run.data_changed=True"
        )
    return [f"the data changed since {where}, and the run goes on: {'; '.join(said)}"] * bool(said)


def _change(name: str, there: Mapping[str, Any], here: Identity) -> str:
    if there == here:
        return ""
    what = "" if name == LONE else f"{name}: "
    if there["records"] == here["records"]:
        numbers = f"{here['records']:,} records as before, but other names, sizes or labels"
    else:
        numbers = f"{there['records']:,} records there, {here['records']:,} now"
    digests = f" (digest {there['digest']} there, {here['digest']} now)"
    return what + numbers + digests * (there["digest"] != here["digest"])
