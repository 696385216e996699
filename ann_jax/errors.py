"""Errors that the user can fix; the command prints them as one line."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class DataError(ValueError):
    """Unusable input; the message names the file and the values, and says how to fix it."""


class VersionError(DataError):
    """A file of another version of this package, partly understood; the message says what can be read."""


class ConfigError(ValueError):
    """An unusable setting; the message names the key and the value, and says how to fix it."""


class SaveError(RuntimeError):
    """A file that cannot be written; the message names the file and the reason, and says how to fix it."""


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """Message for an unknown name, with the closest known one if there is any."""
    names = [str(k) for k in known]
    near = [each for each in names if each.lower() == str(name).lower()]
    near = near or difflib.get_close_matches(str(name), names, 1, 0.5)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    return f'unknown {kind} {name!r}; {hint}known: {", ".join(names)}'


def listed(lines: list[str], most: int = 8) -> str:
    """Lines of a message, indented; of many, the first `most` and how many more there are."""
    more = f'\n  and {len(lines) - most} more' if len(lines) > most else ''
    return '\n  ' + '\n  '.join(lines[:most]) + more


def refuse_others(found: Mapping[tuple, Any], expected: Mapping[tuple, Any], problem: str) -> None:
    """Compares the shapes of variables by path.

    Raises:
        DataError: the shapes differ; the message lists where.
    """
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            has, wants = found.get(path, 'absent'), expected.get(path, 'no place for it')
            lines.append(f'{"/".join(path)}: {has}, the network has {wants}')
    if lines:
        raise DataError(f'{problem}:{listed(lines)}')
