"""What a run reports while it trains: curves, a progress bar, and where the time goes."""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from ann_jax.runs.log import note
from ann_jax.runs.record import Record

logger = logging.getLogger(__name__)

# Steps wait for data if they do for more than this share of their time, over this many steps.
_WAITS, _ENOUGH = 0.05, 20


class Clock:
    """Seconds spent on several activities, each since it was last read."""

    def __init__(self):
        self._spent: dict[str, float] = {}
        self._ever: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, what: str):
        """Adds the time spent inside to `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            for account in (self._spent, self._ever):
                account[what] = account.get(what, 0.0) + spent

    def take(self, what: str) -> float:
        """Returns the seconds spent on `what` since the last call."""
        return self._spent.pop(what, 0.0)

    def total(self, what: str) -> float:
        """Returns the seconds ever spent on `what`."""
        return self._ever.get(what, 0.0)


class TrainLog:
    """Curves and progress bar of training; metrics are read a few steps late, so that the device never waits.

    Attributes:
        clock: measures the time spent waiting for data, as 'data'.
        stop: whether any process had been asked to stop when a step read so far began; the same in all.
        skipped: number of steps skipped because the loss or gradient was not finite.
        replaced: number of samples that could not be used.
    """

    # Steps in flight on the device while the host prepares the next batch: enough to keep the device
    # busy, few enough not to pile up batches.
    IN_FLIGHT = 2

    def __init__(
        self,
        record: Record,
        bar: tqdm,
        schedule: Callable[[int], float] | None,
        every: int,
        newest: Callable[[], int | None] = lambda: None,
        cure: str = '',
        behind: int = 0,
    ):
        """Starts the clock.

        Args:
            record: gets the curves.
            bar: the progress bar.
            schedule: step -> learning rate, if known.
            every: steps between points of a curve.
            newest: returns the step of the newest checkpoint, if there is one.
            cure: what helps if steps wait for data; '' to say nothing.
            behind: steps that were skipped before, by which the schedule is behind.
        """
        self._record, self._bar, self._schedule, self._every = record, bar, schedule, every
        self._newest, self._cure, self._behind = newest, cure, behind
        self._pending: deque = deque()
        self._since, self._steps = time.perf_counter(), 0
        self.clock, self.stop, self.skipped, self.replaced = Clock(), False, 0, 0
        self._total = 0
        self._mark = self._now()  # of the last point of the curves of speed

    def add(self, number: int, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Adds the metrics of a step, still on the device; logs those of the step `IN_FLIGHT` steps before.

        Raises:
            FloatingPointError: the loss or gradient of that step is not finite, and the step was not skipped.
        """
        for name, problem in zip(batch['name'], batch['problem'], strict=True):
            if problem:
                self.replaced += 1
                logger.warning('step %d: %s in place of a bad sample: %s', number, name, problem)
        self._pending.append((number, metrics, batch['name']))
        if len(self._pending) > self.IN_FLIGHT:
            self._log(*self._pending.popleft())

    def flush(self) -> None:
        """Logs what is pending.

        Raises:
            FloatingPointError: as in `add`.
        """
        while self._pending:
            self._log(*self._pending.popleft())

    def seconds_per_step(self) -> tuple[float, float]:
        """Time per step since the last call, and how much of it was spent waiting for data.

        Tells once that steps wait, and what helps.
        """
        now, steps = time.perf_counter(), max(self._steps, 1)
        spent, waited = (now - self._since) / steps, self.clock.take('data') / steps
        if steps >= _ENOUGH and waited > _WAITS * spent and self._cure:
            logger.warning('%.0f %% of the time, steps wait for data: %s', 100 * waited / spent, self._cure)
            self._cure = ''
        self._since, self._steps = now, 0
        return spent, waited

    def restart(self) -> None:
        """Restarts the clock of `seconds_per_step`, so that the time until now is not counted."""
        self.seconds_per_step()
        self._mark = self._now()

    def _now(self):
        """Time, steps, and seconds waited so far."""
        return time.perf_counter(), self._total, self.clock.total('data')

    def _speed(self):
        """Time per step and the part of it spent waiting, since the last point; none if there was no step."""
        now = self._now()
        seconds, steps, waited = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        if not steps:
            return {}
        return {'train/seconds_per_step': seconds / steps, 'train/seconds_waiting': waited / steps}

    def _log(self, number, metrics, names):
        values = {name: float(value) for name, value in metrics.items()}
        self.stop = self.stop or bool(values.pop('stop', 0))
        count = number - 1 - self._behind - self.skipped  # of the optimizer: skipped steps do not advance it
        self._refuse(number, values, names)
        self._steps += 1
        self._total += 1
        self._bar.update()
        if number % self._every == 0:
            values = {f'train/{name}': value for name, value in values.items()}
            if self._schedule is not None:
                values['train/learning_rate'] = self._schedule(count)
            values |= self._speed()
            self._record.scalars(number, values)
            loss, accuracy = values['train/loss'], values['train/pixel_accuracy']
            note('step %d: loss %.6g, pixel accuracy %.4f', number, loss, accuracy)
            self._bar.set_postfix(loss=f'{loss:.3f}', accuracy=f'{accuracy:.3f}')

    def _refuse(self, number, values, names):
        if math.isfinite(values['loss']) and math.isfinite(values['gradient_norm']):
            return
        what = f'the loss is {values["loss"]}, the gradient norm {values["gradient_norm"]}'
        where = f'at step {number}, of the samples {", ".join(map(str, names))}'
        if values.get('skipped'):
            self.skipped += 1
            logger.warning('%s %s: step skipped (%d so far)', what, where, self.skipped)
            return
        newest = self._newest()
        raise FloatingPointError(
            f'{what} {where}: lower optim.learning_rate, check these samples, or skip such steps '
            'with --config.train.not_finite=skip; '
            + (f'the last good checkpoint is at step {newest}' if newest else 'there is no checkpoint yet')
        )
