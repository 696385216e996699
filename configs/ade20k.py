r"""ANN-ResNet-101 on ADE20K (scene parsing 2016, 150 classes), as in the paper.

    python -m ann_jax.main --config=configs/ade20k.py --config.dataset.root=/data/ADEChallengeData2016 \
        --workdir=runs/ade20k

Published: 45.24 mIoU on val, whole image, six scales 0.5 .. 1.75 and flip (Table 4), from a backbone
trained on ImageNet.

Arguments: `variant` (a row of Table 6), `protocol=paper` (the test above), `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument


def get_config(argument=None):
    """The paper's settings for ADE20K."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.name = 'ade20k'
    config.augment.crop = (520, 520)
    config.augment.resize_short = 520
    config.optim.learning_rate = 0.02
    config.optim.weight_decay = 1e-4
    config.train.steps = 150_000
    config.train.batch_size = 16
    test = {'scales': (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), 'flip': True}
    return finish(config, argument, paper_test=test)
