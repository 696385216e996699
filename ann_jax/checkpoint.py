"""Checkpoints of a run: the newest two and the best by mIoU are kept, whatever the order of scores.

The data stream is a pure function of the seed and the step (`data.pipeline`), so the step that a
checkpoint is named after is also the whole state of the iterator.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from ann_jax.state import TrainState


def _miou(metrics: dict[str, float]) -> float:
    return metrics['miou']


class Checkpoints:
    """The checkpoints below one folder; saving runs in the background."""

    def __init__(self, folder: Path):
        keep = managers.AnyPreservationPolicy(
            [
                managers.LatestN(2),
                managers.BestN(get_metric_fn=_miou, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(best_fn=_miou, best_mode='max', preservation_policy=keep),
        )

    def save(self, state: TrainState, facts: dict[str, Any], miou: float | None = None) -> None:
        """Saves under the state's step, with what belongs to it (JSON) and its score if it has one."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)),
            metrics=None if miou is None else {'miou': miou},
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest mIoU, None before the first score."""
        return self._manager.best_step()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a state; `like` gives shapes, dtypes and shardings (`state.abstract_state`)."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self._manager.restore(step, args=args)['state']

    def facts(self, step: int) -> dict[str, Any]:
        """What a checkpoint was saved with."""
        return self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))['facts']

    def close(self) -> None:
        """Waits for the save under way."""
        self._manager.wait_until_finished()
        self._manager.close()
