"""Objects of Google Cloud Storage, by Google's own client; see `services`."""

import contextlib
import functools
import logging
import os
from pathlib import Path
from typing import Any

from ann_jax.buckets.reasons import Changed, explained
from ann_jax.errors import ConfigError

TIMEOUT = 30.0  # seconds


def look(bucket: str) -> None:
    """Asks for a name in the bucket."""
    next(iter(client().list_blobs(bucket, max_results=1, timeout=TIMEOUT, retry=None)), None)


def read(bucket: str, name: str) -> tuple[str, int]:
    """Text and generation of an object; '' and 0 if it is not there.

    Emulators may know no generations.
    """
    from google.api_core.exceptions import NotFound

    blob = client().bucket(bucket).blob(name)
    try:
        text = blob.download_as_text()  # which sets the generation too: between two requests it could change
    except NotFound:
        return '', 0
    return text, int(blob.generation or 0)


def write_if(bucket: str, name: str, text: str, version: Any) -> int:
    """Writes an object if its generation still is the given one, 0 if it must not be there."""
    from google.api_core.exceptions import PreconditionFailed

    blob = client().bucket(bucket).blob(name)
    try:
        blob.upload_from_string(text, if_generation_match=version)
    except PreconditionFailed as error:
        raise Changed from error
    return int(blob.generation or 0)


def remove_if(bucket: str, name: str, version: Any) -> None:
    """Removes an object if its generation still is the given one."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    with contextlib.suppress(NotFound, PreconditionFailed):
        client().bucket(bucket).blob(name).delete(if_generation_match=version)


def upload(bucket: str, name: str, file: Path) -> None:
    """Copies a file of this machine into an object, whole or not at all."""
    client().bucket(bucket).blob(name).upload_from_filename(str(file), retry=_again())


def download(bucket: str, name: str, file: Path) -> None:
    """Copies an object into a file of this machine."""
    client().bucket(bucket).blob(name).download_to_filename(str(file))


def names(bucket: str, prefix: str) -> list[str]:
    """Names of the objects that begin with the prefix."""
    return [blob.name for blob in client().list_blobs(bucket, prefix=prefix)]


def copy(bucket: str, name: str, target: str) -> None:
    """Copies an object within its bucket."""
    here = client().bucket(bucket)
    here.copy_blob(here.blob(name), here, target, retry=_again())


def remove(bucket: str, name: str) -> None:
    """Removes an object if it is there."""
    from google.api_core.exceptions import NotFound

    with contextlib.suppress(NotFound):  # the answer to an earlier try was lost
        client().bucket(bucket).blob(name).delete(retry=_again())


def _again():
    """How requests are repeated: for two minutes; some clients would not repeat those without a condition."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


@functools.cache
def client() -> Any:
    """The client of Google's own library, after gcsfs has been set up."""
    if os.environ.get('STORAGE_EMULATOR_HOST'):
        os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # which does not look at it
    os.environ.setdefault('EPATH_USE_TF', 'false')  # where it is installed, it reports errors in its own way
    for library in ('fsspec', 'gcsfs', 'google', 'urllib3'):  # which print every failure with a traceback
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        import fsspec
        import gcsfs  # noqa: F401
        from google.cloud import storage
    except ImportError as error:
        raise ConfigError(
            f"gs:// needs gcsfs and google-cloud-storage ({error}): pip install 'ann_jax[gcs]'"
        ) from error
    # Other processes write too, so what was listed before does not count.
    settings = fsspec.config.conf.setdefault('gcs', {})
    settings.setdefault('use_listings_cache', False)
    settings.setdefault('requests_timeout', TIMEOUT)
    try:
        return storage.Client()
    except Exception as error:
        raise ConfigError(f'gs:// cannot be used: {explained(error)}') from error
