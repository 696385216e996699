r"""ANN on CamVid (SegNet's split: 367 training images of 480 x 360, 11 classes).

    python -m ann_jax.main --config=configs/camvid.py --config.dataset.root=/data/camvid --workdir=runs/camvid

Arguments: `variant` (a row of Table 6), `runlocal`.
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument


def get_config(argument=None):
    """ANN-ResNet-50 trained from nothing."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.name = 'camvid'
    config.input = IMAGENET_RGB
    config.augment.crop = (360, 480)
    config.model.depth = 50
    config.loss.min_kept = 30_000
    config.optim.update(learning_rate=0.02, weight_decay=5e-4)
    config.train.update(steps=20_000, batch_size=8, eval_every=1000)
    return finish(config, argument)
