r"""ANN-ResNet-50 on a folder of your own images and labels.

    python -m ann_jax.main --config=configs/folder.py --config.dataset.root=/data/mine \
        --config.dataset.classes=background,road,car --workdir=runs/mine

with images/train/*.jpg, images/val/*.jpg, labels/train/*.png and labels/val/*.png below the root. An
image and its label share a name. Labels are greyscale or palette PNGs whose values are class indices;
255 is not scored.

    --config.dataset.classes=names.txt                  a name per line, with red, green and blue if labels
                                                        are painted in these colours; or as tools write it
    --config.dataset.images=photos --config.dataset.labels=masks --config.dataset.lists={split}.txt
                                                        other folders; train.txt and val.txt list names, or an
                                                        image and its label per line
    --config.dataset.val_share=0.1                      a tenth of train is held out as val
    --config.dataset.images={split}_images.txt --config.dataset.labels={split}_labels.txt
                                                        two parallel lists of image and label files
    --config.dataset.label_ending=_mask.png             a.jpg has the label a_mask.png
    --config.dataset.label_map=0:ignore,1:road,2:car,others:background
                                                        what the values of the labels mean; also ranges, as in
                                                        0-127:0,128-255:1
    --config.dataset.reduce_zero_label=True             0 is ignored, and 1 is the first class
    --config.dataset.image_range=0,4095                 of images of more than 8 bits: what becomes 0 and 255
    --config.dataset.bands=4,3,2                        of images of more than three bands: those to use

Masks of 0 and 255 need `label_map=0:0,255:1`. `--mode=check` reads all files and counts the classes,
`--mode=browse` draws some samples with their labels.

The schedule (crops, rates, steps) is our choice, and has not been tuned on any folder: see `get_config`. With
few images or one accelerator, start with your own `--config.train.steps` and `batch_size`.

Arguments: `variant` (a row of Table 6), `runlocal`.
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument


def get_config(argument=None):
    """Settings that suit a few hundred to a few thousand images."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.name = 'folder'
    config.input = IMAGENET_RGB
    config.augment.crop = (512, 512)
    config.model.depth = 50
    config.optim.update(learning_rate=0.01, weight_decay=5e-4)
    config.train.update(steps=20_000, batch_size=8, eval_every=1000)
    return finish(config, argument)
