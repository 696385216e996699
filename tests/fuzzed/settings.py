"""Settings of any value, on the command line or in a config of one's own."""

import copy

from absl import flags

from ann_jax import build, command
from ann_jax.config import CHOICES, defaults, validate
from ann_jax.ranges import RANGES
from ann_jax.runs.history import flat
from fuzzed.values import TEXTS, VALUES, some_number

KEYS = sorted(flat(defaults().to_dict()))


def draw(rng, folder):
    """A setting on the command line, or in a config of one's own, of any value; then what is built of it."""
    key = KEYS[rng.integers(len(KEYS))]
    if rng.random() < 0.5:
        text = TEXTS[rng.integers(len(TEXTS))] if rng.random() < 0.6 else str(some_number(rng))
        if rng.random() < 0.2:
            text = ','.join(str(some_number(rng)) for _ in range(rng.integers(1, 5)))
        return f'--config.{key}={text!r}', lambda: from_command(key, text)
    value = copy.copy(VALUES[rng.integers(len(VALUES))])
    if rng.random() < 0.3:
        value = some_number(rng)
    elif rng.random() < 0.2:
        value = [some_number(rng) for _ in range(rng.integers(1, 5))]
    return f'{key}={value!r:.80}', lambda: built(own(key, value))


def from_command(key, text):
    given = flags.FlagValues()
    argv = command.arguments(['--config=scenes:runlocal', f'--config.{key}={text}'])
    command.define_config('A config.', given, argv)
    command.parse(argv, 'help', given)
    return built(given.config)


def own(key, value):
    config = command.load_config('scenes:runlocal')
    config.unlock()
    *sections, name = key.split('.')
    section = config
    for each in sections:
        section = section[each]
    del section[name]
    section[name] = value
    return config


def built(config):
    """Builds what a run does before it compiles; what was accepted must lie in its range."""
    validate(config)
    for key, value in flat(config.to_dict()).items():
        if key in RANGES and not RANGES[key].holds(value):
            return f'{key}={value!r:.80} was accepted'
        if key in CHOICES and value not in CHOICES[key]:
            return f'{key}={value!r:.80} was accepted'
    build.reading(config)
    build.augment(config)
    if config.model.width <= 64 and config.model.depth <= 50:
        build.model(config, 5)
    build.optimizer(config)
    build.loss(config, 5)
    build.normalize(config)
    return ''
