"""GPUs and TPUs: those that are not used, and programs kept from start to start."""

import contextlib
import logging
import os
from pathlib import Path

import jax

from ann_jax.parallel.mesh import has_accelerator

logger = logging.getLogger(__name__)

AUTO = 'auto'
_KEPT_BYTES = 4 << 30
_DEVICES = Path('/dev')
# Files by which a driver shows its devices -> what they are, and the extra of jax that uses them.
_SIGNS = {
    'nvidia[0-9]*': ('an NVIDIA GPU', 'cuda12', 'cuda'),
    'kfd': ('an AMD GPU', 'rocm', 'rocm'),
    'accel[0-9]*': ('a TPU', 'tpu', 'tpu'),
}


def unused() -> str:
    """One line if an accelerator is there and jax computes on the CPU; '' if not, or if it should."""
    asked = jax.config.jax_platforms or ''  # type: ignore[attr-defined]
    if has_accelerator() or asked.split(',')[0] == 'cpu':
        return ''
    for sign, (what, extra, platform) in _SIGNS.items():
        if any(_DEVICES.glob(sign)):
            return (
                f"this machine has {what}, and jax computes on the CPU: pip install 'jax[{extra}]'; if it is "
                f"there, JAX_PLATFORMS={platform} python -c 'import jax; jax.devices()' tells what is wrong; "
                'JAX_PLATFORMS=cpu says that it is meant'
            )
    return ''


def keep_programs(folder: str) -> None:
    """Keeps compiled programs from start to start.

    Args:
        folder: where; AUTO for one in the user's cache if there is an accelerator, whose programs take
            minutes to compile. AUTO and '' leave alone what JAX_COMPILATION_CACHE_DIR says; without it, ''
            keeps none, nor does AUTO on CPUs.
    """
    if folder == AUTO:
        set_already = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        if not has_accelerator() or set_already:
            return
        cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
        folder = os.path.join(os.path.expanduser(cache), 'ann_jax', 'programs')
        _remove_old(Path(folder), _KEPT_BYTES)
    elif not folder:
        return
    folder = os.path.expanduser(folder)  # or an address in a bucket
    jax.config.update('jax_compilation_cache_dir', folder)
    logger.info('compiled programs are kept in %s', folder)


def _remove_old(folder, limit):
    """Removes the files that were used longest ago, until the rest is no larger than `limit` bytes."""
    with contextlib.suppress(OSError):  # another run may be removing them too
        files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
        for path, stat in sorted(files, key=lambda item: -max(item[1].st_atime, item[1].st_mtime)):
            limit -= stat.st_size
            if limit < 0:
                path.unlink(missing_ok=True)
