r"""A small ANN on the embedded scenes: nothing to download, minutes on a laptop.

    python -m ann_jax.main --config=configs/scenes.py --workdir=runs/scenes

Its receptive field reaches 105 pixels to each side. What distinguishes the two pairs of look-alike classes is
more than 108 pixels away, so only attention can see it (see `ann_jax/data/scenes.py`).

Arguments: `variant` (a row of Table 6), `runlocal`.
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument
from ann_jax.data.scene_objects import CLASSES, LOOK_ALIKES


def get_config(argument=None):
    """Settings of the embedded dataset."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.name = 'scenes'
    config.input = IMAGENET_RGB
    # The whole image: a crop could cut off the far cue.
    config.augment.update(crop=(96, 208), scale_range=(1.0, 1.0), aspect_range=(1.0, 1.0))
    config.model.update(
        depth=10, width=16, stem_widths=(16,), key_channels=32, head_channels=64, aux_channels=32, dropout=0.0
    )
    config.loss.min_kept = 1000
    # The look-alikes cover 6 % of the pixels, but are what the benchmark is about.
    config.loss.class_weights = tuple(4.0 if name in LOOK_ALIKES else 1.0 for name in CLASSES)
    # A pair of look-alikes is learned all at once, or not at all: with SGD, one of ten seeds missed the cars.
    config.optim.update(name='adamw', learning_rate=0.002, weight_decay=0.01, decay='kernels')
    config.optim.update(schedule='cosine', warmup_steps=100, clip_norm=1.0)
    config.train.update(steps=1200, batch_size=4, log_every=20, checkpoint_every=600, eval_every=600)
    config.eval.update(batch_size=0, pictures=8)
    return finish(config, argument)
