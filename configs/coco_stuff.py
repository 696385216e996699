r"""ANN-ResNet-101 on COCO-Stuff-10K (171 classes; 9,000 training and 1,000 test images), as in the paper.

    python -m ann_jax.main --config=configs/coco_stuff.py --config.dataset.root=/data/cocostuff-10k-v1.1 \
        --workdir=runs/coco_stuff

The labels are MATLAB files: `pip install scipy`.

Published: 37.2 mIoU on test, whole image, single scale (Table 8), from a backbone trained on ImageNet.
The paper gives no schedule: crop, rates and steps are our choice.

Arguments: `variant` (a row of Table 6), `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument


def get_config(argument=None):
    """Settings for COCO-Stuff-10K."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.update(name='coco_stuff', eval_split='test')
    config.augment.crop = (520, 520)
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 1e-4
    config.train.steps = 60_000
    config.train.batch_size = 16
    return finish(config, argument)
