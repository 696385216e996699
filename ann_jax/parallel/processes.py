"""Joining several processes, agreement among them, which one prints, and what is said if one is gone."""

import ctypes
import functools
import json
import os
import platform
import re
import signal
import sys
import zlib
from collections.abc import Mapping
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
        ConfigError: some of the three are missing, the address is none, or the processes do not find each
            other.
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
        if missing and not found:
            raise ConfigError(f'several processes need --{" and --".join(missing)} too')
        if given['coordinator']:
            _check_address(given['coordinator'])
        if missing:
            jax.distributed.initialize(given['coordinator'])
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
    if jax.process_count() > 1:
        _speak_when_aborted()
    return jax.process_count() > 1


def _check_address(text):
    # jax waits for minutes for a port that cannot exist.
    host, _, port = text.rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f'--coordinator={text}: must be HOST:PORT of process 0, with a port from 1 to 65535, such as '
            '10.0.0.2:8476; or auto'
        )


@functools.cache
def _speak_when_aborted():
    """Ends aborts with a line of ours: jax aborts a process from C++ when it hears that process 0 is gone.

    Returns:
        The handler, which the cache keeps alive.
    """
    if os.name != 'posix':
        return None
    index, count = jax.process_index(), jax.process_count()
    other = 'process 0' if index else 'another one'

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def speak(_number):
        leave(
            f'error: process {index} of {count} was aborted, as it is when {other} is gone; the lines above '
            f'say why: {_GO_ON}'
        )

    # Python's own handlers run too late, after the process has ended.
    ctypes.CDLL(None).signal(signal.SIGABRT, speak)
    return speak


def leave(text: str) -> None:
    """Ends one of several processes immediately: at exit it would wait for the others, which wait for it."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


# What Gloo, NCCL and jax's coordination service say where a process does not answer any more.
_LOST = re.compile(
    r'Gloo .*(failed|timed? ?out)|NCCL .*(remote|abort|peer)|connection (closed|reset|refused|aborted)|'
    r'broken pipe|socket closed|heartbeat|coordination service|barrier|preempted|'
    r'(peer|task|worker)s? .*(died|unavailable|disconnected)',
    re.IGNORECASE | re.DOTALL,
)
_STATUS = re.compile(r'[A-Z_]{5,}: ')  # such as UNAVAILABLE, with which jax also raises a ValueError
_TASK = re.compile(r'task:(\d+)')
_GO_ON = 'start the same command again in all processes, and the run goes on from its newest checkpoint'


def lost(error: BaseException, index: int, count: int) -> str:
    """What to tell the user if an error in one of several processes comes from the end of another.

    Args:
        error: the exception, with those that caused it.
        index: of this process.
        count: number of processes.

    Returns:
        One line that names the process, where that is known, and says how to go on; '' for other errors.
    """
    seen: BaseException | None = error
    while seen is not None and not (_is_of_jax(seen) and _LOST.search(str(seen))):
        seen = seen.__cause__ or seen.__context__
    if count < 2 or seen is None:
        return ''
    reason = ' '.join(str(seen).split())
    others = set(range(count)) - {index}
    gone = sorted(
        others & set(map(int, _TASK.findall(reason.rpartition('timed out task names')[2])))
        or (others if count == 2 else ())
    )
    who = f'process {" and ".join(map(str, gone))} of {count}' if gone else f'one of the {count} processes'
    return f'{who} is gone, and its own output says why ({reason[:200]}): {_GO_ON}'


def _is_of_jax(error):
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and _STATUS.match(str(error))
    )


def is_main() -> bool:
    """Whether this process writes reports and prints."""
    return jax.process_index() == 0


def all_agree(good: bool) -> bool:
    """Whether `good` is True in all processes; each must call this."""
    if jax.process_count() == 1:
        return good
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))


def refuse_differences(facts: Mapping[str, Any]) -> None:
    """Compares facts by name, such as settings, between all processes; each must call this.

    Raises:
        ConfigError: a process has others than process 0; the message names the first, with both values.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(json.dumps({name: repr(value) for name, value in facts.items()}).encode(), np.uint8)
    length = int(np.max(multihost_utils.process_allgather(np.int32(len(own)))))
    texts = np.pad(own, (0, length - len(own)), constant_values=ord(' '))  # JSON may end in spaces
    first, *others = (json.loads(bytes(text)) for text in multihost_utils.process_allgather(texts))
    for index, other in enumerate(others, 1):
        if names := [name for name in {**first, **other} if first.get(name) != other.get(name)]:
            one, another = (str(each.get(names[0]))[:100] for each in (first, other))
            more = f', and {len(names) - 1} more differ' if len(names) > 1 else ''
            raise ConfigError(
                f'{names[0]}: {one} in process 0, but {another} in process {index}{more}: start the same '
                'command, with the same data, in all processes'
            )


def on_this_machine() -> int:
    """Number of processes of the run on this machine; each must call this."""
    if jax.process_count() == 1:
        return 1
    name = np.uint32(zlib.crc32(platform.node().encode()))
    return int(np.sum(multihost_utils.process_allgather(name) == name))


def largest(values: Any, mesh: jax.sharding.Mesh | None) -> np.ndarray:
    """Element-wise maximum over the processes of a mesh; each must call this."""
    values = np.asarray(values)
    if mesh is None or not mesh.is_multi_process:
        return values
    return np.asarray(multihost_utils.process_allgather(values)).max(0)
