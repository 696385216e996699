"""The files that a run writes to its working directory, besides checkpoints.

workdir/config.json     the resolved config
workdir/metrics.json    scores of the newest evaluation as in training
workdir/metrics-*.json  of evaluations by another protocol, on another split, or of other weights
workdir/tensorboard/    event files, unless another writer was given
workdir/evaluation/     confusion matrix, scores of each image, and the best and worst images, of metrics.json
workdir/evaluation-*/   of metrics-*.json
workdir/pictures/       image, truth, prediction and errors
workdir/report.html     see `evaluation.page`
workdir/checkpoints/    see `checkpoints`
workdir/log.txt         see `log`
workdir/lock            see `lock`
workdir/profile/        see `profile`
workdir/class_counts.npy  see `modes.class_counts`
workdir/samples/        see `modes.scene_samples`
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ann_jax.files import make_folder, replacing, write_json, writing
from ann_jax.runs.events import TensorBoard
from ann_jax.typing import Writer


class Record:
    """Writes to a working directory and to a writer; raises SaveError where it cannot."""

    def __init__(
        self, workdir: Path, first_step: int = 0, silent: bool = False, writer: Writer | None = None
    ):
        """Opens the files; curves of an interrupted run are dropped from `first_step` on.

        Args:
            workdir: the working directory.
            first_step: first step of this process.
            silent: write nothing, for all processes but one.
            writer: gets curves, pictures and texts in place of TensorBoard's event files.
        """
        self._workdir = workdir
        self._writer: Writer | None = None  # None: silent
        self._events: TensorBoard | None = None
        if not silent:
            make_folder(workdir / 'pictures')
            with writing(workdir):
                if writer is None:
                    writer = self._events = TensorBoard(workdir / 'tensorboard', first_step)
            self._writer = writer

    def config(self, step: int, config: Mapping) -> None:
        """Writes config.json."""
        self._json('config.json', config)
        self.text(step, 'config', '```json\n' + json.dumps(config, indent=2) + '\n```')

    def metrics(self, metrics: Mapping, name: str = '') -> None:
        """Writes metrics.json, or with a name metrics-<name>.json."""
        self._json(f'metrics{suffix(name)}.json', metrics)

    def details(self, name: str = '') -> Path | None:
        """The folder for the details of metrics of that name; None if nothing is to be written."""
        return self._workdir / f'evaluation{suffix(name)}' if self._writer is not None else None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds points to curves."""
        if self._writer is None:
            return
        with writing(self._workdir):
            self._writer.scalars(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        """Adds a text in Markdown."""
        if self._writer is None:
            return
        with writing(self._workdir):
            self._writer.text(step, {name: text})

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, (H, W, 3) uint8; replaces the one of an earlier evaluation."""
        if self._writer is None:
            return
        file = self._workdir / 'pictures' / f'{name.replace("/", "_")}.png'
        with replacing(file) as draft:
            Image.fromarray(picture).save(draft)
        with writing(self._workdir):
            self._writer.images(step, {f'pictures/{name}': picture})

    def close(self) -> None:
        """Closes the event file; a writer that was passed in stays open."""
        if self._events is not None:
            with writing(self._workdir):
                self._events.close()

    def _json(self, name, content):
        if self._writer is not None:
            write_json(self._workdir / name, content)


def suffix(name: str) -> str:
    """The end of the names of files and folders of an evaluation; '' for that of the training."""
    return '-' + re.sub(r'[^\w.,=-]+', '_', name) if name else ''
