"""Objects that are written only if nobody else has written them meanwhile."""

import contextlib
from pathlib import Path

from ann_jax.buckets.paths import blob_of
from ann_jax.buckets.reasons import asking


class Changed(Exception):
    """An object is not what it was when it was last seen."""


def read(path: Path) -> tuple[str, int]:
    """Text and generation of an object; '' and 0 if it is not there.

    Raises:
        BucketError: it cannot be read.
    """
    with asking():
        blob = blob_of(path)
        found = blob.bucket.get_blob(blob.name)
        return (found.download_as_text(), int(found.generation)) if found else ('', 0)


def write_if(path: Path, text: str, generation: int) -> int:
    """Writes an object on the condition that its generation still is the given one; returns the new one.

    Args:
        path: of the object.
        text: its content.
        generation: 0 if it must not be there.

    Raises:
        Changed: it is not.
        BucketError: it cannot be written.
    """
    from google.api_core.exceptions import PreconditionFailed

    blob = blob_of(path)
    with asking():
        try:
            blob.upload_from_string(text, if_generation_match=generation)
            return int(blob.generation or 0)
        except PreconditionFailed:
            found, at = read(path)
    if found == text:  # the answer to an earlier try was lost
        return at
    raise Changed


def remove_if(path: Path, generation: int) -> None:
    """Removes an object if its generation still is the given one.

    Raises:
        BucketError: it cannot be removed.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with asking(), contextlib.suppress(NotFound, PreconditionFailed):
        blob_of(path).delete(if_generation_match=generation)
