"""A trace of some steps, for TensorBoard's profiler or Perfetto."""

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import jax

from ann_jax.errors import ConfigError

logger = logging.getLogger(__name__)


def parse_steps(text: str) -> range:
    """The steps from FIRST to LAST of 'FIRST:LAST'; none of ''.

    Raises:
        ConfigError: it has another form.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r'([1-9]\d*):([1-9]\d*)', text)
    if not match or int(match[1]) > int(match[2]):
        raise ConfigError(f'profile.steps={text!r}: must be FIRST:LAST, such as 10:15')
    return range(int(match[1]), int(match[2]) + 1)


class Trace:
    """Writes what devices and threads do in some steps into a folder; the steps are marked in it."""

    def __init__(self, folder: Path, steps: range):
        self._folder, self._steps, self._running = folder, steps, False
        self._traced: list[int] = []

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """To be entered for each step."""
        if number not in self._steps:
            return contextlib.nullcontext()
        if not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        self._traced.append(number)
        return jax.profiler.StepTraceAnnotation('step', step_num=number)

    def stepped(self, number: int, results: Any) -> None:
        """Ends the trace after its last step, whose results are waited for."""
        if self._running and number == self._steps[-1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace, if it has begun."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        logger.info('steps %d to %d are traced in %s', self._traced[0], self._traced[-1], self._folder)
