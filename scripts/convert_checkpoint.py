"""Converts a torch checkpoint into a folder that training and evaluation start from, without torch.

    python scripts/convert_checkpoint.py resnet101.pth --out weights/resnet101
    python -m ann_jax.main --config=configs/cityscapes.py --config.init.from=weights/resnet101 \
        --config.init.parts=backbone

Reads .safetensors, and .pth (which takes torch); both take `pip install -e '.[convert]'`. The layout is told
by the keys: ResNets of torchvision, timm, mmsegmentation and the authors, and whole ANNs of the last two.
Every tensor is used, or named with the reason why not. What is known of the weights is stored with them; what
the file does not say and the layout leaves open can be given: --align-corners, --classes, --output-stride.
"""

import argparse
import pickle
import re
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np

from ann_jax.errors import ConfigError, DataError
from ann_jax.weights.converter import convert
from ann_jax.weights.folder import save, sha256
from ann_jax.weights.recognize import strip


def main(argv=None):
    """Parses the command line and converts; an error of the user's ends it with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='.pth, .pt or .safetensors')
    parser.add_argument('--out', type=Path, required=True, help='folder to write; must not exist')
    parser.add_argument('--part', choices=('all', 'backbone'), default='all', help='leave the heads out')
    parser.add_argument('--classes', help='dataset whose class names the classifier has, e.g. cityscapes')
    parser.add_argument('--align-corners', choices=('true', 'false'), help='of the resizing of the logits')
    parser.add_argument('--output-stride', type=int, choices=(8, 16, 32), default=8, help='of a whole ANN')
    options = parser.parse_args(argv)
    try:
        run(options)
    except (ConfigError, DataError) as error:
        sys.exit(f'error: {error}')


def run(options):
    """Reads, converts, prints what became of every tensor, and writes the folder."""
    path = options.source
    if options.out.exists():
        raise ConfigError(f'{options.out} exists: name a new folder, or remove it first')
    state, meta = read(path)
    source = {'file': path.name, 'sha256': _check_name(path)}
    try:
        converted = convert(
            state,
            meta,
            name=path.name,
            part=options.part,
            classes=options.classes,
            align_corners=options.align_corners and options.align_corners == 'true',
            output_stride=options.output_stride,
            source=source,
        )
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    save(options.out, converted.weights)
    _print(converted.conversion, converted.weights, converted.notes, options.out)


def read(path):
    """Reads a file without running code from it.

    Returns:
        {key: NumPy array} without wrappers and `module.`, and the `meta` that some files hold.

    Raises:
        DataError: no weights can be read from it.
    """
    if not path.is_file():
        raise DataError(f'{path}: no such file')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    meta = {}
    if isinstance(content, dict):
        meta = content.get('meta') or {}
        for wrapper in ('state_dict', 'model_state_dict', 'model'):
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
                break
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f'{path}: holds a {type(content).__name__}, not a state dict of names and tensors')
    state = {key: value for key, value in strip(content).items() if hasattr(value, 'shape')}
    if not state:
        raise DataError(f'{path}: holds no tensors, only {", ".join(list(content)[:4]) or "nothing"}')
    return {key: _to_numpy(path, key, value) for key, value in state.items()}, meta


def _read_safetensors(path):
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise DataError(f"{path}: reading it takes safetensors: pip install -e '.[convert]'") from error
    try:
        return load_file(path)
    except Exception as error:  # its own error is no public class of every version
        raise DataError(f'{path}: is no whole safetensors file ({error}): get it again') from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise DataError(f"{path}: reading it takes torch: pip install -e '.[convert]'") from error
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch itself does not look at the checksums.
                if (bad := archive.testzip()) is not None:
                    raise DataError(f'{path}: is damaged (checksum of {bad}): get it again')
        return torch.load(path, map_location='cpu', weights_only=True)
    except DataError:
        raise
    except Exception as error:  # a damaged file can raise anything
        text = str(error)
        if named := re.search(
            r'(?:Unsupported (?:global|class|operand): )?GLOBAL (\S+)|Unsupported class (\S+)', text
        ):
            raise DataError(
                f'{path}: refused, because it wants {named[1] or named[2]}, which could run any code; if you '
                'trust it, open it where it was made and save its state dict alone'
            ) from error
        if isinstance(error, pickle.UnpicklingError) and 'Weights only' in text:
            reason = 'something else than tensors'
        else:
            reason = (text.splitlines() or [type(error).__name__])[0]
        raise DataError(f'{path}: is no whole torch file ({reason}): get it again') from error


def _to_numpy(path, key, value):
    if isinstance(value, np.ndarray):
        array = value
    else:
        if value.is_quantized or value.layout.__str__() != 'torch.strided':
            raise DataError(f'{path}: {key} is quantized or sparse, which is not supported')
        array = value.detach().float().numpy() if value.is_floating_point() else value.numpy()
    return array.astype(np.float32) if array.dtype.kind == 'f' or array.dtype.name == 'bfloat16' else array


def _check_name(path):
    """Returns the checksum of a file; many are published under a name that ends in its first digits."""
    digest = sha256(path)
    if (name := re.search(r'-([0-9a-f]{8,64})$', path.stem)) and not digest.startswith(name[1]):
        raise DataError(
            f'{path}: its name promises a checksum that begins with {name[1]}, it is {digest[:8]}: get it '
            'again, or rename it if you wrote it anew'
        )
    return digest


def _print(result, weights, notes, out):
    for key, path in result.used.items():
        print(f'{key} -> {"/".join(path)}')
    for key, reason in sorted(result.ignored.items()):
        print(f'{key} left out: {reason}')
    print(f'\n{weights.source["layout"]}')
    for name, value in {**weights.model, **weights.input}.items():
        print(f'  {name}: {value}')
    if weights.classes:
        print(f'  classes: {len(weights.classes)} ({", ".join(weights.classes[:4])}, ...)')
    reasons = ', '.join(sorted({reason.split(' of ')[0] for reason in result.ignored.values()}))
    count = sum(np.prod(value.shape, dtype=int) for value in jax.tree.leaves(weights.variables))
    for note in notes:
        print(f'note: {note}')
    print(
        f'{len(result.used)} tensors converted ({count:,} numbers), {len(result.ignored)} left out'
        f'{f" ({reasons})" if reasons else ""}; written to {out}'
    )


if __name__ == '__main__':
    main()
