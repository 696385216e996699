"""Paths of this machine and in buckets, and the client that asks Google's storage."""

import contextlib
import functools
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ann_jax.buckets.reasons import explained
from ann_jax.errors import ConfigError

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/+(.*)')  # a `Path` has merged its slashes
_SLOW, _TIMEOUT, _LONG = 2.0, 30.0, 60.0  # seconds


def place(path: str | os.PathLike) -> Path:
    """The path of a folder or file, on this machine or in a bucket.

    Args:
        path: of this machine, ~ allowed, or gs://BUCKET/NAME. When a bucket is first named, it is asked
            whether it can be listed.

    Returns:
        A `pathlib.Path`, or in a bucket an `epath.Path`, which has those of its methods that are used here.

    Raises:
        ConfigError: the path is empty, the storage is not supported, a package is missing, or the bucket
            cannot be used.
    """
    if path == '':  # which would be the current folder
        raise ConfigError('an empty path was given: name a folder or file')
    found = _ADDRESS.fullmatch(os.fspath(path))
    if found is None:
        return Path(path).expanduser()
    scheme, name = found[1], found[2].strip('/')
    if scheme != 'gs':
        raise ConfigError(
            f'{scheme}://{name}: only buckets of Google Cloud Storage, gs://BUCKET/NAME, can be used: mount '
            'other storage as a file system that can rename, and name the mounted folder'
        )
    bucket, _, inside = name.partition('/')
    if not inside.strip('./'):
        raise ConfigError(f'gs://{name}: name a folder in the bucket, as in gs://{bucket or "BUCKET"}/run')
    _open(bucket)
    from etils import epath

    here: Any = epath.Path(f'gs://{name}')
    return here


def remote(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith('gs:/')  # a `Path` has merged its slashes


@contextlib.contextmanager
def telling_if_slow(path: Path, what: str) -> Iterator[None]:
    """Warns if something takes a bucket over a minute; its libraries try again for long without a word."""
    if not remote(path):
        yield
        return
    timer = threading.Timer(
        _LONG,
        logger.warning,
        (
            '%s: %s takes over %.0f s, and the run waits: the bucket is slow or does not answer: check the '
            'network',
            path, what, _LONG,
        ),
    )  # fmt: skip
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@functools.cache
def _open(bucket):
    """Prepares the libraries, and asks the bucket for a name in it."""
    service = client()
    start = time.perf_counter()
    try:
        # Orbax asks for the first too, each time that it lists checkpoints.
        found = service.get_bucket(bucket, timeout=_TIMEOUT, retry=None)
        next(iter(service.list_blobs(found, max_results=1, timeout=_TIMEOUT, retry=None)), None)
    except Exception as error:
        raise ConfigError(f'gs://{bucket} cannot be used: {explained(error)}') from error
    took = time.perf_counter() - start
    if took > _SLOW:
        logger.warning(
            'gs://%s took %.1f s to answer two requests: use a bucket in the region of this machine, or save '
            'less often with --config.train.checkpoint_every',
            bucket, took,
        )  # fmt: skip


def blob_of(path: Path) -> Any:
    """The object of a path in a bucket, as Google's own library has it; it need not exist."""
    bucket, _, name = str(path).removeprefix('gs://').partition('/')
    return client().bucket(bucket).blob(name)


@functools.cache
def client() -> Any:
    """The client of Google's own library, after all others have been set up."""
    env = os.environ
    if host := env.get('STORAGE_EMULATOR_HOST'):
        # Which tensorstore and a part of gcsfs do not look at.
        env.setdefault('TENSORSTORE_GCS_HTTP_URL', host if '://' in host else f'http://{host}')
        env.setdefault('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'none')
        env.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    # A connection on which nothing moves is given up, and the request made again.
    env.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', f'{_TIMEOUT:.0f}')
    env.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '1')
    env.setdefault('EPATH_USE_TF', 'false')  # where it is installed, it reports errors in its own way
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
    # Other processes and tensorstore write too, so what was listed before does not count.
    settings = fsspec.config.conf.setdefault('gcs', {})
    settings.setdefault('use_listings_cache', False)
    settings.setdefault('requests_timeout', _TIMEOUT)
    try:
        return storage.Client()
    except Exception as error:
        raise ConfigError(f'gs:// cannot be used: {explained(error)}') from error
