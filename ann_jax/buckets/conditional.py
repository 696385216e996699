"""Objects that are written only if nobody else has written them meanwhile."""

from pathlib import Path

from ann_jax.buckets.reasons import Changed, asking
from ann_jax.buckets.services import opened

Version = int | str  # of an object, 0 if it is not there


def read(path: Path) -> tuple[str, Version]:
    """Text and version of an object; '' and 0 if it is not there.

    Raises:
        BucketError: it cannot be read.
    """
    service, bucket, name = opened(path)
    with asking():
        return service.read(bucket, name)


def write_if(path: Path, text: str, version: Version) -> Version:
    """Writes an object on the condition that its version still is the given one; returns the new one.

    Args:
        path: of the object.
        text: its content, other than before: the version of the same text may be the same.
        version: 0 if it must not be there.

    Raises:
        Changed: it is not.
        BucketError: it cannot be written.
    """
    service, bucket, name = opened(path)
    with asking():
        try:
            return service.write_if(bucket, name, text, version)
        except Changed:
            found, at = service.read(bucket, name)
    if found == text:  # the answer to an earlier try was lost
        return at
    raise Changed


def remove_if(path: Path, version: Version) -> None:
    """Removes an object if its version still is the given one.

    Raises:
        BucketError: it cannot be removed.
    """
    service, bucket, name = opened(path)
    with asking():
        service.remove_if(bucket, name, version)
