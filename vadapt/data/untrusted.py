"""Files that others wrote: read within bounds, with names inside of the data set and given once.

What a reader of JSON or YAML would do in silence with a file that is too deep, too large, or says
a thing twice ends in one `DataError` that says what came and what to write.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from vadapt.errors import DataError

MOST_CELLS = 2**32  # entries of a table of images and labels: 4 GiB of int8
_DEEPEST = 20  # levels of a YAML file
_DEEPEST_JSON = 100
_MIB = 2**20
_NAMED_IN_ERROR = 3


def read_bytes(path: Path, most_mib: int) -> bytes:
    """The content of a file that is expected to be small.

    Raises:
        DataError: it has more than `most_mib` MiB.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > most_mib * _MIB:
        raise DataError(
            f"{str(path)!r} has {size / _MIB:,.0f} MiB, and {most_mib} MiB are read; is it the "
            "file that it should be?"
        )
    return path.read_bytes()


def read_lines(path: Path, most_mib: int = 256) -> list[str]:
    """The lines of a text file that are not empty, without space around them.

    Raises:
        DataError: it is no text in UTF-8, or larger than `most_mib` MiB.
        OSError: it cannot be read.
    """
    return [line for _, line in numbered_lines(path, most_mib)]


def numbered_lines(path: Path, most_mib: int = 256) -> list[tuple[int, str]]:
    """`read_lines`, each with its number in the file, from 1."""
    try:
        text = read_bytes(path, most_mib).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is no text in UTF-8: {error}; save it as such") from error
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return [(number, line) for number, line in lines if line]


def read_json(path: Path, most_mib: int) -> Any:
    """The values of a JSON file; see `read_bytes` and `parse_json` for the errors."""
    return parse_json(read_bytes(path, most_mib), path)


def parse_json(content: bytes | str, path: Path) -> Any:
    """The values of a JSON file.

    Raises:
        DataError: it is no JSON, deeper than is read, or says a name twice in one object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = first_of(doubled(name for name, _ in pairs))
            raise DataError(f"{str(path)!r} says {twice} twice in one object; leave one")
        return found

    try:
        found = json.loads(content, object_pairs_hook=once)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{str(path)!r} is no JSON: {error}; download it again") from error
    except RecursionError:
        deep = True
    else:
        deep = _is_deep(found)
    if deep:
        raise DataError(f"{str(path)!r} is JSON deeper than any data set's; is it that file?")
    return found


def _is_deep(value: Any) -> bool:
    """Return whether walking these values might exhaust the stack; it goes level by level."""
    level = [[value]]
    for _ in range(_DEEPEST_JSON):
        level = [
            part if isinstance(part, list) else [*part.values()]
            for one in level
            for part in one
            if isinstance(part, dict | list)
        ]
    return bool(level)


def parse_yaml(text: str) -> Any:
    """The values of a small YAML file.

    Raises:
        DataError: it names a value to say it again (`&` and `*`, by which few lines grow to more
            than any memory, or hold themselves), says a name twice, or is too deep.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    depth = 0
    for token in yaml.scan(text):  # without recursion, and before anything is built
        if isinstance(token, yaml.AliasToken | yaml.AnchorToken):
            raise DataError(
                f"line {token.start_mark.line + 1}: write out what `*{token.value}` means"
            )
        opens = isinstance(token, yaml.BlockMappingStartToken | yaml.BlockSequenceStartToken)
        opens |= isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken)
        depth += opens
        depth -= isinstance(token, yaml.BlockEndToken | yaml.FlowMappingEndToken)
        depth -= isinstance(token, yaml.FlowSequenceEndToken)
        if depth > _DEEPEST:
            raise DataError(f"line {token.start_mark.line + 1}: more than {_DEEPEST} levels")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _refuse_doubled_keys(yaml, node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_doubled_keys(yaml: Any, node: Any) -> None:
    """YAML's own readers take the last of them."""
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        if twice := doubled(keys):
            line = node.start_mark.line + 1
            raise DataError(f"line {line}: {first_of(twice)} stands there twice; leave one")
        for _, value in node.value:
            _refuse_doubled_keys(yaml, value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_doubled_keys(yaml, value)


def check_inside(names: Iterable[str], where: str) -> None:
    """Refuse names of files that are no plain path from the root of the data set.

    Args:
        where: what names them, for the message.

    Raises:
        DataError: a name is absolute, or leads out of the folder by "..".
    """
    for name in names:
        path = PurePath(name)
        if not name.strip() or path.anchor or ".." in path.parts or "\0" in name:
            raise DataError(
                f"{where} names {name!r}; write a path from the data set's root, without '..', and "
                "link or move what lies elsewhere into it"
            )


def check_names(names: Sequence[str], what: str, where: str) -> None:
    """Refuse names of which one is empty, or two are the same but for space around them.

    Args:
        what: they are, in the plural.

    Raises:
        DataError: tells which, and what to do.
    """
    if any(not name.strip() for name in names):
        raise DataError(f"{where}: {what} with an empty name; give each a name of its own")
    if twice := doubled(name.strip() for name in names):
        raise DataError(
            f"{where}: {what} of one name, {first_of(twice)}; give each a name of its own, or make "
            "them one"
        )


def doubled(values: Iterable[Any]) -> list[Any]:
    """Values that occur more than once; TypeError where one cannot be hashed, such as a list."""
    return [value for value, count in Counter(values).items() if count > 1]


def check_cells(images: int, labels: int, where: str) -> None:
    """Refuse a table of labels that no memory holds, before it is made.

    Raises:
        DataError: it has more than `MOST_CELLS` entries.
    """
    if images * labels > MOST_CELLS:
        raise DataError(
            f"{where}: {images:,} images with {labels:,} labels each are more than the "
            f"{MOST_CELLS:,} entries that are held; are these names of labels?"
        )


def first_of(names: Sequence[Any]) -> str:
    """Some of many, for a message."""
    more = len(names) - _NAMED_IN_ERROR
    shown = ", ".join(repr(name) for name in names[:_NAMED_IN_ERROR])
    return shown + (f" and {more} more" if more > 0 else "")
