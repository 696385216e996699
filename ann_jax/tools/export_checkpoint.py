"""Writes a trained ANN as a checkpoint of the authors, mmsegmentation, PaddleSeg or sssegmentation.

    python -m ann_jax.tools.export_checkpoint runs/cityscapes --layout=mmsegmentation --out ann.pth

Reads the best checkpoint of a run, or a weights folder. Writes .pth, which needs torch, .safetensors, which
needs safetensors (`pip install torch safetensors`), or, for PaddleSeg, .pdparams, which needs nothing more.
"""

import argparse
import pickle
import sys
from pathlib import Path

from ann_jax.errors import ConfigError, DataError
from ann_jax.weights.layouts import EXPORTS, to_torch
from ann_jax.weights.opening import open_network


def main(argv=None):
    """Parses the command line and exports; user errors end it with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='a run or a weights folder')
    parser.add_argument('--layout', choices=EXPORTS, required=True)
    parser.add_argument('--out', type=Path, required=True, help='.pth, .safetensors or .pdparams, a new file')
    options = parser.parse_args(argv)
    try:
        export(options.source, options.layout, options.out)
    except (ConfigError, DataError) as error:
        sys.exit(f'error: {error}')


def export(source, layout, out):
    """Reads, renames and writes."""
    endings = ('.pdparams', '.safetensors') if layout == 'paddleseg' else ('.pth', '.safetensors')
    if out.suffix not in endings:
        raise ConfigError(f'--out={out}: must end in {" or ".join(endings)} with --layout={layout}')
    if out.exists():
        raise ConfigError(f'{out} exists: name another file, or remove it first')
    weights = open_network(source)
    state = to_torch(weights.variables, layout, weights.model)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if out.suffix == '.safetensors':
            from safetensors.numpy import save_file

            save_file(state, out)
        elif out.suffix == '.pdparams':
            out.write_bytes(pickle.dumps(state, protocol=4))
        else:
            import torch

            names = {'classes': list(weights.classes), 'palette': [list(color) for color in weights.colors]}
            tensors = {key: torch.from_numpy(array) for key, array in state.items()}
            key = 'model' if layout == 'sssegmentation' else 'state_dict'
            torch.save({'meta': {'dataset_meta': names}, key: tensors}, out)
    except ImportError as error:
        raise ConfigError(f'writing {out.suffix} needs {error.name}: pip install {error.name}') from error
    print(f'{len(state)} tensors in the layout of {layout}; written to {out}')
    print('settings with which that network gives the same outputs:')
    for name, value in {**weights.model, **weights.input}.items():
        print(f'  {name}: {value}')


if __name__ == '__main__':
    main()
