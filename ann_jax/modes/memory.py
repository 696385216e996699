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
    devices = max(jax.device_count() // max(config.mesh.space, 1), 1)
    each = max(c.batch_size // devices, 1)
    cures = []
    parts = [n for n in range(c.accumulate + 1, each + 1) if each % n == 0]
    if parts:
        cures.append(f'--config.train.accumulate={parts[0]} computes a batch in {parts[0]} parts')
    if len(config.model.remat) < 4:
        cures.append('--config.model.remat=2,3,4,5 computes the stages twice')
    if jax.local_device_count() >= 2 * max(config.mesh.space, 1):
        cures.append(f'--config.mesh.space={2 * max(config.mesh.space, 1)} splits images over devices')
    crop = ','.join(map(str, config.augment.crop))
    cures.append(
        f'a smaller --config.augment.crop than {crop}, or --config.train.batch_size than {c.batch_size} '
        f'({each} on each device), needs less too, but changes what is learned'
    )
    return cures


def _cures_of_inference(config, mode):
    section = 'predict' if mode == 'predict' else 'eval'
    cures = [f'--config.{section}.batch_size=1'] if config[section].batch_size > 1 else []
    if not config.eval.crop:
        cures.append('--config.eval.crop=769,769 --config.eval.stride=513,513 goes through images in windows')
    elif tuple(config.eval.crop) > (257, 257):
        cures.append('smaller windows, --config.eval.crop=257,257 --config.eval.stride=171,171')
    if config.model.dtype == 'float32':
        cures.append('--config.model.dtype=bfloat16 needs half')
    return [*cures, 'another program may hold the memory (nvidia-smi)']
