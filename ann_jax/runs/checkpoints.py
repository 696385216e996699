"""Checkpoints of a run, each a tree of arrays: the newest two and the best by mIoU are kept.

The data stream is a pure function of the seed and the step (`data.pipeline`), so the step in the name of a
checkpoint is also the complete state of the iterator.

checkpoints/<step>/           state and facts, renamed into place when complete, in a bucket marked
checkpoints/scores.json       mIoU by step, and how it was made: evaluation follows saving
checkpoints/damaged.<step>/   moved out of the way: its content is not what was saved
checkpoints/damaged.scores.json   a copy; while it is there, checkpoints before the first score are kept

Orbax restores a flipped byte without an error, so the facts hold a checksum of every array and of themselves.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ann_jax import __version__
from ann_jax.buckets import reasons
from ann_jax.buckets.paths import telling_if_slow
from ann_jax.buckets.services import remote
from ann_jax.errors import ConfigError, DataError, SaveError, VersionError, listed
from ann_jax.files import move, replacing, special, write_json, writing
from ann_jax.parallel import processes
from ann_jax.runs.facts import Damaged, damaged, digest_json, read_facts, unknown_items
from ann_jax.runs.history import not_understood
from ann_jax.runs.log import hide_late_calls
from ann_jax.runs.staged import StagedManager

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _NewestAndBest:
    """Keeps the two newest checkpoints and the best one, in the protocol of orbax."""

    folder: Path
    best: Callable[[], Collection[int]]  # one for each way in which scores were made

    def should_preserve(self, checkpoints, *, context):
        newest = {info.step for info in checkpoints[-2:]}
        kept = newest | {*self.best()}
        # A link is the user's, and what it leads to need not belong to this run.
        linked = lambda step: not remote(self.folder) and (self.folder / str(step)).is_symlink()
        return [info.step in kept or linked(info.step) for info in checkpoints]


class Checkpoints:
    """The checkpoints in one folder; saving runs in the background."""

    def __init__(self, folder: Path):
        """Opens the folder, and creates it if necessary.

        Raises:
            SaveError: it cannot be created.
            DataError: it holds a pipe, a socket or a device, for which orbax would wait; or its bucket does
                not let the scores be read.
            ConfigError: it is in a bucket, under a name that the libraries misunderstand.
        """
        self._manager: ocp.CheckpointManager | StagedManager
        self.folder = folder if remote(folder) else Path(folder).absolute()
        hide_late_calls()
        if not remote(self.folder):
            _refuse_special(self.folder)
        elif odd := sorted({*'#?*[]'} & {*str(self.folder)}) or ['..'] * ('..' in self.folder.parts):
            raise ConfigError(
                f'{self.folder}: the libraries of buckets read {" ".join(odd)} as a pattern, a part of an '
                'address or a way up, and would mix up the checkpoints: name the run without'
            )
        policy = _NewestAndBest(self.folder, self._best_of_each)
        with writing(self.folder):
            if remote(self.folder):
                self._manager = StagedManager(self.folder, policy.should_preserve)
            else:
                options = ocp.CheckpointManagerOptions(preservation_policy=policy)
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._damaged_scores = self.folder / 'damaged.scores.json'
        self._lost: bytes | None = None  # what cannot be read of the scores
        self._unknown = False  # whether some were lost; asked once, for all processes ask
        self._scores, self._made = self._read_scores()

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Saves a tree of arrays under a step, with its facts (JSON).

        Raises:
            SaveError: this save or the previous one failed; earlier checkpoints are intact. Or the folder was
                removed during the run.
        """
        if not remote(self.folder) and not self.folder.is_dir():
            raise SaveError(
                f'{self.folder} was removed during the run, and earlier checkpoints with it: restore a copy, '
                'or run the same command again to start over'
            )
        host = jax.device_get(state)
        arrays = {name: [*_kind(x), _digest(np.asarray(x))] for name, x in _leaves(host)}
        facts = facts | {'version': __version__, 'arrays': arrays}
        facts = facts | {'checksum': digest_json(facts)}
        # Of checkpoints that were moved away, before saving, which keeps the best.
        if late := [number for number in self._scores if number >= step]:
            for number in late:
                del self._scores[number]
            self._write_scores()
        content = host if isinstance(self._manager, StagedManager) else state
        args = ocp.args.Composite(state=ocp.args.StandardSave(content), facts=ocp.args.JsonSave(facts))
        try:
            with telling_if_slow(self.folder, 'saving'):
                self._manager.save(step, args=args)
        except Exception as error:  # tensorstore's errors have no type of their own
            raise self._cannot_save(error) from error

    def score(self, step: int, miou: float, made: str = '') -> None:
        """Records the score of a saved step, and how it was made: only scores made alike are compared.

        Raises:
            SaveError: it cannot be written.
        """
        self._scores[step], self._made[step] = miou, made
        self._write_scores()

    def scored(self, step: int) -> bool:
        """Whether the step has a score."""
        return step in self._scores

    @property
    def scores(self) -> dict[int, float]:
        """mIoU by step."""
        return dict(self._scores)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, intact or not, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return max(self.steps, default=None)

    @property
    def reached(self) -> int:
        """The newest step of which the facts can be read, 0 if there is none; not that of an empty folder."""
        for step in self.steps:
            try:
                self.facts(step)
            except Damaged:
                continue
            except VersionError:
                pass  # restoring it says what is unknown
            return step
        return 0

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest mIoU of those made as the newest; None if there is none."""
        scored = self._comparable(max(self._scores, default=0)) & {*self.steps}
        return max(scored, key=lambda step: (self._scores[step], step), default=None)

    def without_better(self, step: int) -> int:
        """Number of evaluations up to a step since the one that first had the highest mIoU."""
        steps = sorted(self._comparable(step))
        best = max(steps, key=lambda number: (self._scores[number], -number), default=None)
        return sum(number > best for number in steps) if best is not None else 0

    def _comparable(self, last):
        """The steps up to a last one whose scores were made as that of the newest of them."""
        steps = {number for number in self._scores if number <= last}
        made = self._made.get(max(steps, default=0), '')
        # Earlier versions did not record it.
        return {number for number in steps if self._made.get(number, '') in ('', made)}

    def _best_of_each(self):
        """The best checkpoint of each way in which scores were made."""
        found = {}
        for step in sorted({*self.steps} & self._scores.keys(), key=lambda each: (self._scores[each], each)):
            found[self._made.get(step, '')] = step
        unknown = []
        if self._unknown:
            # Any of those before the first score may be the best.
            unknown = [step for step in self.steps if step < min(self._scores, default=np.inf)]
        return [*found.values(), *filter(None, [self.best]), *unknown]

    def first_whole(self, steps: Iterable[int], read: Callable[[int, dict], Any]) -> tuple[int, dict, Any]:
        """Reads the first intact checkpoint among some steps, and logs the damaged ones before it.

        Args:
            steps: in order of preference.
            read: given step and facts, reads what is needed from a checkpoint with `restore` or `read`.

        Returns:
            Step, facts and what was read.

        Raises:
            DataError: none is intact.
            VersionError: the first intact one was written by another version.
            ConfigError: from `read`.
        """
        errors = []
        for step in steps:
            try:
                facts = self.facts(step)
                content, error = read(step, facts), None
            except Damaged as damage:
                error = damage
            if processes.all_agree(error is None):
                return step, facts, content
            errors.append(error or Damaged(f'{self.folder / str(step)} cannot be read by another process'))
            logger.warning('%s: using another checkpoint', errors[-1])
        raise DataError(
            f'{self.folder} has no intact checkpoint ({"; ".join(map(str, errors))}): '
            'move it away to start over, or restore a copy'
        )

    def restore(self, step: int, like: Any) -> Any:
        """Reads the whole tree; `like` gives its structure, shapes, dtypes and shardings.

        Raises:
            Damaged: it is not what was saved.
            ConfigError: names or shapes of its arrays differ from `like`; the message lists them.
            VersionError: it has parts that this version does not know.
        """
        facts, arrays = self.facts(step), self._arrays(step)
        self._refuse_parts(step, facts, arrays, like)
        self._refuse_others(step, arrays, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            with telling_if_slow(self.folder, 'reading'):
                state = self._manager.restore(step, args=args)['state']
        except Exception as error:  # any error: the names and shapes fit, so the files are to blame
            raise damaged(self.folder / str(step), error) from error
        self._verify(step, state)
        return state

    def read(self, step: int, names: Sequence[str]) -> dict[str, Any]:
        """Reads some branches of the saved tree, as dicts of NumPy arrays.

        Raises:
            Damaged: they are not what was saved.
            VersionError: a branch is missing.
        """
        folder = self.folder / str(step)
        found = self._saved(step)
        if missing := [name for name in names if name not in found]:
            raise not_understood(
                folder,
                self.facts(step).get('version'),
                f'its state has no {", ".join(missing)}, only {", ".join(map(str, found)) or "nothing"}',
            )
        tree = {name: found[name] for name in names}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy, partial_restore=True)
        try:
            with telling_if_slow(self.folder, 'reading'):
                content = ocp.PyTreeCheckpointHandler().restore(self._readable(step) / 'state', args=args)
        except Exception as error:
            raise damaged(folder, error) from error
        self._verify(step, content)
        return content

    def differing(self, step: int, like: Any) -> list[str]:
        """Names of the arrays of which only one, the saved tree or `like`, has any, or that differ in shape.

        Raises:
            Damaged, VersionError: the saved tree cannot be read.
        """
        arrays = self._arrays(step)
        expected = {name: _kind(x) for name, x in _leaves(like)}
        same = lambda name: name in arrays and arrays[name][:2] == expected.get(name)
        return [name for name in sorted(arrays.keys() | expected.keys()) if not same(name)]

    def _arrays(self, step):
        """Dtype, shape and, but in the first commits, checksum of every saved array, by name."""
        saved = self.facts(step).get('arrays')
        return saved or {name: _kind(x) for name, x in _leaves(self._saved(step))}

    def branches(self, step: int) -> list[str]:
        """Names of the branches of a saved tree, such as 'params'.

        Raises:
            Damaged: they cannot be read.
        """
        return list(self._saved(step))

    def _saved(self, step):
        """Shapes and dtypes of the saved tree, in dicts and lists."""
        try:
            return ocp.PyTreeCheckpointHandler().metadata(self._readable(step) / 'state').tree
        except Exception as error:
            raise damaged(self.folder / str(step), error) from error

    def _readable(self, step):
        """The folder of a checkpoint, or of a copy, where orbax can read it."""
        if isinstance(self._manager, StagedManager):
            with telling_if_slow(self.folder, 'reading'):
                return self._manager.copy_of(step)
        return self.folder / str(step)

    def _verify(self, step, tree):
        arrays = self.facts(step).get('arrays')
        if arrays is None:
            logger.warning('%s has no checksums: its content cannot be verified', self.folder / str(step))
            return
        for name, x in _leaves(jax.device_get(tree)):
            if name not in arrays or _digest(np.asarray(x)) != arrays[name][-1]:
                raise damaged(self.folder / str(step), f'{name} is not what was saved')

    def facts(self, step: int) -> dict[str, Any]:
        """Reads the facts of a checkpoint, see `read_facts`.

        Raises:
            Damaged, VersionError: as there.
        """
        self._manager.wait_until_finished()  # this step may still be being saved
        return read_facts(self.folder / str(step))

    def set_aside(self, steps: Iterable[int]) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again; nothing is deleted.

        Raises:
            SaveError: the folder cannot be written.
        """
        for step in steps:
            self._scores.pop(step, None)
            if processes.is_main():
                aside = self.folder / f'damaged.{step}'
                number = 1
                while aside.exists():
                    number += 1
                    aside = self.folder / f'damaged.{step}.{number}'
                with writing(self.folder):
                    move(self.folder / str(step), aside)
                logger.warning('checkpoint %d is damaged: moved to %s', step, aside)
        self._write_scores()
        processes.all_agree(True)  # the other processes wait for the renaming
        self._manager.reload()

    def check(self) -> None:
        """Raises the error of a background save, if it failed.

        Raises:
            SaveError: it failed.
        """
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._cannot_save(error) from error

    def close(self) -> None:
        """Waits for the background save to finish.

        Raises:
            SaveError: it failed.
        """
        try:
            with telling_if_slow(self.folder, 'saving'):
                self._manager.wait_until_finished()
                self._manager.close()
        except Exception as error:
            raise self._cannot_save(error) from error

    def _read_scores(self) -> tuple[dict[int, float], dict[int, str]]:
        scores: dict[int, float] = {}
        made: dict[int, str] = {}
        for step in self.steps:  # the first commits saved them with the state
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                file = self.folder / str(step) / 'metrics' / 'metrics'
                scores[step] = float(json.loads(file.read_text(encoding='utf-8'))['miou'])
        path, data = self.folder / 'scores.json', b''
        try:
            self._unknown = self._damaged_scores.exists()
            data = path.read_bytes()
            record = json.loads(data)
            # Earlier versions wrote the mIoU alone.
            pairs = {
                int(step): score if isinstance(score, list) else (score, '') for step, score in record.items()
            }
            found = {step: (float(miou), str(how)) for step, (miou, how) in pairs.items()}
            scores |= {step: miou for step, (miou, _) in found.items()}
            made |= {step: how for step, (_, how) in found.items()}
        except FileNotFoundError:
            pass
        except Exception as error:
            if why := reasons.unavailable(error):  # without them the best checkpoint would be removed
                raise DataError(f'cannot read {path}: {why}') from error
            if not isinstance(error, (OSError, TypeError, ValueError, AttributeError)):
                raise
            logger.warning(
                '%s is damaged (%s): the best checkpoint is unknown, and none of those there is '
                'removed until you remove %s', path, error, self._damaged_scores,
            )  # fmt: skip
            self._lost, self._unknown = data, True
        return scores, made

    def _write_scores(self):
        if processes.is_main():
            if self._lost is not None:
                with replacing(self._damaged_scores) as draft:
                    draft.write_bytes(self._lost)
                self._lost = None
            record = {step: [miou, self._made.get(step, '')] for step, miou in self._scores.items()}
            write_json(self.folder / 'scores.json', record)

    def _refuse_parts(self, step, facts, arrays, like):
        """Refuses items and branches of a newer version that would be lost if the run continued."""
        folder = self.folder / str(step)
        branches = jax.tree_util.tree_leaves_with_path(like, is_leaf=lambda tree: tree is not like)
        known = {jax.tree_util.keystr(path, simple=True) for path, _ in branches}
        unknown = {name.split('/')[0] for name in arrays} - known
        unknown |= unknown_items(folder)
        if unknown:
            raise not_understood(
                folder,
                facts.get('version'),
                f'it also holds {", ".join(sorted(unknown))}, which would be lost if the run continued',
                f'start a new run from its weights with --config.init.from={folder} and another --workdir',
            )

    def _refuse_others(self, step, arrays, like):
        expected = {name: _kind(x) for name, x in _leaves(like)}
        lines = []
        for name in self.differing(step, like):
            show = lambda kind: f'{kind[0]} {tuple(kind[1])}' if kind else 'nothing'
            lines.append(
                f'{name}: saved {show(arrays.get(name))}, the network has {show(expected.get(name))}'
            )
        if lines:
            raise ConfigError(
                f'{self.folder / str(step)} belongs to another network:{listed(lines)}\n'
                f'to start from what fits: --config.init.from={self.folder.parent} '
                '--config.init.parts=but_classifier (or backbone), and another --workdir'
            )

    def _cannot_save(self, error):
        if why := reasons.reason(error):
            return SaveError(
                f'cannot save a checkpoint to {self.folder}: {why}; earlier checkpoints are intact'
            )
        text = ' '.join(str(error).split())
        number = re.search(r"os_error_code='(\d+)'", text)  # which follows the names of several files
        text = os.strerror(int(number[1])) if number else text[:300]
        text = reasons.temporary(text) if remote(self.folder) else f'{text}. Free space or make it writable'
        return SaveError(
            f'cannot save a checkpoint to {self.folder}: {text}, then run the same command again; earlier '
            'checkpoints are intact'
        )


def _refuse_special(folder):
    # Of links to folders, only those in place of a checkpoint are followed.
    links = [path for path in folder.iterdir() if path.is_symlink()] if folder.is_dir() else []
    for top in (folder, *links):
        for where, _, names in os.walk(top):
            for path in (Path(where, name) for name in names):
                if what := special(path):
                    raise DataError(f'{path} is {what}, not a file of a checkpoint: move it away')


def _leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in flat]


def _kind(array):
    return [str(array.dtype), list(array.shape)]


def _digest(array):
    # NumPy's stubs declare the buffer only for Python 3.12; `.data` would refuse bfloat16.
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()  # type: ignore[arg-type]
