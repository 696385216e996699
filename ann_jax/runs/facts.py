"""The facts of a checkpoint, which are saved beside its state: what this version finds in its folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from ann_jax.buckets import reasons
from ann_jax.buckets.services import remote
from ann_jax.errors import DataError
from ann_jax.runs.history import not_understood

ITEMS = ('state', 'facts')
# In the first commits, the config took the place of the facts, and the score was saved with the state.
EARLY_ITEMS = ('config', 'metrics')
COMMITTED = 'commit_success.txt'  # in a bucket, what is written last into a checkpoint, once by orbax itself
FACTS = {'config', 'classes', 'colors', 'backbone', 'started_from', 'images', 'version', 'arrays', 'dataset'}


class Damaged(DataError):
    """A checkpoint whose content is not what was saved."""


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads the facts of the checkpoint in a folder; those of the first commits hold only the config.

    Raises:
        Damaged: they are not what was saved, or the folder is not a checkpoint.
        VersionError: it has no facts that this version can read.
    """
    try:
        if remote(folder) and folder.is_dir() and not (folder / COMMITTED).exists():
            raise Damaged(f'{folder} is not complete: it was being saved when the run ended')
        items = _items(folder)
    except OSError as error:
        if not remote(folder):
            raise
        raise damaged(folder, error) from error
    item = next((name for name in ('facts', 'config') if name in items), None)
    if item is None:
        if unknown_items(folder):
            raise not_understood(
                folder,
                None,
                f'it holds {", ".join(sorted(items))} in place of {" and ".join(ITEMS)}',
            )
        files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if files and not items:
            raise Damaged(f'{folder} is not a checkpoint: it holds {", ".join(files[:5])}')
    try:
        facts = dict(ocp.JsonCheckpointHandler().restore(folder / (item or 'facts')))
    except Exception as error:
        raise damaged(folder, error) from error
    if item == 'config':
        return {'config': facts}
    checksum = facts.pop('checksum', None)
    if checksum is not None and checksum != digest_json(facts):
        raise damaged(folder, 'its facts are not what was saved')
    return facts


def unknown_parts(folder: Path, facts: Mapping[str, Any]) -> set[str]:
    """Names of items and facts in a checkpoint that this version does not know."""
    return unknown_items(folder) | (facts.keys() - FACTS)


def unknown_items(folder: Path) -> set[str]:
    """Names of items in a checkpoint that this version does not know."""
    return _items(folder).keys() - {*ITEMS, *EARLY_ITEMS}


def _items(folder):
    """Items of a checkpoint, on disk or in orbax's record of it -> whether they are on disk."""
    try:
        record = json.loads((folder / '_CHECKPOINT_METADATA').read_text(encoding='utf-8'))['item_handlers']
        names = set(record) if isinstance(record, dict) else set()
    except (OSError, ValueError, KeyError, TypeError):
        names = set()
    there = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    return {name: name in there for name in names | there}


def damaged(folder: Path, why: object) -> DataError:
    """The error that says why a checkpoint cannot be read; `Damaged`, unless its bucket does not answer."""
    if isinstance(why, Exception) and (reason := reasons.unavailable(why)):
        return DataError(f'cannot read {folder}: {reason}')  # and not another checkpoint either
    text = ' '.join(str(why).split())
    return Damaged(f'{folder} is damaged ({text[:300] or type(why).__name__})')


def digest_json(facts: Mapping[str, Any]) -> str:
    """The checksum of facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
