"""Buckets of Google Cloud Storage in the place of folders: gs://BUCKET/NAME.

A path in a bucket is an `epath.Path`, which reads, writes and lists like a `pathlib.Path`; orbax takes it
too. An object appears whole when its last byte has arrived, so none is ever half written; but it cannot be
appended to or renamed, and there are no folders to make.
"""

import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ann_jax.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r'([a-z][a-z0-9+.-]+):/+(.*)')  # a `Path` has merged its slashes
_SLOW, _TIMEOUT, _LONG = 2.0, 30.0, 60.0  # seconds
_EVERY = 30.0  # seconds between copies of a file that grows
_GRANT = 'grant it roles/storage.objectUser and roles/storage.legacyBucketReader on the bucket'
_LOG_IN = 'run gcloud auth application-default login, or name a key file in GOOGLE_APPLICATION_CREDENTIALS'


class BucketError(OSError):
    """A bucket cannot be read or written; the message says why and what to do."""


class Changed(Exception):
    """An object is not what it was when it was last seen."""


def place(path: str | os.PathLike) -> Path:
    """The path of a folder or file, on this machine or in a bucket.

    Args:
        path: of this machine, ~ allowed, or gs://BUCKET/NAME. When a bucket is first named, it is asked
            whether it can be listed.

    Returns:
        A `pathlib.Path`, or in a bucket an `epath.Path`, which has those of its methods that are used here.

    Raises:
        ConfigError: the storage is not supported, a package is missing, or the bucket cannot be used.
    """
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
    if not inside:
        raise ConfigError(f'gs://{name}: name a folder in the bucket, as in gs://{bucket or "BUCKET"}/run')
    _open(bucket)
    from etils import epath

    here: Any = epath.Path(f'gs://{name}')
    return here


