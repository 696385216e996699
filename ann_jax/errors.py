"""Errors that are the user's to mend; the command prints them as one line."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class DataError(ValueError):
    """Input that cannot be used; the message names the file, the values and the cure."""


class VersionError(DataError):
    """A file of another version of this package, understood in part; the message says what can be taken."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key, the value and the cure."""


class SaveError(RuntimeError):
    """A file of the run that cannot be written; the message names the file, the reason and the cure."""


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """The message for a name that is not among the known ones, with the nearest one if any is near."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    return f'unknown {kind} {name!r}; {hint}known: {", ".join(names)}'


def listed(lines: list[str], most: int = 8) -> str:
    """Lines of a message, indented; the first of many, and how many more there are."""
    more = f'\n  and {len(lines) - most} more' if len(lines) > most else ''
    return '\n  ' + '\n  '.join(lines[:most]) + more


def refuse_others(found: Mapping[tuple, Any], expected: Mapping[tuple, Any], problem: str) -> None:
    """Compares the shapes of variables by path.

    Raises:
        DataError: they differ; the message lists where.
    """
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            has, wants = found.get(path, 'absent'), expected.get(path, 'no place for it')
            lines.append(f'{"/".join(path)}: {has}, the network has {wants}')
    if lines:
        raise DataError(f'{problem}:{listed(lines)}')
