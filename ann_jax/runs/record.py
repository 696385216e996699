"""What a run leaves in its folder beside checkpoints.

workdir/config.json     the resolved config
workdir/metrics.json    scores of the newest evaluation
workdir/tensorboard/    event files
workdir/pictures/       image, truth and prediction side by side
workdir/checkpoints/    see `checkpoints`
workdir/log.txt         see `log`
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary

from ann_jax.runs.events import EventFile
from ann_jax.runs.files import write_json, writing


class Record:
    """Writes into one workdir; every method that writes raises SaveError where it cannot."""

    def __init__(self, workdir: Path, first_step: int = 0, silent: bool = False):
        """Opens the files; curves that a broken-off run drew from `first_step` on are dropped.

        Args:
            workdir: the folder.
            first_step: the first that this process draws.
            silent: write nothing, as all but one of several processes.
        """
        self._workdir, self._silent = workdir, silent
        if not silent:
            with writing(workdir):
                (workdir / 'pictures').mkdir(parents=True, exist_ok=True)
                self._events = EventFile(workdir / 'tensorboard', first_step)

    def config(self, config: Mapping) -> None:
        """Writes config.json."""
        self._json('config.json', config)

    def metrics(self, metrics: Mapping) -> None:
        """Writes metrics.json."""
        self._json('metrics.json', metrics)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to the curves of the event file."""
        if self._silent:
            return
        with writing(self._workdir):
            self._events.add(step, [summary.scalar(name, value) for name, value in values.items()])

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes one picture, (H, W, 3) uint8, over the one of an earlier evaluation."""
        if self._silent:
            return
        file = self._workdir / 'pictures' / f'{name.replace("/", "_")}.png'
        with writing(self._workdir):
            Image.fromarray(picture).save(file)
            self._events.add(step, [summary.image(f'pictures/{name}', picture, dataformats='HWC')])

    def close(self) -> None:
        """Writes out what the event file still buffers."""
        if not self._silent:
            with writing(self._workdir):
                self._events.close()

    def _json(self, name, content):
        if not self._silent:
            with writing(self._workdir):
                write_json(self._workdir / name, content)
