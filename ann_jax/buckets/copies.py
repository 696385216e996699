"""Copies of whole files from this machine to a bucket, back, and within it."""

import contextlib
import functools
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from ann_jax.buckets.paths import place
from ann_jax.buckets.reasons import BucketError, asking
from ann_jax.buckets.services import opened
from ann_jax.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_EVERY = 30.0  # seconds between copies of a file that grows


def upload(file: Path, path: Path) -> None:
    """Copies a file of this machine into a bucket, whole or not at all.

    Raises:
        BucketError: it cannot be written.
    """
    service, bucket, name = opened(path)
    with asking():  # not through `open`, which on Ctrl-C would end the object where it is
        service.upload(bucket, name, file)


def upload_folder(folder: Path, path: Path, last: str) -> None:
    """Copies the files of a folder into a bucket, the one named `last` at the end: it marks what is complete.

    Raises:
        BucketError: one cannot be written.
    """
    files = [file for file in folder.rglob('*') if file.is_file()]
    for file in sorted(files, key=lambda file: (file == folder / last, file)):
        upload(file, path / file.relative_to(folder).as_posix())


def names(path: Path) -> list[str]:
    """Names of the objects in a folder of a bucket, and in folders in it, relative to it.

    Raises:
        BucketError: they cannot be listed.
    """
    service, bucket, name = opened(path)
    with asking():
        return [each.removeprefix(f'{name}/') for each in service.names(bucket, f'{name}/')]


def remove(path: Path, first: str = '') -> None:
    """Removes a folder of a bucket if it is there, the object named `first` before the others.

    Raises:
        BucketError: it cannot be done.
    """
    service, bucket, name = opened(path)
    for each in sorted(names(path), key=lambda each: each != first):
        with asking():
            service.remove(bucket, f'{name}/{each}')


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
    try:
        with asking():
            target = Path(tempfile.mkdtemp(dir=_copies().name), found.name)
        download(found, target)
    except BucketError as error:
        hint = '; in a bucket, name a folder, not a pattern' if {*'*?['} & {*path} else ''
        raise DataError(f'cannot read {path}: {error}{hint}') from error
    return str(target)


@contextlib.contextmanager
def naming(path: Path, copy: Path) -> Iterator[None]:
    """Lets errors name what can be mended, in the bucket, and not its copy, which goes with the process."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if copy == path:
            raise
        raise type(error)(str(error).replace(str(copy.parent), str(path.parent))) from error


@functools.cache
def _copies():
    return tempfile.TemporaryDirectory(prefix='ann_jax_')


def download(path: Path, target: Path) -> None:
    """Copies a file or folder of a bucket to this machine.

    Raises:
        BucketError: it cannot be read.
    """
    service, bucket, name = opened(path)
    inside = [each for each in names(path) if not each.endswith('/')]  # which stand for empty folders
    with asking():
        if not inside:
            service.download(bucket, name, target)
        for each in inside:
            if '..' in each.split('/'):
                raise BucketError(f'{each} in it leads out of its folder: remove or rename it')
            (target / each).parent.mkdir(parents=True, exist_ok=True)
            service.download(bucket, f'{name}/{each}', target / each)


def move(path: Path, target: Path) -> None:
    """Moves a folder within a bucket: its objects are copied, and then removed.

    Raises:
        BucketError: it cannot be done; what was not copied is still there.
    """
    service, bucket, before = opened(path)
    after = opened(target)[-1]
    with asking():
        for name in names(path):
            service.copy(bucket, f'{before}/{name}', f'{after}/{name}')
    remove(path)


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
                download(path / name, self.folder / name)
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
