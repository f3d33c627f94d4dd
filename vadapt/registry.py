"""Parts by name: the package's own, found when they are asked for, and those of a user's code."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vadapt.errors import ConfigError, nearest


class Registry(Mapping[str, Any]):
    """Parts of one kind by their names; a part is imported when it is looked up.

    What is not the package's own goes by where it is, as in "my_package.heads:Mine", or by the name
    that `register` gives it.

    Args:
        setting: where a name is chosen, for errors, as in "config.head.name".
        places: the package's own: name to "module:attribute".

    >>> heads = Registry("config.head.name", {"path": "pathlib:Path"})
    >>> heads["path"].__name__, heads["collections:OrderedDict"].__name__
    ('Path', 'OrderedDict')
    >>> heads["paht"]
    Traceback (most recent call last):
    vadapt.errors.ConfigError: unknown config.head.name 'paht'; nearest: 'path'. What is not \
vadapt's own goes by its place, as in my_package.my_module:Name
    """

    def __init__(self, setting: str, places: Mapping[str, str]):
        self.setting, self._places = setting, dict(places)
        self._parts: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Give a part of one's own a name; a decorator.

        Raises:
            ConfigError: the name is taken.
        """

        def keep(part: Any) -> Any:
            if self._parts.get(name, part) is not part or name in self._places:
                raise ConfigError(f"{self.setting}: {name!r} is taken; choose another name")
            self._parts[name] = part
            return part

        return keep

    def __getitem__(self, name: str) -> Any:
        if name in self._parts:
            return self._parts[name]
        place = name if ":" in name else self._places.get(name)
        if place is None:
            raise ConfigError(
                f"unknown {self.setting} {name!r}; {nearest(name, self)}. What is not vadapt's own "
                "goes by its place, as in my_package.my_module:Name"
            )
        module, _, attribute = place.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if place in self._places.values():
                raise
            raise ConfigError(f"{self.setting}={name!r}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._parts})

    def __len__(self) -> int:
        return len({**self._places, **self._parts})

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._parts
