"""Configs hold the paper's settings, and what is misspelt fails with the nearest name."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest

import ann_jax
from ann_jax import build
from ann_jax.config import defaults, differences, parse_argument, validate
from ann_jax.data.classes import DATASETS
from ann_jax.errors import ConfigError
from ann_jax.models.ann import VARIANTS
from ann_jax.modes.idle import idle_settings

CONFIGS = Path(__file__).parent.parent / 'configs'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))

# Paper Sec. 4.2 and the authors' launch scripts: crop, batch, steps, learning rate, weight decay, classes.
PAPER = {
    'cityscapes': (769, 8, 60_000, 0.01, 5e-4, 19),
    'ade20k': (520, 16, 150_000, 0.02, 1e-4, 150),
    'pascal_context': (480, 16, 28_000, 0.01, 1e-4, 60),
}


def get_config(name, argument=None):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.mark.parametrize('name', PAPER)
def test_settings_of_the_paper(name):
    c = get_config(name)
    crop, batch, steps, learning_rate, weight_decay, classes = PAPER[name]
    assert tuple(c.augment.crop) == (crop, crop)
    assert (c.train.batch_size, c.train.steps) == (batch, steps)
    assert (c.optim.learning_rate, c.optim.weight_decay) == (learning_rate, weight_decay)
    assert (c.optim.momentum, c.optim.power) == (0.9, 0.9)
    assert DATASETS[c.dataset.name].num_classes == classes
    assert (tuple(c.augment.scale_range), tuple(c.augment.aspect_range)) == ((0.5, 2.0), (0.9, 1.1))
    assert (c.augment.flip, c.augment.brightness) == (True, 10)
    assert c.augment.resize_short == (520 if name == 'ade20k' else 0)
    assert (c.loss.ohem, c.loss.threshold, c.loss.min_kept, c.loss.per_image) == (True, 0.7, 100_000, True)
    assert c.loss.aux_weight == 0.4
    m = c.model
    assert (m.depth, m.width, tuple(m.stem_widths), m.output_stride) == (101, 64, (64, 64, 128), 8)
    assert (m.variant, m.sampling, tuple(m.sizes), m.share) == ('full', 'average', (1, 3, 6, 8), 'query_key')
    assert (m.key_channels, m.head_channels, m.dropout) == (256, 512, 0.05)
    assert (m.align_corners, m.ceil_pool) == (True, True)
    assert (c.input.bgr, tuple(c.input.mean)) == (True, (102.9801, 115.9465, 122.7717))


def test_what_camvid_changes_of_the_paper():
    ours, paper = (get_config('camvid', argument).to_dict() for argument in (None, 'paper'))
    changed = {line.split(':')[0] for line in differences(paper, ours)}
    assert changed == {
        'augment.jitter', 'augment.jitter_share', 'eval.flip', 'eval.scales', 'loss.terms',
        'model.decoder', 'model.dtype', 'model.output_stride',
        'optim.ema_decay', 'optim.learning_rate', 'optim.warmup_steps',
        'train.batch_size', 'train.eval_every', 'train.steps',
    }  # fmt: skip
    for argument in ('small', 'proxy'):  # a smaller network, no other recipe
        changed = {
            line.split(':')[0] for line in differences(paper, get_config('camvid', argument).to_dict())
        }
        assert not {name for name in changed if name.startswith('loss.') and name != 'loss.min_kept'}
        assert not {name for name in changed if name.startswith('augment.') and name != 'augment.crop'}
        assert {name for name in changed if name.startswith('optim.')} == {'optim.learning_rate'}
    with pytest.raises(ConfigError, match='small and proxy.*give one'):
        get_config('camvid', 'small,proxy')


def test_cityscapes_weights_and_test_set_schedule():
    weights = get_config('cityscapes').loss.class_weights
    assert len(weights) == 19
    assert (weights[0], weights[12], weights[18]) == (0.8373, 1.1116, 1.0507)
    config = get_config('cityscapes', 'testset')
    assert (config.train.steps, config.dataset.train_split) == (120_000, 'trainval')


def test_pascal_context_without_background():
    assert get_config('pascal_context', 'classes=59').dataset.name == 'pascal_context_59'
    with pytest.raises(ConfigError, match='60 or 59'):
        get_config('pascal_context', 'classes=58')


@pytest.mark.parametrize('name', NAMES)
def test_every_config_names_its_command_and_is_locked(name):
    text = (CONFIGS / f'{name}.py').read_text()
    assert f'--config=configs/{name}.py' in text.split('"""')[1]
    config = get_config(name)
    with pytest.raises(AttributeError, match='learning_rate'):
        config.optim.learning_rat = 1.0


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_is_a_config_value(variant):
    config = get_config('cityscapes', f'variant={variant},runlocal')
    model = build.model(config, 19)
    logits = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jax.numpy.zeros((1, 65, 65, 3)))[0]
    )
    assert config.model.variant == model.variant == variant
    assert logits.main.shape == (1, 9, 9, 19)


