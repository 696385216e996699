"""--mode=explain: a page that shows what pixels attend to, and figures that compare runs."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ann_jax import build
from ann_jax.buckets.copies import fetched
from ann_jax.buckets.paths import place
from ann_jax.data.datasets import read_label
from ann_jax.errors import ConfigError, DataError
from ann_jax.files import replacing
from ann_jax.inference import explanation, figures
from ann_jax.inference.results import Result
from ann_jax.inference.segmenter import PROTOCOL_SETTINGS, READING_SETTINGS, Segmenter
from ann_jax.modes.inputs import input_files
from ann_jax.modes.trained import open_trained
from ann_jax.typing import Backbone
from ann_jax.weights.opening import open_network

MOST = 20  # images, which all are on one page


def explain(config: ConfigDict, workdir: Path, *, backbone: Backbone | None = None) -> Path:
    """Writes explain.html, predictions.png and stages.png for the images that `explain.input` names.

    Args:
        config: of the run.
        workdir: its working directory, which is explained unless `explain.runs` names others.
        backbone: of the weights, if it is not from this package.

    Returns:
        The page.

    Raises:
        ConfigError: there are no images, too many, or no run.
        DataError: an image cannot be used, or is too large for a page.
        SaveError: a file cannot be written.
    """
    c = config.explain
    c.input, c.truth = fetched(c.input), fetched(c.truth)
    out = place(c.output or workdir / 'explain')
    files, top = input_files(c.input, 'explain', out)
    if len(files) > MOST:
        raise ConfigError(
            f'explain.input={c.input} names {len(files)} images, and a page holds {MOST}: name an image, or '
            'a pattern of a few'
        )
    if c.truth and not Path(c.truth).expanduser().is_dir():
        raise ConfigError(f'explain.truth={c.truth}: no such folder')
    segmenters = _segmenters(config, workdir, backbone)
    truth: list[np.ndarray] = []
    if c.truth:
        folder, dataset = Path(c.truth).expanduser(), build.dataset(config)
        truth = [read_label(folder, file.relative_to(top), dataset) for file in files]

    results: dict[str, list[Result]] = {}
    stages = {}
    for run, segmenter in segmenters.items():
        results[run] = [segmenter(file) for file in files]
        stages[run] = [result.stage_maps() for result in results[run]]
    names = [file.name for file in files]
    images = [result.image for result in next(iter(results.values()))]
    for number, label in enumerate(truth):
        if label.shape != images[number].shape[:2]:
            (height, width), (rows, columns) = images[number].shape[:2], label.shape
            raise DataError(
                f'{names[number]} is {width}x{height} but its label in explain.truth is {columns}x{rows}: '
                'make them the same size'
            )
    title = lambda run, file: f'{run}: {file.name}' if len(segmenters) > 1 else file.name
    views = [
        (title(run, file), result)
        for run in results
        for file, result in zip(files, results[run], strict=True)
    ]
    page = out / 'explain.html'
    text = explanation.page(views)
    with replacing(page) as draft:
        draft.write_text(text, encoding='utf-8')

    shown = [
        (run, [result.ids for result in each], (each[0].classes, each[0].colors))
        for run, each in results.items()
    ]
    if truth:
        shown.append(('ground truth', truth, (dataset.classes, dataset.colors)))
    _save(out / 'predictions.png', figures.predictions(names, images, shown))
    rows = [
        (title(run, file), images[number], stages[run][number])
        for number, file in enumerate(files)
        for run in results
    ]
    _save(out / 'stages.png', figures.stages(rows))

    blocks = dict.fromkeys(name for _, result in views for name in result.attention())
    print(f'{page}: click on a pixel to see what it attends to ({", ".join(blocks) or "no attention"})')
    print(f'{out / "predictions.png"}: {", ".join(["image", *(run for run, *_ in shown)])}')
    print(f'{out / "stages.png"}: the stages of {", ".join(results)}')
    return page


def _segmenters(config, workdir, backbone):
    """Run -> its network: those of `explain.runs`, or that of the working directory."""
    protocol = {name: config.eval[name] for name in PROTOCOL_SETTINGS}
    common = {'dtype': config.model.dtype, 'space': config.mesh.space, 'backbone': backbone, **protocol}
    runs = [run.strip() for run in config.explain.runs.split(',') if run.strip()]
    weights = {run: open_network(run) for run in runs}
    if not runs:
        opened, source = open_trained(config, workdir, backbone)
        weights = {str(source): opened}

    def reading(each):  # what the weights of one run determine may not suit those of another
        return {name: config.dataset[name] for name in READING_SETTINGS if name not in each.images}

    return {run: Segmenter(each, **common, **reading(each)) for run, each in weights.items()}


def _save(file, picture):
    with replacing(file) as draft:
        Image.fromarray(picture).save(draft)
