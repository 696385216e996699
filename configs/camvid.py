r"""ANN on CamVid (SegNet's split: 367 training images, 480 x 360 and 11 classes), from random weights.

    python -m ann_jax.main --config=configs/camvid.py --config.dataset.root=/data/camvid --workdir=runs/camvid

This is for one GPU. On two CPU cores, with a small backbone, in about an hour:

    python -m ann_jax.main --config=configs/camvid.py:small --config.dataset.root=/data/camvid \
        --workdir=runs/camvid_small

The root holds images/{train,val,test} and labels/{train,val,test}, or train, trainannot, val, valannot,
... as in SegNet's release. `configs/camvid.py:classes=32` reads the original 960 x 720 images and labels
in 701_StillsRaw_full/ and LabeledApproved_full/: 31 classes, and Void, which is not scored.

Arguments: `paper` (the paper's recipe and network), `small` (the same with a small backbone), `proxy` (a
smaller one, to compare recipes in minutes: see docs/recipes.md), `variant` (a row of Table 6), `classes` (11
or 32), `runlocal`.
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument
from ann_jax.errors import ConfigError


def _improve(config):
    """What docs/recipes.md recommends."""
    # Logits at stride 4, for poles and signs, at half the cost of output stride 8: time for more crops.
    config.model.update(output_stride=16, decoder='stage2', dtype='bfloat16')
    config.augment.update(jitter=(0.2, 0.3, 0.3, 0.03), jitter_share=0.5)
    config.loss.terms = 'ohem:1,dice:1'
    config.optim.update(learning_rate=0.04, warmup_steps=500, ema_decay=0.999)
    config.train.update(steps=12_000, batch_size=16, eval_every=3000)
    # About a point, and more on a sequence held out.
    config.eval.update(scales=(0.75, 1.0, 1.25), flip=True)


def _shrink(config):
    """ResNet-18 of half the width at output stride 16."""
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


def _shrink_to_proxy(config):
    """A network and a schedule that compare recipes on two CPU cores in minutes."""
    config.augment.crop = (180, 240)
    config.model.update(
        depth=10,
        width=16,
        stem_widths=(8, 8, 16),
        output_stride=16,
        key_channels=32,
        head_channels=64,
        aux_channels=32,
        decoder='stage2',
        decoder_channels=32,
    )
    config.loss.min_kept = 11_000
    config.optim.learning_rate = 0.05
    config.train.update(steps=2000, batch_size=4, log_every=100, eval_every=2000)
    config.eval.pictures = 0


def get_config(argument=None):
    """ANN-ResNet-50 with the recipe of docs/recipes.md; `paper`, `small`, `proxy`: with the paper's."""
    argument = parse_argument(argument, paper=False, small=False, proxy=False, classes=11)
    if argument['classes'] not in (11, 32):
        raise ConfigError(f'classes must be 11 or 32, not {argument["classes"]}')
    if argument['small'] and argument['proxy']:
        raise ConfigError('small and proxy are two networks: give one of them')
    config = defaults()
    config.dataset.name = 'camvid' if argument['classes'] == 11 else 'camvid32'
    config.input = IMAGENET_RGB
    config.augment.crop = (360, 480)
    config.model.depth = 50
    config.loss.min_kept = 30_000
    config.optim.update(learning_rate=0.02, weight_decay=5e-4)
    config.train.update(steps=20_000, batch_size=8, eval_every=1000)
    if argument['small']:
        _shrink(config)
    elif argument['proxy']:
        _shrink_to_proxy(config)
    elif not argument['paper']:
        _improve(config)
    return finish(config, argument)