@pytest.mark.parametrize('name', NAMES)
def test_runlocal_is_small(name):
    config = get_config(name, 'runlocal')
    assert config.train.steps <= 20
    assert max(config.augment.crop) <= 129
    source = build.source(config, config.dataset.train_split)  # without a root: the embedded scenes
    assert len(source) <= 100
    assert build.loss(config, source.dataset.num_classes)


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('varian=apnb', "unknown config argument 'varian'; did you mean 'variant'"),
        ('variant=apn', "unknown variant 'apn'; did you mean 'apnb'"),
        ('runlocal=maybe', 'runlocal must be true or false'),
        ('classes=many', 'classes must be of type int'),
    ],
)
def test_wrong_argument(argument, message):
    with pytest.raises(ConfigError, match=message):
        parse_argument(argument, classes=60)


def test_wrong_number_of_class_weights():
    config = get_config('cityscapes')
    with pytest.raises(ConfigError, match='loss.class_weights holds 19 numbers, but cityscapes has 5'):
        build.loss(config, 5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', [None, 'runlocal'])
def test_the_configs_are_valid(name, argument):
    validate(get_config(name, argument))


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('augment.crop', (513,)),
        ('augment.scale_range', (0, 1)),
        ('model.sizes', ()),
        ('model.sizes', (0, 3)),
        ('model.fuse_stages', ('a,b',)),
        ('model.dtype', 'bf16'),
        ('train.eval_every', 0),
        ('train.steps', 0),
    ],
)
def test_values_that_would_fail_late_are_refused(key, value):
    config = get_config('cityscapes')
    section, name = key.split('.')
    config[section][name] = value
    with pytest.raises(ConfigError, match=key):
        validate(config)


@pytest.mark.parametrize(
    ('config', 'key', 'value', 'message'),
    [
        ('scenes', 'root', '/data', 'the embedded scenes read no files'),
        ('scenes', 'bands', '1,2', 'the embedded scenes read no files'),
        ('scenes', 'images', 'photos', 'only --config=configs/folder.py takes it'),
        ('cityscapes', 'label_ending', '_x.png', 'only --config=configs/folder.py takes it'),
        ('cityscapes', 'val_share', 0.5, 'must be empty without --config=configs/folder.py'),
    ],
)
def test_settings_that_a_dataset_would_ignore_are_refused(config, key, value, message):
    config = get_config(config)
    config.dataset[key] = value
    with pytest.raises(ConfigError, match=f'dataset.{key}=.?{value}.?: {message}'):
        validate(config)


def test_no_config_is_refused():
    with pytest.raises(ConfigError, match="config='scenes': must be a ConfigDict"):
        ann_jax.train('scenes', 'runs/x')


CHANGED = {
    'augment.jitter_share': (0.5, {'augment.jitter': (0.1, 0.0, 0.0, 0.0)}),
    'augment.blur_sigma': ((1.0, 2.0), {'augment.blur': 0.5}),
    'augment.rand_magnitude': (3, {'augment.rand_augment': 2}),
    'augment.mix_share': (1.0, {'augment.mix': 'cutmix'}),
    'model.fuse_stages': ((3, 4), {'model.variant': 'common'}),
    'model.sampling': ('max', {'model.variant': 'apnb'}),
    'model.sizes': ((1, 2), {'model.variant': 'afnb'}),
    'model.share': ('none', {'model.variant': 'nb'}),
    'model.out_norm': (True, {'model.variant': 'fnb'}),
    'model.dilate_second_conv': (False, {'model.depth': 18}),
    'loss.ohem': (False, {'loss.terms': ''}),
    'loss.threshold': (0.5, {'loss.terms': 'ohem,dice'}),
    'loss.focal_gamma': (1.0, {'loss.terms': 'focal'}),
    'loss.tversky': ((0.5, 0.5), {'loss.terms': 'tversky'}),
    'loss.aux_weight': (0.2, {'model.aux_channels': 8}),
    'loss.boundary_width': (3, {'loss.boundary_weight': 2.0}),
    'optim.momentum': (0.5, {'optim.name': 'sgd'}),
    'optim.power': (1.0, {'optim.schedule': 'poly'}),
    'optim.warmup_factor': (0.1, {'optim.warmup_steps': 5}),
    'optim.decay': ('kernels', {'optim.weight_decay': 0.1}),
    'optim.decay_factors': ('backbone=0.1', {'optim.weight_decay': 0.1}),
    'eval.stride': ((40, 40), {'eval.crop': (65, 65)}),
    'eval.average': ('probabilities', {'eval.flip': True}),
}


@pytest.mark.parametrize('key', CHANGED)
def test_settings_without_effect_are_named(key):
    config = defaults()
    off = {'loss.terms': 'dice', 'optim.name': 'adamw', 'optim.schedule': 'cosine', 'optim.weight_decay': 0.0}
    off |= {'model.variant': 'baseline', 'model.aux_channels': 0}
    config.update_from_flattened_dict(off)
    assert idle_settings(config) == []
    value, on = CHANGED[key]
    config.update_from_flattened_dict({key: value})
    (line,) = idle_settings(config)
    assert line.startswith(f'{key}={value!r} has no effect: it needs ')
    config.update_from_flattened_dict(on)
    assert idle_settings(config) == []


def test_differences_names_key_and_both_values():
    config = get_config('cityscapes').to_dict()
    saved = json.loads(json.dumps(config))
    assert differences(saved, config) == []
    saved['model']['sizes'] = [1, 2]
    saved['optim']['momentum'] = 0.5
    assert differences(saved, config) == ['model.sizes: [1, 2] -> (1, 3, 6, 8)', 'optim.momentum: 0.5 -> 0.9']
