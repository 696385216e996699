"""Images to try a network on that was trained on the embedded scenes."""

import shlex
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from ann_jax import build
from ann_jax.files import replacing

COUNT = 3  # if there are so many


def leave_samples(config: ConfigDict, workdir: Path) -> str:
    """Writes scenes that were neither trained on nor evaluated, with their labels, to samples/.

    Returns:
        The command that segments them, after a line that says so.

    Raises:
        SaveError: a file cannot be written.
    """
    folder = workdir / 'samples'
    scenes = build.source(config, 'test')
    count = min(COUNT, len(scenes))
    for index in range(count):
        sample = scenes[index]
        for kind in ('image', 'label'):
            with replacing(folder / f'{kind}s' / f'{sample["name"]}.png') as draft:
                Image.fromarray(sample[kind]).save(draft)
    words = [
        'python -m ann_jax.main --mode=predict --config=configs/scenes.py',
        f'--workdir={shlex.quote(str(workdir))}',
        f'--config.predict.input={shlex.quote(str(folder / "images"))}',
        f'--config.predict.truth={shlex.quote(str(folder / "labels"))}',
        '--config.predict.write=overlays,panels',
    ]
    return f'to segment {count} scene{"s"[: count > 1]} that it has not seen:\n' + ' \\\n    '.join(words)
