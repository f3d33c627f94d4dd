"""The config of a golden case as builders read it, which notes what they leave unread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Fields(Mapping[str, Any]):
    """A config, and which of its fields were read; configs inside it, and lists of them, likewise.

    A builder reads a field to pass it on, or to refuse a value that vadapt has no option for (see
    `only` and `same`). To copy or unpack a config would read every field whatever becomes of it,
    so that both raise. `config | {...}` puts other values over a config and `{...} | config` under
    it: a field that other values hide counts as read only where it is read elsewhere.

    >>> config = Fields({"width": 8, "norm": {"type": "LN", "eps": 1e-6}, "levels": [{"k": 1}]})
    >>> config["width"], config["norm"]["eps"], config.get("act", "gelu"), "k" in config
    (8, 1e-06, 'gelu', False)
    >>> config.unread()
    ['norm.type', 'levels']
    """

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        self.path = path  # of the config in the case's, with a dot at its end
        self._values = {name: _tracked(value, path + name) for name, value in values.items()}
        self._own, self._read = set(self._values), set[str]()

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if name in self._own:
            self._read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        raise TypeError(
            "a config is not copied or unpacked, as that would read all of its fields: read those "
            "that are passed on, put values over it with `|`, or take the `names` of a table"
        )

    def __len__(self) -> int:
        return len(self._values)

    def __or__(self, over: Mapping[str, Any]) -> Fields:
        return self._with({**self._values, **over}, self._own - set(over))

    def __ror__(self, under: Mapping[str, Any]) -> Fields:
        return self._with({**under, **self._values}, self._own)

    def _with(self, values: dict[str, Any], own: set[str]) -> Fields:
        found = Fields({}, self.path)
        found._values, found._own, found._read = values, own, self._read
        return found

    def names(self) -> list[str]:
        """The names of a table, such as rates by parameter, whose entries are read one by one."""
        return list(self._values)

    def unread(self) -> list[str]:
        """Paths of the fields that nobody has read."""
        found = []
        for name, value in self._values.items():
            if name not in self._read:
                found.append(self.path + name)
            for part in value if isinstance(value, list) else [value]:
                if name in self._read and isinstance(part, Fields):
                    found += part.unread()
        return found


def _tracked(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return Fields(value, path + ".")
    if isinstance(value, list):
        return [_tracked(part, f"{path}[{i}]") for i, part in enumerate(value)]
    return value


def only(config: Mapping[str, Any], **supported: tuple[Any, ...]) -> None:
    """Refuse values that vadapt has no option for; absent fields have the original's default.

    Raises:
        ValueError: a field has another value than those that are supported.
    """
    for name, values in supported.items():
        if name in config and config[name] not in values:
            raise ValueError(
                f"{_path(config, name)} is {config[name]!r}, which vadapt does not support; it "
                f"supports {' and '.join(map(repr, values))}"
            )


def same(config: Mapping[str, Any], **found: Any) -> None:
    """Refuse a config that contradicts its case: fields that say what other fields or arrays do.

    Raises:
        ValueError: a field says something else than what was found.
    """
    for name, value in found.items():
        if name in config and config[name] != value:
            raise ValueError(
                f"{_path(config, name)} is {config[name]!r}; the rest of the case says {value!r}"
            )


def _path(config: Mapping[str, Any], name: str) -> str:
    return getattr(config, "path", "") + name
