"""Paths of this machine and in buckets."""

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
from ann_jax.buckets.services import SERVICES, remote
from ann_jax.errors import ConfigError

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/+(.*)')  # a `Path` has merged its slashes
_SLOW, _LONG = 2.0, 60.0  # seconds


def place(path: str | os.PathLike) -> Path:
    """The path of a folder or file, on this machine or in a bucket.

    Args:
        path: of this machine, ~ allowed, or gs://BUCKET/NAME or s3://BUCKET/NAME. When a bucket is first
            named, it is asked whether it can be listed.

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
    if scheme not in SERVICES:
        known = ' and '.join(f'{each}://BUCKET/NAME ({kept})' for each, (_, kept) in SERVICES.items())
        raise ConfigError(
            f'{scheme}://{name}: only {known} can be used: mount other storage as a file system that can '
            'rename, and name the mounted folder'
        )
    bucket, _, inside = name.partition('/')
    if not inside.strip('./'):
        raise ConfigError(
            f'{scheme}://{name}: name a folder in the bucket, as in {scheme}://{bucket or "BUCKET"}/run'
        )
    _open(scheme, bucket)
    from etils import epath

    here: Any = epath.Path(f'{scheme}://{name}')
    return here


def same(one: str, other: str) -> bool:
    """Whether two texts name one place, relative or not, with ~, a link or a slash at the end; '' is none."""
    plain = lambda text: text.rstrip('/') if '://' in text else os.path.realpath(os.path.expanduser(text))
    return one == other or bool(one and other) and plain(one) == plain(other)


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
def _open(scheme, bucket):
    """Prepares the libraries, and asks the bucket whether it can be listed."""
    service = SERVICES[scheme][0]
    service.client()
    start = time.perf_counter()
    try:
        service.look(bucket)
    except Exception as error:
        raise ConfigError(f'{scheme}://{bucket} cannot be used: {explained(error)}') from error
    took = time.perf_counter() - start
    if took > _SLOW:
        logger.warning(
            '%s://%s took %.1f s to answer: use a bucket in the region of this machine, or save less often '
            'with --config.train.checkpoint_every',
            scheme, bucket, took,
        )  # fmt: skip
