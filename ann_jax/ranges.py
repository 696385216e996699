"""The range of every number among the settings: the one table that configs and weights are checked against.

A number must lie in its range, ends included, and be finite; `whole` ones are ints. A new setting needs an
entry here, or in CHOICES of `config.py` if it is one of a few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ann_jax.errors import ConfigError

_LONG = 100  # characters of a value in a message
_WORDS = {0: 'no', 1: 'one', 2: 'two', 3: 'three', 4: 'four'}


@dataclass(frozen=True)
class Range:
    """What a number, or each number of a tuple, may be.

    Attributes:
        low, high: the ends, included.
        whole: only ints.
        also: a value outside the range that has a meaning of its own.
        meaning: of `also`.
        counts: how many numbers a tuple may hold; None for a single number.
        distinct: no number may occur twice.
        rising: no number may be below the one before it.
        any_above_zero: they may not all be 0.
    """

    low: float
    high: float
    whole: bool = False
    also: int | None = None
    meaning: str = ''
    counts: Sequence[int] | None = None
    distinct: bool = False
    rising: bool = False
    any_above_zero: bool = False

    def __str__(self):
        kind = 'whole number' if self.whole else 'number'
        ends = f'from {self.low} to {self.high}'
        if self.counts is None:
            also = '' if self.also is None else f', or {self.also} for {self.meaning}'
            return f'a {kind} {ends}{also}'
        if isinstance(self.counts, range):
            count = f'{self.counts[0]} to {self.counts[-1]}'
        else:
            count = ' or '.join(_WORDS[n] for n in self.counts)
        rules = (
            (self.distinct, 'none of them twice'),
            (self.rising, 'in rising order'),
            (self.any_above_zero, 'not all of them 0'),
        )
        return ', '.join([f'{count} {kind}s {ends}', *(rule for holds, rule in rules if holds)])

    def holds(self, value: Any) -> bool:
        """Whether a setting may have the value."""
        if self.counts is None:
            return self._number(value)
        if not isinstance(value, list | tuple) or len(value) not in self.counts:
            return False
        return (
            all(map(self._number, value))
            and not (self.distinct and len(set(value)) < len(value))
            and not (self.rising and list(value) != sorted(value))
            and not (self.any_above_zero and len(value) > 0 and not any(value))
        )

    def _number(self, value):
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        # A comparison with NaN is false, and ints of any size compare with floats.
        return bool(self.low <= value <= self.high) or (self.also is not None and value == self.also)


_MOST = 2**31 - 1  # of what is counted in int32
_LONGEST = 32_767  # side of an image that OpenCV resizes
_MANY = 1024

_count = Range(1, _MOST, whole=True)
_channels = Range(1, 65_536, whole=True)
_devices = Range(1, _MOST, whole=True, also=-1, meaning='what is left')


def _or_zero(meaning, low=1, high=_MOST):
    return Range(low, high, whole=True, also=0, meaning=meaning)


def _few(low, high, most=_MANY, **rules):
    return Range(low, high, whole=True, counts=range(1, most + 1), **rules)


RANGES = {
    'seed': Range(0, 2**32 - 1, whole=True),
    'mesh.data': _devices,
    'mesh.space': _devices,
    'dataset.page': _or_zero('no files with several images'),
    'dataset.max_pixels': Range(1, 2**63 - 1, whole=True),
    'dataset.val_share': Range(0, 0.99),
    'dataset.repeat_threshold': Range(0, 1),
    'dataset.scenes.version': Range(1, 3, whole=True),
    'dataset.scenes.seed': Range(0, 2**32 - 1, whole=True),
    'dataset.scenes.train_count': _count,
    'dataset.scenes.eval_count': _count,
    'dataset.scenes.height': Range(64, _LONGEST, whole=True),
    'dataset.scenes.width': Range(128, _LONGEST, whole=True),
    # Below 32, Stage5 of the largest output stride would be less than a pixel.
    'augment.crop': Range(32, _LONGEST, whole=True, counts=(2,)),
    'augment.scale_range': Range(0.1, 10, counts=(2,), rising=True),
    'augment.aspect_range': Range(0.1, 10, counts=(2,), rising=True),
    'augment.brightness': Range(0, 255, whole=True),
    'augment.resize_short': _or_zero('the size of the image', 32, _LONGEST),
    'augment.jitter': Range(0, 1, counts=(4,)),
    'augment.jitter_share': Range(0, 1),
    'augment.blur': Range(0, 1),
    'augment.blur_sigma': Range(0.1, 30, counts=(2,), rising=True),
    'augment.noise': Range(0, 255),
    'augment.grey': Range(0, 1),
    'augment.rotation': Range(0, 180),
    'augment.max_class_share': Range(0.01, 1),
    'augment.rare_crop': Range(0, 1),
    'augment.rand_augment': Range(0, 14, whole=True),
    'augment.rand_magnitude': Range(0, 30, whole=True),
    'augment.mix_share': Range(0, 1),
    'loader.workers': Range(-1, 256, whole=True),
    'loader.threads': Range(0, 1024, whole=True),
    # The levels that they normalise are from 0 to 255.
    'input.mean': Range(0, 255, counts=range(1, _MANY + 1)),
    'input.std': Range(0.001, 1000, counts=range(1, _MANY + 1)),
    'model.width': Range(1, 4096, whole=True),
    'model.stem_widths': Range(1, 4096, whole=True, counts=(1, 3)),
    'model.multi_grid': _few(1, 64),
    'model.fuse_stages': _few(2, 4, 3, distinct=True),
    'model.sizes': _few(1, _MANY, distinct=True),
    'model.key_channels': _channels,
    'model.head_channels': _channels,
    'model.aux_channels': _or_zero('no auxiliary head', 1, 65_536),
    'model.decoder_channels': _channels,
    'model.dropout': Range(0, 0.99),
    'model.remat': Range(2, 5, whole=True, counts=range(5), distinct=True),
    'loss.threshold': Range(0, 1),
    'loss.min_kept': Range(0, _MOST, whole=True),
    'loss.aux_weight': Range(0, 100),
    'loss.class_weights': Range(0, 1e6, counts=range(256), any_above_zero=True),
    'loss.label_smoothing': Range(0, 0.99),
    'loss.boundary_weight': Range(0, 1000),
    'loss.boundary_width': Range(1, 256, whole=True),
    'loss.focal_gamma': Range(0, 10),
    'loss.tversky': Range(0, 100, counts=(2,), any_above_zero=True),
    # Training that diverges is told by its loss, see train.not_finite.
    'optim.learning_rate': Range(0, 1e30),
    'optim.power': Range(0, 100),
    'optim.warmup_steps': Range(0, _MOST, whole=True),
    'optim.warmup_factor': Range(0, 1),
    'optim.momentum': Range(0, 0.9999),
    'optim.weight_decay': Range(0, 1),
    'optim.clip_norm': Range(0, 1e30),
    'optim.ema_decay': Range(0, 0.999999),
    'export.size': Range(32, _LONGEST, whole=True, counts=(2,)),
    'benchmark.rounds': _count,
    'benchmark.peak_size': _or_zero('what suits the machine', 1, 65_536),
    'benchmark.reference_batch': Range(1, 65_536, whole=True),
    'benchmark.stream_images': Range(1, 65_536, whole=True),
    'benchmark.stream_batch': Range(1, 65_536, whole=True),
    'train.steps': _count,
    'train.batch_size': Range(1, 65_536, whole=True),
    'predict.batch_size': Range(1, 65_536, whole=True),
    'train.accumulate': Range(1, 65_536, whole=True),
    'train.log_every': _count,
    'train.checkpoint_every': _count,
    'train.eval_every': _count,
    'train.patience': Range(0, _MOST, whole=True),
    'eval.batch_size': _or_zero('one per index of mesh.data', 1, 65_536),
    'eval.limit': _or_zero('all'),
    'eval.pictures': Range(0, 1000, whole=True),
    'eval.scales': Range(0.1, 10, counts=range(1, 65), distinct=True),
    # A pixel of Stage5; () for the whole image.
    'eval.crop': Range(8, _LONGEST, whole=True, counts=(0, 2)),
    'eval.stride': Range(1, _LONGEST, whole=True, counts=(0, 2)),
}


def out_of_range(key: str, value: Any) -> str:
    """One line with the key, the value and its range; '' if the value may be used."""
    rule = RANGES[key]
    return '' if rule.holds(value) else f'{key}={shown(value)}: must be {rule}'


def check(key: str, value: Any) -> None:
    """Checks one setting.

    Raises:
        ConfigError: it is out of its range.
    """
    if line := out_of_range(key, value):
        raise ConfigError(line)


def shown(value: Any) -> str:
    """A value in one line, cut if it is long."""
    try:
        text = repr(tuple(value) if isinstance(value, list) else value)
    except (ValueError, RecursionError):  # an int of too many digits, or nested too deeply
        return f'<{type(value).__name__}>'
    return text if len(text) <= _LONG else f'{text[: _LONG - 3]}...'
