"""Weights on a hub of models, addressed as hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

A repository holds a weights folder of this package, or a ResNet as timm and transformers lay them out: a
config.json and model.safetensors. Files are fetched by huggingface_hub, which keeps them in its cache and,
with HF_HUB_OFFLINE=1, takes them from there alone.
"""

import functools
import logging
import os
import re
from pathlib import Path, PurePath
from typing import Any

from ann_jax.buckets.paths import place
from ann_jax.errors import ConfigError

# Files of a foreign network, by preference; beside each lies a config.json.
FOREIGN = ('model.safetensors', 'pytorch_model.bin')
_ABSENT = 'is not there, or private: check the name, or run hf auth login'
_ADDRESS = re.compile(r'hf:/+([\w.-]+/[\w.-]+)(?:@(.+))?')  # a `Path` has merged its slashes


def located(path: str | Path) -> Path:
    """The path of weights on this machine; those on a hub are fetched.

    Args:
        path: of anything, or hf://OWNER/NAME[@REVISION], where a revision is a branch, a tag or a commit.
            What lies in a bucket stays there.

    Raises:
        ConfigError: the address is wrong, the hub has no such weights, or it cannot be reached.
    """
    text = path.as_posix() if isinstance(path, PurePath) else os.fspath(path)
    if not text.startswith('hf:/'):
        return place(path)
    if not (found := _ADDRESS.fullmatch(text)):
        raise ConfigError(f'{text}: must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION')
    return _fetch(found[1], found[2])


def _fetch(repository, revision):
    """The folder in the hub's cache, with the files that are needed."""
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ConfigError(f"hf://{repository} needs huggingface_hub: pip install 'ann_jax[hub]'") from error
    for library in ('httpx', 'httpx2'):  # which log every request
        logging.getLogger(library).setLevel(logging.WARNING)
    name = f'hf://{repository}' + (f'@{revision}' if revision else '')
    get = functools.partial(hf_hub_download, repository)

    def first(names, revision):
        """The first of some files that is there, in a folder that is called by its commit."""
        for file in names[:-1]:
            try:
                return Path(get(file, revision=revision))
            except errors.EntryNotFoundError:
                pass
        return Path(get(names[-1], revision=revision))

    try:
        found = first(('model.json', 'config.json'), revision)
        commit = found.parent.name  # of all files, whatever happens on the hub meanwhile
        if found.name == 'model.json':
            first(('weights.safetensors', 'weights.npz'), commit)
        else:
            first(FOREIGN, commit)
            if 'architectures' in found.read_text(encoding='utf-8'):  # transformers keeps the mean elsewhere
                first(('preprocessor_config.json', 'config.json'), commit)
        return found.parent
    except Exception as error:  # also those of whatever library of HTTP it uses
        raise ConfigError(f'{name}: {_reason(error, errors, revision)}') from error


def _reason(error, errors, revision):
    """What went wrong, and what to do; the narrower errors first."""
    for kind, reason in (
        (errors.LocalEntryNotFoundError, _unreached(error)),
        (errors.GatedRepoError, 'its owner must grant access: ask on its page, then run hf auth login'),
        (errors.RevisionNotFoundError, f'has no revision {revision or "main"}: name a branch, tag or commit'),
        (errors.RepositoryNotFoundError, _ABSENT),
        (
            errors.EntryNotFoundError,
            f'holds neither model.json of ann_jax nor config.json with {" or ".join(FOREIGN)}',
        ),
    ):
        if isinstance(error, kind):
            return reason
    if _status(error) in (401, 403, 404):
        return _ABSENT
    line = str(error).strip().split('\n')[0]
    return f'cannot be fetched, try again: {line or type(error).__name__}'


def _status(error):
    """The status of the hub's answer that led to an error, or None."""
    while error is not None:
        if (status := getattr(getattr(error, 'response', None), 'status_code', None)) is not None:
            return status
        error = error.__cause__ or error.__context__
    return None


def _unreached(error):
    """Why a file that is not in the cache was not fetched."""
    match _status(error):
        case None:
            return (
                'not in the cache, and the hub is not reached (offline, or HF_HUB_OFFLINE is set): fetch it '
                'once where there is a connection'
            )
        case 401 | 403 | 404:
            return _ABSENT
        case status:
            return f'not in the cache, and the hub answers {status}: try again later'


def foreign(folder: Path) -> Path | None:
    """The file of a network that lies in a folder as timm and transformers lay it out, or None."""
    if not (folder / 'config.json').is_file() or (folder / 'model.json').is_file():
        return None
    return next((folder / name for name in FOREIGN if (folder / name).is_file()), None)


def origin(path: Path) -> dict[str, Any]:
    """{'hub': its address with the commit} of a file in the cache of a hub; {} of other files."""
    snapshots, commit = path.parent.parent, path.parent.name
    if snapshots.name != 'snapshots' or not snapshots.parent.name.startswith('models--'):
        return {}
    owner, _, name = snapshots.parent.name.removeprefix('models--').partition('--')
    return {'hub': f'hf://{owner}/{name}@{commit}'}
