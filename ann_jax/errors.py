"""Errors that are the user's to mend; the command prints them as one line."""

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Input that cannot be used; the message names the file, the values and the cure."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message names the key, the value and the cure."""


class SaveError(RuntimeError):
    """A file of the run that cannot be written; the message names the file, the reason and the cure."""


def unknown(kind: str, name: object, known: Iterable[object]) -> str:
    """The message for a name that is not among the known ones, with the nearest one if any is near."""
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, 1, 0.5)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    return f'unknown {kind} {name!r}; {hint}known: {", ".join(known)}'