def remote(path: str | os.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return os.fspath(path).startswith('gs:/')  # a `Path` has merged its slashes


@functools.cache
def _open(bucket):
    """Prepares the libraries, and asks the bucket for a name in it."""
    client = _client()
    start = time.perf_counter()
    try:
        # Orbax asks for the first too, each time that it lists checkpoints.
        found = client.get_bucket(bucket, timeout=_TIMEOUT, retry=None)
        next(iter(client.list_blobs(found, max_results=1, timeout=_TIMEOUT, retry=None)), None)
    except Exception as error:
        raise ConfigError(f'gs://{bucket} cannot be used: {_explained(error)}') from error
    took = time.perf_counter() - start
    if took > _SLOW:
        logger.warning(
            'gs://%s took %.1f s to answer two requests: use a bucket in the region of this machine, or save '
            'less often with --config.train.checkpoint_every',
            bucket, took,
        )  # fmt: skip


@functools.cache
def _client():
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
        raise ConfigError(f'gs:// cannot be used: {_explained(error)}') from error


# --- Errors

_LIBRARIES = {'aiohttp', 'asyncio', 'gcsfs', 'google', 'requests', 'socket', 'urllib3'}
# What tensorstore, gcsfs and Google's client say, whose errors have no common type.
_STATUS = re.compile(
    r'HTTP response code: (?P<code>\d{3})|CURL error|(?P<refused>^Forbidden: )|'
    r'^(?P<status>\d{3}) [A-Z]+ https?://'
)
_SILENT = re.compile(r'tim(ed? ?out|eout)|connect|unreachable|resolve', re.IGNORECASE)
_OVERLOADED = (408, 429, 500, 502, 503, 504)


def reason(error: BaseException) -> str:
    """Why a bucket does not do what it is asked, and what to do; '' if the error is not that of a bucket."""
    found = _cause(error) if _client.cache_info().currsize else None
    return _told(*found) if found else ''


def unavailable(error: BaseException) -> str:
    """As `reason`, but '' too if the bucket did answer, such as that there is no such object."""
    found = _cause(error) if _client.cache_info().currsize else None
    if found is None:
        return ''
    seen, status, text = found
    if status:
        failed = status in (401, 403, *_OVERLOADED)
    else:
        failed = isinstance(seen, BucketError) or _is_of_login(seen) or _is_silent(seen, text)
    return _told(*found) if failed else ''


def _cause(error):
    """The error of a library in a chain of errors, the status of its answer or 0, and its text; or None."""
    seen: BaseException | None = error
    while seen is not None:
        text = ' '.join(str(seen).split()) or type(seen).__name__
        found = _STATUS.search(text)
        library = type(seen).__module__.partition('.')[0]
        if found or library in _LIBRARIES or isinstance(seen, (BucketError, TimeoutError)):
            code = str(getattr(seen, 'code', ''))
            if found and not code.isdigit():
                code = found['code'] or found['status'] or ('403' if found['refused'] else '0')
            return seen, int(code) if code.isdigit() else 0, text
        seen = seen.__cause__ or seen.__context__
    return None


def _is_of_login(error):
    return type(error).__module__.startswith('google.auth')


def _is_silent(error, text):
    return bool(_SILENT.search(f'{type(error).__name__} {text}'))


def _told(error, status, text):
    if isinstance(error, BucketError):
        return text
    short = re.sub(r'^\d{3} [A-Z]+ \S+ ', '', text)[:200]  # without the address that was asked
    if _is_of_login(error):
        return f'there are no credentials that work ({short}): {_LOG_IN}'
    if status == 401:
        return f'it does not know who asks (401): {_LOG_IN}'
    if status == 403:
        return f'it refuses this account (403; {short}): {_GRANT}'
    if status == 404:
        return f'there is no such bucket or object (404; {short}): create the bucket, or correct its name'
    if status in _OVERLOADED:
        return f'it is overloaded ({status}): run the same again, and the run goes on'
    if _is_silent(error, text):
        return (
            f'it does not answer ({short}): check the network and STORAGE_EMULATOR_HOST, which must be unset '
            'unless it is an emulator; then run the same again'
        )
    return short


def _explained(error):
    """As `reason`, of an error that can only be that of a bucket."""
    if isinstance(error, FileNotFoundError):
        return _told(error, 404, str(error))
    if 'roject was not passed' in str(error):
        return 'no project is known: set GOOGLE_CLOUD_PROJECT'
    found = _cause(error)
    return _told(*found) if found else f'{type(error).__name__}: {error}'[:300]


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Turns what the libraries raise into a `BucketError`."""
    try:
        yield
    except Exception as error:
        raise BucketError(_explained(error)) from error


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


# --- Whole files


def upload(file: Path, path: Path) -> None:
    """Copies a file of this machine into a bucket, whole or not at all.

    Raises:
        BucketError: it cannot be written.
    """
    with asking(), open(file, 'rb') as source, path.open('wb') as target:
        shutil.copyfileobj(source, target, 2**24)


def upload_folder(folder: Path, path: Path, last: str) -> None:
    """Copies the files of a folder into a bucket, the one named `last` at the end: it marks what is complete.

    Raises:
        BucketError: one cannot be written.
    """
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == last, file.name)):
        upload(file, path / file.name)


def fetched(path: str) -> str:
    """A copy on this machine of a file or folder in a bucket; other paths as given.

    It lasts as long as the process.

    Raises:
        ConfigError: see `place`.
        DataError: it cannot be read.
    """
    if '://' not in path:
        return path
    found = place(path)
    target = Path(tempfile.mkdtemp(dir=_copies().name), found.name)
    try:
        with asking():
            _download(found, target)
    except BucketError as error:
        raise DataError(f'cannot read {path}: {error}') from error
    return str(target)


@functools.cache
def _copies():
    return tempfile.TemporaryDirectory(prefix='ann_jax_')


def _download(path, target):
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        for each in path.iterdir():
            _download(each, target / each.name)
    else:
        with path.open('rb') as source, open(target, 'wb') as copy:
            shutil.copyfileobj(source, copy, 2**24)


def move(path: Path, target: Path) -> None:
    """Moves a folder within a bucket: its objects are copied, and then removed.

    Raises:
        BucketError: it cannot be done; what was not copied is still there.
    """
    with asking():
        bucket, _, start = str(path).removeprefix('gs://').partition('/')
        end = str(target).removeprefix(f'gs://{bucket}/')
        found = _client().bucket(bucket)
        blobs = list(_client().list_blobs(found, prefix=f'{start}/'))
        for blob in blobs:
            found.copy_blob(blob, found, end + blob.name.removeprefix(start))
        for blob in blobs:
            blob.delete()


class Growing:
    """A folder of this machine whose files grow, and are copied to a bucket every half minute and at the end.

    Attributes:
        folder: the folder.
    """

    def __init__(self, path: Path, name: str = ''):
        """Makes the folder, and starts copying to `path`; a file `name` there is fetched, to go on with it.

        Raises:
            BucketError: it cannot be read.
        """
        self._path, self._temporary = path, tempfile.TemporaryDirectory(prefix='ann_jax_')
        self.folder = Path(self._temporary.name)
        with asking():
            if name and (path / name).exists():
                _download(path / name, self.folder / name)
        self._sizes: dict[str, int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copies what is left, and removes the folder.

        Raises:
            BucketError: it cannot be written.
        """
        self._end.set()
        self._thread.join()
        with self._temporary:
            self._copy()

    def _repeat(self):
        told = False
        while not self._end.wait(_EVERY):
            try:
                self._copy()
            except BucketError as error:
                if not told:
                    logger.warning('cannot write to %s yet: %s', self._path, error)
                told = True

    def _copy(self):
        for file in self.folder.iterdir():
            size = file.stat().st_size
            if size != self._sizes.get(file.name):
                upload(file, self._path / file.name)
                self._sizes[file.name] = size


# --- Conditional writes


def read(path: Path) -> tuple[str, int]:
    """Text and generation of an object; '' and 0 if it is not there.

    Raises:
        BucketError: it cannot be read.
    """
    with asking():
        blob = _blob(path)
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

    blob = _blob(path)
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
        _blob(path).delete(if_generation_match=generation)


def _blob(path):
    bucket, _, name = str(path).removeprefix('gs://').partition('/')
    return _client().bucket(bucket).blob(name)
