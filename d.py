r"""ANN-ResNet-50 on /tmp/pytest-of-root/pytest-86/popen-gw1/test_a_table_with_a_column_of_0/d.

Written by --mode=setup. Edit what you like; docs/own_data.md explains the settings of `dataset`.

    python -m ann_jax.main --config=d.py --mode=check
    python -m ann_jax.main --config=d.py --workdir=runs/d
"""

from ann_jax.config import IMAGENET_RGB, defaults, finish, parse_argument


def get_config(argument=None):
    """Settings for a start."""
    argument = parse_argument(argument)
    config = defaults()
    config.dataset.update(
        name='folder',
        root='/tmp/pytest-of-root/pytest-86/popen-gw1/test_a_table_with_a_column_of_0/d',
        images='images',
        labels='masks',
        lists='',
        image_ending='',
        label_ending='.png',
        train_split='train',
        eval_split='val',
        val_share=0.1,
        classes='background,object',
        label_map='',
        bands='',
        image_range='',
        page=0,
    )
    config.input = IMAGENET_RGB
    config.augment.crop = (64, 64)
    config.model.depth = 50
    config.optim.update(learning_rate=0.01, weight_decay=5e-4)
    config.train.update(steps=20_000, batch_size=8, eval_every=1000)
    return finish(config, argument)
