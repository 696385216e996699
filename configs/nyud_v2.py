r"""ANN-ResNet-101 on NYU Depth V2 (40 classes; 795 training and 654 test images), as in the paper.

    python -m ann_jax.main --config=configs/nyud_v2.py --config.dataset.root=/data/nyud_v2 \
        --workdir=runs/nyud_v2

The root holds nyu_depth_v2_labeled.mat and splits.mat by its authors and classMapping40.mat by Gupta et
al. (`pip install h5py scipy`); or images/{train,test}/*.png and labels/{train,test}/*.png, where 0 is
unlabelled and 1 .. 40 are the classes; or images/, labels/ and the lists train.txt and test.txt.

Published: 44.4 mIoU on test, whole image, single scale (Table 8), from a backbone trained on ImageNet.
The paper gives no schedule: crop, rates and steps are our choice.

Arguments: `variant` (a row of Table 6), `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument


def get_config(argument=None):
    """Settings for NYU Depth V2."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.update(name='nyud_v2', eval_split='test')
    config.augment.crop = (480, 480)
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 1e-4
    config.train.steps = 20_000
    config.train.batch_size = 16
    return finish(config, argument)
