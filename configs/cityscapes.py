r"""ANN-ResNet-101 on Cityscapes, as in the paper.

    python -m ann_jax.main --config=configs/cityscapes.py --config.dataset.root=/data/cityscapes \
        --workdir=runs/cityscapes

Published: 79.9 mIoU on val, single scale, whole image (Table 6, full); 81.3 on test, trained on
train + val for 120K steps (`configs/cityscapes.py:testset`), multi-scale sliding crops and flip
(Table 3). Both start from a backbone trained on ImageNet.

The root holds leftImg8bit/ and gtFine/ (labelIds or labelTrainIds). With gtCoarse/,
`--config.dataset.train_split=train_extra` trains on the coarse labels, `train+extra` on fine and coarse ones,
`coarse_train` on the coarse labels of train.

Arguments: `variant` (a row of Table 6), `testset`, `protocol=paper` (the test of Table 3: three scales, crops
of 864 every 576 pixels, flip), `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument

# In train-id order, road first; from the authors' launch scripts.
CLASS_WEIGHTS = (
    0.8373, 0.9180, 0.8660, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip


def get_config(argument=None):
    """The paper's settings for Cityscapes."""
    argument = parse_argument(argument, testset=False)
    config = defaults()
    config.dataset.name = 'cityscapes'
    config.augment.crop = (769, 769)
    config.loss.class_weights = CLASS_WEIGHTS
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 5e-4
    config.train.steps = 60_000
    config.train.batch_size = 8
    if argument['testset']:
        config.dataset.train_split = 'trainval'
        config.train.steps = 120_000
    test = {'scales': (0.75, 1.0, 1.25), 'flip': True, 'crop': (864, 864), 'stride': (576, 576)}
    return finish(config, argument, paper_test=test)
