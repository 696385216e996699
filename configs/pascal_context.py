r"""ANN-ResNet-101 on PASCAL Context (60 classes: 59 and background), as in the paper.

    python -m ann_jax.main --config=configs/pascal_context.py --config.dataset.root=/data/VOCdevkit/VOC2010 \
        --workdir=runs/pascal_context

Beside the images of VOC 2010 in `JPEGImages/`, the root holds one of

- `trainval_merged.json`, run-length masks of the frequent classes and the split;
- `trainval/*.mat`, the original labels of 459 classes (`pip install scipy`), with the lists of VOC 2010 in
  `ImageSets/Main/`;
- `SegmentationClassContext/*.png` with class indices and lists in `ImageSets/SegmentationContext/`, as
  the usual converters write them.

Published: 52.8 mIoU on val, whole image, scales 0.5 .. 2.0 and flip (Table 5), from a backbone trained on
ImageNet.

Arguments: `variant` (a row of Table 6), `classes` (60; 59 leaves the background out, as the released code
does), `protocol=paper` (the test above), `runlocal`.
"""

from ann_jax.config import defaults, finish, parse_argument
from ann_jax.errors import ConfigError


def get_config(argument=None):
    """The paper's settings for PASCAL Context."""
    argument = parse_argument(argument, classes=60)
    if argument['classes'] not in (59, 60):
        raise ConfigError(f'classes must be 60 or 59, not {argument["classes"]}')
    config = defaults()
    config.dataset.name = 'pascal_context' if argument['classes'] == 60 else 'pascal_context_59'
    config.augment.crop = (480, 480)
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 1e-4
    config.train.steps = 28_000
    config.train.batch_size = 16
    test = {'scales': (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 'flip': True}
    return finish(config, argument, paper_test=test)
