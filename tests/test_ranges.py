"""Every number among the settings has a range; what lies outside is refused in one line."""

import math

import numpy as np
import pytest
from absl import flags

from ann_jax import command
from ann_jax.config import CHOICES, defaults, validate
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference.protocols import check_protocol
from ann_jax.ranges import RANGES, out_of_range, shown
from ann_jax.runs.history import flat

DEFAULTS = flat(defaults().to_dict())


def numeric(value):
    return isinstance(value, int | float | list | tuple) and not isinstance(value, bool)


def valid_config(**changes):
    config = defaults()
    config.dataset.name = 'scenes'
    config.unlock()
    for key, value in changes.items():
        *sections, name = key.split('.')
        section = config
        for each in sections:
            section = section[each]
        del section[name]  # or else its type would be kept, as in the user's own ConfigDict it is not
        section[name] = value
    return config


def as_value(rule, number):
    """The number as a setting: itself, or a tuple of it."""
    return number if rule.counts is None else (number,) * min(n for n in rule.counts if n)


def test_every_number_has_a_range_or_is_one_of_a_few():
    keys = {key for key, value in DEFAULTS.items() if numeric(value)}
    assert keys <= RANGES.keys() | CHOICES.keys(), 'add the new settings to RANGES in ann_jax/ranges.py'
    assert RANGES.keys() <= keys and CHOICES.keys() <= DEFAULTS.keys()
    assert all(rule.holds(DEFAULTS[key]) for key, rule in RANGES.items())


@pytest.mark.parametrize('key', RANGES)
def test_the_ends_are_accepted_and_what_is_beyond_is_not(key):
    rule = RANGES[key]
    if rule.whole:
        below, above = rule.low - 1, rule.high + 1
    else:
        below, above = math.nextafter(rule.low, -math.inf), math.nextafter(rule.high, math.inf)
    for number in (rule.low + 1 if rule.any_above_zero else rule.low, rule.high):
        value = as_value(rule, number)
        assert out_of_range(key, value) == ''
        assert rule.counts is None or out_of_range(key, list(value)) == ''
    wrong = [number for number in (below, above) if number != rule.also]
    wrong += [math.nan, math.inf, -math.inf, 10**400, '1', None, True, 1j, np.array([1, 2])]
    if rule.whole:
        wrong += [rule.low + 0.5, float(rule.high)]
    for number in wrong:
        line = out_of_range(key, as_value(rule, number))
        assert line.startswith(f'{key}=') and str(rule) in line and '\n' not in line, (key, number)
    # The config refuses what the table refuses, and says the same.
    line = out_of_range(key, as_value(rule, above))
    with pytest.raises(ConfigError) as error:
        validate(valid_config(**{key: as_value(rule, above)}))
    assert line in str(error.value)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('optim.learning_rate', -1),
        ('loss.class_weights', (0, 0.0)),
        ('model.fuse_stages', (4, 4)),
        ('model.fuse_stages', (5,)),
        ('model.sizes', (1, 1)),
        ('model.stem_widths', (8, 8)),
        ('augment.crop', (1, 1)),
        ('augment.crop', (65.0, 65)),
        ('augment.crop', (65, 65, 65)),
        ('augment.crop', 65),
        ('augment.scale_range', (2.0, 0.5)),
        ('eval.scales', (1.0, 1.0)),
        ('eval.scales', ()),
        ('eval.crop', (65,)),
        ('input.std', (1.0, -1.0, 1.0)),
        ('input.std', (1.0, 1.0)),
        ('input.mean', 0.5),
        ('model.depth', 101.0),
        ('model.depth', [101]),
        ('model.variant', 'ful'),
        ('model.conv_bias', 'no'),
        ('optim.decay', 'none'),
        ('dataset.root', None),
        ('train.steps', True),
    ],
)
def test_wrong_values(key, value):
    with pytest.raises(ConfigError, match=key.replace('.', r'\.')) as error:
        validate(valid_config(**{key: value}))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'settings',
    [
        {'eval.crop': (65, 65), 'eval.stride': (66, 65)},
        {'eval.crop': (65, 65)},
        {'mesh.space': -1},
        {'augment.grey': 0.1, 'dataset.bands': '1,2', 'input.bgr': False},
        {'loss.terms': 'dice', 'loss.label_smoothing': 0.1},
        {'loss.terms': 'ohem:x'},
    ],
)
def test_settings_that_do_not_fit_each_other(settings):
    with pytest.raises(
        ConfigError, match=r'eval\.stride|mesh\.data|augment\.grey=0.1|loss\.label_smo|loss\.terms'
    ):
        validate(valid_config(**settings))


def test_all_wrong_values_are_listed_and_ints_and_lists_are_numbers_too():
    with pytest.raises(
        ConfigError, match='(?s)^optim.momentum=2: .* from 0 to 0.9999\ntrain.steps=0: '
    ) as error:
        validate(valid_config(**{'train.steps': 0, 'optim.momentum': 2}))
    assert str(error.value).count('\n') == 1
    validate(valid_config(**{'optim.power': 1, 'augment.crop': [65, 65], 'input.mean': [1, 2, 3]}))
    config = valid_config()
    del config.train.steps
    with pytest.raises(ConfigError, match='no train.steps'):
        validate(config)
    with pytest.raises(ConfigError, match='eval.flip'):
        check_protocol(flip=2)


def test_long_values_are_cut():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**10_000, list(range(10**4)), 'x' * 10**4, deep):
        assert len(shown(value)) <= 100
    while deep:  # or else its end would be recursive
        deep = deep.pop()


def test_no_flag_brings_anything_but_one_line():
    """Some thousand were tried once by hand, as here some hundred."""
    rng = np.random.default_rng(0)
    texts = ['-1', '0', '1e3', 'nan', 'inf', '1e400', '65.5', '65.5,65', '1,1', '4,4', '(1', '[1]', '()', '']
    texts += ["'a'", 'a', 'None', 'True', 'nan,nan', '1_0', '0x10', '((1,2),3)', '9' * 5000, '(' * 300, '\0']
    keys = list(DEFAULTS)
    for _ in range(250):
        key, text = keys[rng.integers(len(keys))], texts[rng.integers(len(texts))]
        values = flags.FlagValues()
        argv = command.arguments(['--config=scenes:runlocal', f'--config.{key}={text}'])
        command.define_config('', values, argv)
        try:
            command.parse(argv, '', values)
            validate(values.config)
        except (ConfigError, DataError) as error:
            assert '\n' not in str(error), (key, text)
        except SystemExit as end:
            assert str(end).startswith('error: ') and '\n' not in str(end), (key, text)
