"""Joining several processes, agreement among them, and which one prints."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ann_jax.errors import ConfigError

# Set if this process is one of several and `jax.distributed` can find the others by itself.
_SLURM = 'SLURM_STEP_NUM_TASKS'
_TPU = 'TPU_WORKER_HOSTNAMES'


def join(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> bool:
    """Joins the processes of a run; call it before anything else uses a device.

    The arguments default to JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then to Slurm
    (`srun`) or the environment of a TPU pod slice; without any of these, this process is alone.

    Args:
        coordinator: host:port of process 0, reachable from all; or `auto`: jax asks the machine, as on the
            hosts of a Cloud TPU pod slice, where the environment does not say.
        count: number of processes.
        index: index of this process, from 0.

    Returns:
        Whether there are several processes.

    Raises:
        ConfigError: some of the three are missing, or the processes do not find each other.
    """
    env = os.environ
    given: dict[str, Any] = {
        'coordinator': coordinator or env.get('JAX_COORDINATOR_ADDRESS'),
        'process_count': env.get('JAX_NUM_PROCESSES') if count is None else count,
        'process_index': env.get('JAX_PROCESS_ID') if index is None else index,
    }
    ask = given['coordinator'] == 'auto'
    if ask:
        given = dict.fromkeys(given)
    missing = [name for name, value in given.items() if value in (None, '')]
    found = ask or int(env.get(_SLURM, 1)) > 1 or ',' in env.get(_TPU, '')
    if len(missing) == 3 and not found:
        return False
    # `train` agrees on stopping by a flag that travels with each batch, not by jax's own service, whose
    # SIGTERM handler would swallow the signal.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        if found and missing:
            jax.distributed.initialize(given['coordinator'])
        elif missing:
            raise ConfigError(f'several processes need --{" and --".join(missing)} too')
        else:
            jax.distributed.initialize(
                given['coordinator'],
                int(given['process_count']),
                int(given['process_index']),
                cluster_detection_method='deactivate',
            )
    except (RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f'the processes did not find each other ({given}): {error}') from error
    return jax.process_count() > 1


def is_main() -> bool:
    """Whether this process writes reports and prints."""
    return jax.process_index() == 0


def all_agree(good: bool) -> bool:
    """Whether `good` is True in all processes; each must call this."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


def largest(values: Any, mesh: jax.sharding.Mesh | None) -> np.ndarray:
    """Element-wise maximum over the processes of a mesh; each must call this."""
    values = np.asarray(values)
    if mesh is None or not mesh.is_multi_process:
        return values
    return np.asarray(multihost_utils.process_allgather(values)).max(0)
