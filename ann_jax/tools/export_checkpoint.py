"""Writes a trained ANN as a checkpoint of the authors, mmsegmentation, PaddleSeg or sssegmentation.

    python -m ann_jax.tools.export_checkpoint runs/cityscapes --layout=mmsegmentation --out ann.pth

Reads the best checkpoint of a run, or a weights folder. Writes .pth, which needs torch (`pip install torch`),
.safetensors, or, for PaddleSeg, .pdparams. What tensors do not show is written too, so that converting the
file gives the same network: for mmsegmentation as its config, and for all in the file or in one beside it.
"""

import argparse
import io
import json
import pickle
import sys
from pathlib import Path

from ann_jax.buckets.paths import place
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.files import replacing
from ann_jax.weights import descriptions, mmseg_config, safetensors
from ann_jax.weights.layouts import EXPORTS
from ann_jax.weights.opening import open_network
from ann_jax.weights.torch_state import differences_there, to_torch


def main(argv=None):
    """Parses the command line and exports; user errors end it with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='a run or a weights folder')
    parser.add_argument('--layout', choices=EXPORTS, required=True)
    parser.add_argument('--out', type=Path, required=True, help='.pth, .safetensors or .pdparams, a new file')
    options = parser.parse_args(argv)
    try:
        export(options.source, options.layout, options.out)
    except (ConfigError, DataError, SaveError) as error:
        sys.exit(f'error: {error}')


def export(source, layout, out):
    """Reads, renames and writes."""
    out = place(out)
    endings = ('.pdparams', '.safetensors') if layout == 'paddleseg' else ('.pth', '.safetensors')
    if out.suffix not in endings:
        raise ConfigError(f'--out={out}: must end in {" or ".join(endings)} with --layout={layout}')
    if out.exists():
        raise ConfigError(f'{out} exists: name another file, or remove it first')
    beside = out.with_suffix('.json')
    if out.suffix == '.pdparams' and beside.exists():
        raise ConfigError(f'{beside} exists, and the description would go there: name another file')
    weights = open_network(source)
    state = to_torch(weights.variables, layout, weights.model)
    description = descriptions.describe(weights)
    config = ''
    if layout == 'mmsegmentation':
        crop = weights.source.get('crop')
        config = mmseg_config.write(weights.model, weights.input, len(weights.classes), crop)
    if out.suffix == '.safetensors':
        said = {descriptions.OWN: json.dumps(description), **({'cfg': config} if config else {})}
        safetensors.write(out, state, said)
    elif out.suffix == '.pdparams':
        _write(out, pickle.dumps(state, protocol=4))
        try:
            beside = descriptions.write_beside(out, description)
        except SaveError:
            out.unlink()  # without its description it would be another network
            raise
        print(f'note: {beside} says what tensors do not: keep it beside')
    else:
        _write_pth(out, state, layout, weights, {descriptions.OWN: description, 'cfg': config})
    print(f'{len(state)} tensors in the layout of {layout}; written to {out}')
    print('settings with which that network gives the same outputs:')
    for name, value in {**weights.model, **weights.input}.items():
        print(f'  {name}: {value}')
    for line in differences_there(layout, weights.model):
        print(f'note: {line}')


def _write_pth(out, state, layout, weights, said):
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            f'writing .pth needs torch: pip install torch, or write {out.stem}.safetensors'
        ) from error
    names = {'classes': list(weights.classes), 'palette': [list(color) for color in weights.colors]}
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    key = 'model' if layout == 'sssegmentation' else 'state_dict'
    content = io.BytesIO()  # in memory first: torch has errors of its own for a full disk
    torch.save({'meta': {'dataset_meta': names, **said}, key: tensors}, content)
    _write(out, content.getbuffer())


def _write(out, content):
    with replacing(out) as draft:
        draft.write_bytes(content)


if __name__ == '__main__':
    main()
