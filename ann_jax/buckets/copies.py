"""Copies of whole files from this machine to a bucket, back, and within it."""

import functools
import logging
import shutil
import tempfile
import threading
from pathlib import Path

from ann_jax.buckets.paths import blob_of, client, place
from ann_jax.buckets.reasons import BucketError, asking
from ann_jax.errors import DataError

logger = logging.getLogger(__name__)

_EVERY = 30.0  # seconds between copies of a file that grows


def upload(file: Path, path: Path) -> None:
    """Copies a file of this machine into a bucket, whole or not at all.

    Raises:
        BucketError: it cannot be written.
    """
    with asking():  # not through `open`, which on Ctrl-C would end the object where it is
        blob_of(path).upload_from_filename(str(file))


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
        bucket = blob_of(path).bucket
        before, after = (f'{blob_of(each).name}/' for each in (path, target))
        blobs = list(client().list_blobs(bucket, prefix=before))
        for blob in blobs:
            bucket.copy_blob(blob, bucket, after + blob.name.removeprefix(before))
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
