"""Checkpoints in a bucket: orbax makes and reads them in a folder of this machine, and they are copied.

Orbax itself knows Google's buckets only. There its processes wait for each other's folders, which a bucket
does not have, and a checkpoint takes about 150 requests, four times as many as this.
"""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import orbax.checkpoint as ocp

from ann_jax.buckets import copies
from ann_jax.buckets.reasons import asking
from ann_jax.parallel import processes
from ann_jax.runs.facts import COMMITTED


class _Saved(NamedTuple):
    step: int


class StagedManager:
    """What `Checkpoints` uses of orbax's `CheckpointManager`, with the same methods.

    A checkpoint is complete when `commit_success.txt` is in its folder, which is copied last. All processes
    know which are there; process 0 writes and removes them, and each reads a copy of its own.
    """

    def __init__(self, folder: Path, preserved: Callable[..., list[bool]]):
        """Looks which checkpoints there are.

        Args:
            folder: of the checkpoints, in a bucket.
            preserved: the method `should_preserve` of a policy of orbax.

        Raises:
            BucketError: it cannot be listed.
        """
        self._folder, self._preserved = folder, preserved
        self._temporary = tempfile.TemporaryDirectory(prefix='ann_jax_')
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._saving: Future[None] | None = None
        self._before: list[int] = []  # the steps before the last checkpoint
        self.reload()

    def reload(self) -> None:
        """Looks again which checkpoints there are."""
        self._copies: dict[int, Path] = {}
        names = [name.split('/') for name in copies.names(self._folder)]
        self._steps = sorted(int(name[0]) for name in names if name[0].isdigit() and name[1:] == [COMMITTED])
        # Of a run that was killed while it saved or removed them.
        self._halves = {int(name[0]) for name in names if name[0].isdigit() and name[1:]} - {*self._steps}

    def all_steps(self) -> list[int]:
        """Steps of the complete ones."""
        return list(self._steps)

    def save(self, step: int, args: ocp.args.Composite) -> None:
        """Makes a checkpoint of arrays of NumPy, and copies it in the background.

        Raises:
            BucketError: the one before could not be written.
        """
        self.wait_until_finished()
        self._before, steps = self._steps, sorted({*self._steps, step})
        kept = self._preserved([_Saved(each) for each in steps], context=None)
        self._steps = [each for each, stays in zip(steps, kept, strict=True) if stays]
        self._copies.pop(step, None)
        if processes.is_main():
            draft = Path(tempfile.mkdtemp(dir=self._temporary.name), str(step))
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
            )
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
                checkpointer.save(draft, args=args)
            old = {*steps, *self._halves} - {*self._steps}
            self._halves = set()
            self._saving = self._thread.submit(self._copy, draft, old)

    def _copy(self, draft, old):
        (draft / COMMITTED).touch()
        target = self._folder / draft.name
        copies.remove(target, COMMITTED)  # what a run left that was killed while it saved this step
        copies.upload_folder(draft, target, last=COMMITTED)
        shutil.rmtree(draft)
        for step in old:
            copies.remove(self._folder / str(step), COMMITTED)

    def copy_of(self, step: int) -> Path:
        """A copy of a checkpoint on this machine, which lasts until it was restored or the manager is closed.

        Raises:
            BucketError: it cannot be read.
        """
        if step not in self._copies:
            with asking():  # for a full disk is no damage
                target = Path(tempfile.mkdtemp(dir=self._temporary.name), str(step))
            copies.download(self._folder / str(step), target)
            self._copies[step] = target
        return self._copies[step]

    def restore(self, step: int, args: ocp.args.Composite) -> dict[str, Any]:
        """Reads items of a checkpoint.

        Raises:
            BucketError: it cannot be read.
        """
        folder = self.copy_of(step)
        handler = ocp.StandardCheckpointHandler()
        items = {name: handler.restore(folder / name, args=item) for name, item in args.items()}
        shutil.rmtree(self._copies.pop(step))  # a run that goes on does not read it again
        return items

    def check_for_errors(self) -> None:
        """Raises the error of the last checkpoint, if it has one by now."""
        if self._saving and self._saving.done():
            self.wait_until_finished()

    def wait_until_finished(self) -> None:
        """Waits until the last checkpoint is written, and raises its error, once."""
        saving, self._saving = self._saving, None
        if saving:
            try:
                saving.result()
            except Exception:
                self._steps = self._before
                raise

    def close(self) -> None:
        """Waits for the last checkpoint, and removes the copies."""
        try:
            self.wait_until_finished()
        finally:
            self._thread.shutdown()
            self._temporary.cleanup()
