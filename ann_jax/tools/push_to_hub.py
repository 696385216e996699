"""Uploads trained weights to the Hugging Face hub, from where others open them.

    python -m ann_jax.tools.push_to_hub runs/cityscapes OWNER/NAME --license=apache-2.0

Reads the best checkpoint of a run, or a weights folder, and needs huggingface_hub (`pip install
'ann_jax[hub]'`) and its login (`hf auth login`). `ann_jax.load('hf://OWNER/NAME')` opens the result.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.weights import folder
from ann_jax.weights.opening import open_weights


def main(argv=None):
    """Parses the command line and uploads; user errors end it with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', help='a run or a weights folder')
    parser.add_argument('name', help='OWNER/NAME on the hub; created if there is none')
    parser.add_argument('--license', help='of the weights, as the hub spells it, such as apache-2.0')
    parser.add_argument('--revision', help='branch to write; main if not given')
    parser.add_argument('--private', action='store_true', help='create it for yourself alone')
    options = parser.parse_args(argv)
    try:
        print(push(options.source, options.name, options.license, options.revision, options.private))
    except (ConfigError, DataError, SaveError) as error:
        sys.exit(f'error: {error}')


def push(source, name, licence=None, revision=None, private=False):
    """Uploads; returns what was written, in words."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigError("needs huggingface_hub: pip install 'ann_jax[hub]'") from error
    weights = open_weights(source)
    if licence:
        weights = dataclasses.replace(weights, source={**weights.source, 'license': licence})
    api = HfApi(library_name='ann_jax')
    with tempfile.TemporaryDirectory() as temporary:
        draft = Path(temporary) / 'weights'
        folder.save(draft, weights)
        try:
            api.create_repo(name, private=private or None, exist_ok=True)
            if revision:
                api.create_branch(name, branch=revision, exist_ok=True)
            message = f'Weights of {Path(source).name}'
            commit = api.upload_folder(
                repo_id=name, folder_path=draft, revision=revision, commit_message=message
            )
        except Exception as error:  # also those of whatever library of HTTP it uses
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            cure = 'check the network, the name, and hf auth whoami'
            raise ConfigError(f'{name}: cannot be written ({reason}): {cure}') from error
    return f'written to hf://{name}@{commit.oid}'


if __name__ == '__main__':
    main()
