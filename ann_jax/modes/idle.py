"""Settings that were changed and have no effect, because another one is off."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from ann_jax.config import defaults
from ann_jax.ranges import shown
from ann_jax.runs import history
from ann_jax.training import terms


def _has_term(name: str) -> Callable[[ConfigDict], bool]:
    return lambda c: name in dict(terms.chosen(c.loss.terms, c.loss.ohem))


# Settings, when they have an effect, and what that takes.
_RULES: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], object], str], ...] = (
    (('augment.jitter_share',), lambda c: np.any(c.augment.jitter), 'augment.jitter above 0'),
    (('augment.blur_sigma',), lambda c: c.augment.blur, 'augment.blur above 0'),
    (('augment.rand_magnitude',), lambda c: c.augment.rand_augment, 'augment.rand_augment above 0'),
    (('augment.mix_share',), lambda c: c.augment.mix != 'none', 'an augment.mix'),
    (('loss.ohem',), lambda c: not c.loss.terms, 'an empty loss.terms'),
    (('loss.threshold',), _has_term('ohem'), 'the term ohem in loss.terms'),
    (('loss.focal_gamma',), _has_term('focal'), 'the term focal in loss.terms'),
    (('loss.tversky',), _has_term('tversky'), 'the term tversky in loss.terms'),
    (('loss.boundary_width',), lambda c: c.loss.boundary_weight != 1, 'another loss.boundary_weight than 1'),
    (('optim.momentum',), lambda c: c.optim.name == 'sgd', 'optim.name=sgd; others take optim.args'),
    (('optim.power',), lambda c: c.optim.schedule == 'poly', 'optim.schedule=poly'),
    (('optim.warmup_factor',), lambda c: c.optim.warmup_steps, 'optim.warmup_steps above 0'),
    (('optim.decay', 'optim.decay_factors'), lambda c: c.optim.weight_decay, 'optim.weight_decay above 0'),
    (('eval.stride',), lambda c: c.eval.crop, 'an eval.crop'),
    (
        ('eval.average',),
        lambda c: c.eval.flip or len(c.eval.scales) > 1,
        'eval.flip, or more than one of eval.scales',
    ),
)


def idle_settings(config: ConfigDict) -> list[str]:
    """A line for each setting that differs from its default and has no effect."""
    default, given = (history.flat(each.to_dict()) for each in (defaults(), config))
    return [
        f'{key}={shown(given[key])} has no effect: it needs {needs}'
        for keys, acts, needs in _RULES
        for key in keys
        if given[key] != default[key] and not acts(config)
    ]
