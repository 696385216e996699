r"""ANN on CamVid (SegNet's split: 367 training images, 480 x 360 and 11 classes).

    python -m ann_jax.main --config=configs/camvid.py --config.dataset.root=/data/camvid --workdir=runs/camvid

In about an hour on two CPU cores, with a small backbone:

    python -m ann_jax.main --config=configs/camvid.py:small --config.dataset.root=/data/camvid \
        --workdir=runs/camvid_small

The root holds images/{train,val,test} and labels/{train,val,test}, or train, trainannot, val, valannot,
... as in SegNet's release. `configs/camvid.py:classes=32` reads the original 960 x 720 images and labels
in 701_StillsRaw_full/ and LabeledApproved_full/: 31 classes, and Void, which is not scored.

Arguments: `variant` (a row of Table 6), `small`, `classes` (11 or 32), `runlocal`.
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument
from ann_jax.errors import ConfigError


def get_config(argument=None):
    """ANN-ResNet-50 trained from scratch; `small`: ResNet-18 of half the width at output stride 16."""
    argument = parse_argument(argument, small=False, classes=11)
    if argument['classes'] not in (11, 32):
        raise ConfigError(f'classes must be 11 or 32, not {argument["classes"]}')
    config = defaults()
    config.dataset.name = 'camvid' if argument['classes'] == 11 else 'camvid32'
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
