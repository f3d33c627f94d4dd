"""Arguments of a recipe: words after its name's colon, joined by commas."""

from collections.abc import Collection


def words(arg: str, *allowed: str) -> list[str]:
    """The words of an argument.

    Raises:
        ValueError: one that is not allowed; names those that are.
    """
    given = [word for word in arg.split(",") if word]
    unknown = set(given) - set(allowed)
    if unknown:
        raise ValueError(f"unknown argument {sorted(unknown)}; allowed: {', '.join(allowed)}")
    return given


def one_of(given: Collection[str], choices: Collection[str], default: str) -> str:
    """The first word that is one of the choices."""
    return next((word for word in given if word in choices), default)
