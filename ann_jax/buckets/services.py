"""What buckets are kept by: a module with the same functions for each."""

import os
from pathlib import Path
from types import ModuleType

from ann_jax.buckets import amazon, google

# What a path begins with -> the module, and the service as users know it.
SERVICES: dict[str, tuple[ModuleType, str]] = {
    'gs': (google, 'Google Cloud Storage'),
    's3': (amazon, 'Amazon S3'),
}


def remote(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith(tuple(f'{scheme}:/' for scheme in SERVICES))  # a `Path` merges slashes


def opened(path: Path) -> tuple[ModuleType, str, str]:
    """The module for the bucket of a path, the bucket, and the name of the object, which need not exist."""
    scheme, _, rest = os.fspath(path).partition('://')
    bucket, _, name = rest.partition('/')
    return SERVICES[scheme][0], bucket, name
