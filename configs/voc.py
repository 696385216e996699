r"""ANN-ResNet-101 on PASCAL VOC 2012 (21 classes).

    python -m ann_jax.main --config=configs/voc.py --config.dataset.root=/data/VOCdevkit/VOC2012 \
        --workdir=runs/voc

`configs/voc.py:aug` trains on the 10,582 images with the labels of SBD: SegmentationClassAug/ with the
list ImageSets/Segmentation/trainaug.txt or ImageSets/SegmentationAug/trainaug.txt, as the usual
converters write them. If labels are missing there, those in SegmentationClass/ count first.
`--config.dataset.train_split=train+sbd` reads SBD as it is distributed, with benchmark_RELEASE/ in the root
(`pip install scipy`), and leaves out the images of VOC's own train and val.

The paper has no results on it. The schedule is our choice.

Arguments: `variant` (a row of Table 6), `aug`, `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument


def get_config(argument=None):
    """Settings for PASCAL VOC 2012."""
    argument = parse_argument(argument, aug=False)
    config = defaults()
    config.dataset.name = 'voc'
    config.augment.crop = (512, 512)
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 5e-4
    config.train.steps = 20_000
    config.train.batch_size = 16
    if argument['aug']:
        config.dataset.train_split = 'trainaug'
        config.train.steps = 40_000
    return finish(config, argument)
