r"""ANN on CamVid (SegNet's split: 367 training images of 480 x 360, 11 classes).

    python -m ann_jax.main --config=configs/camvid.py --config.dataset.root=/data/camvid --workdir=runs/camvid

On two CPU cores in about an hour, with a backbone that fits:

    python -m ann_jax.main --config=configs/camvid.py:small --config.dataset.root=/data/camvid \
        --workdir=runs/camvid_small

Arguments: `variant` (a row of Table 6), `small`, `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument
from ann_jax.inference import IMAGENET_RGB


def get_config(argument=None):
    """ANN-ResNet-50 trained from nothing; `small`: ResNet-18 of half the width at output stride 16."""
    argument = parse_argument(argument, small=False)
    config = defaults()
    config.dataset.name = 'camvid'
    config.input = IMAGENET_RGB
    config.augment.crop = (360, 480)
    config.model.depth = 50
    config.loss.min_kept = 30_000
    config.optim.update(learning_rate=0.02, weight_decay=5e-4)
    config.train.update(steps=20_000, batch_size=8, eval_every=1000)
    if argument['small']:
        config.augment.crop = (240, 320)
        config.model.update(
            depth=18,
            width=32,
            stem_widths=(16, 16, 32),
            output_stride=16,
            key_channels=64,
            head_channels=128,
            aux_channels=64,
        )
        config.loss.min_kept = 20_000
        config.optim.learning_rate = 0.05
        config.train.update(steps=2000, log_every=20, checkpoint_every=250, eval_every=500)
    return finish(config, argument)
