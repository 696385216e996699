"""What to tell the user if a device has too little memory."""

import re

import jax
from ml_collections import ConfigDict

_EXHAUSTED = re.compile(r'RESOURCE_EXHAUSTED|out of memory|Ran out of memory', re.IGNORECASE)


def exhausted(error: BaseException, mode: str, config: ConfigDict) -> str:
    """What to tell the user if a device had not enough memory; '' for other errors.

    Args:
        error: that ended the mode.
        mode: of the command.
        config: of the run.

    Returns:
        One line with the settings that need less.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError) or not _EXHAUSTED.search(str(error)):
        return ''
    reason = ' '.join(str(error).split())[:160]
    cures = _cures_of_training(config) if mode == 'train' else _cures_of_inference(config, mode)
    return f'the memory of a device does not suffice ({reason}): {"; ".join(cures)}'


def _cures_of_training(config):
    c = config.train
    data, space = _mesh_sizes(config)
    each = max(c.batch_size // data, 1)
    cures = []
    parts = [n for n in range(c.accumulate + 1, each + 1) if each % n == 0]
    if parts:
        cures.append(f'--config.train.accumulate={parts[0]} computes a batch in {parts[0]} parts')
    if len(config.model.remat) < 4:
        cures.append('--config.model.remat=2,3,4,5 computes the stages twice')
    if jax.local_device_count() % (2 * space) == 0:
        rest = '' if config.mesh.data == -1 else ' --config.mesh.data=-1'
        cures.append(f'--config.mesh.space={2 * space}{rest} splits images over devices')
    crop = ','.join(map(str, config.augment.crop))
    cures.append(
        f'a smaller --config.augment.crop than {crop}, or --config.train.batch_size than {c.batch_size} '
        f'({each} on each device), needs less too, but changes what is learned'
    )
    return cures


def _cures_of_inference(config, mode):
    cures = []
    if mode == 'predict' and config.predict.batch_size > 1:
        cures.append('--config.predict.batch_size=1')
    least = _mesh_sizes(config)[0]  # an image for each of the devices that share a batch
    if mode == 'evaluate' and config.eval.batch_size > least:
        cures.append(f'--config.eval.batch_size={least}')
    if not config.eval.crop:
        cures.append('--config.eval.crop=769,769 --config.eval.stride=513,513 goes through images in windows')
    elif tuple(config.eval.crop) > (257, 257):
        cures.append('smaller windows, --config.eval.crop=257,257 --config.eval.stride=171,171')
    if config.model.dtype == 'float32':
        cures.append('--config.model.dtype=bfloat16 needs half')
    return [*cures, 'another program may hold the memory (nvidia-smi)']


def _mesh_sizes(config):
    """Sizes of the axes `data` and `space`, of which one may be -1 in the config."""
    count, c = jax.device_count(), config.mesh
    space = count // c.data if c.space == -1 else c.space
    return max(count // space, 1), space
