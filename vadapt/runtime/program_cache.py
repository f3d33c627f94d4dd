"""Compiled programs on disk: a run that is started again does not compile again."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_DIRECTORY = "jax_compilation_cache_dir"
_HIT = "/jax/compilation_cache/cache_hits"


class ProgramCache:
    """While it is open, jax keeps what it compiles in a directory, and looks there first.

    All of it, the small programs that initialise a model too: these make most of a restart. Where
    jax was told of a cache of its own (JAX_COMPILATION_CACHE_DIR), that one is left in place. With
    several processes the first one writes, the others read.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory).absolute()  # its name is part of what jax looks up
        self.hits = 0  # programs that were found
        self._before: dict[str, Any] = {}

    def __enter__(self) -> ProgramCache:
        jax.monitoring.register_event_listener(self._count)
        if not getattr(jax.config, _DIRECTORY):
            options = {
                _DIRECTORY: str(self.directory),
                "jax_persistent_cache_min_compile_time_secs": 0.0,
            }
            self._before = {name: getattr(jax.config, name) for name in options}
            _configure(options)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_listener(self._count)
        if self._before:
            _configure(self._before)

    def compile(self, lowered: Any) -> tuple[Any, bool, list[str]]:
        """A lowered program compiled, whether that was found here, and warnings on the way.

        An entry that cannot be read (a kill may have cut it) costs a compilation, and all of them
        are removed: jax would not replace that one, and stumble over it at every start.
        """
        hits = self.hits
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compiled = lowered.compile()
        warned = [str(warning.message) for warning in caught]
        if self._before and any("Error reading" in text for text in warned):
            for entry in self.directory.glob("*-cache"):
                entry.unlink(missing_ok=True)
        return compiled, self.hits > hits, warned

    def _count(self, event: str, **_: object) -> None:
        self.hits += event == _HIT


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax opens its cache once, wherever it is then
