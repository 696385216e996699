"""Settings that were changed and have no effect, because another one is off."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from ann_jax.config import defaults
from ann_jax.models.ann import VARIANTS
from ann_jax.models.blocks import AFNB, APNB, FNB, NB, CommonFusion
from ann_jax.models.resnet import dilates_pairs
from ann_jax.ranges import shown
from ann_jax.runs import history
from ann_jax.training import terms


def _has_term(name: str) -> Callable[[ConfigDict], bool]:
    return lambda c: name in dict(terms.chosen(c.loss.terms, c.loss.ohem))


def _has_part(*parts: object) -> Callable[[ConfigDict], bool]:
    return lambda c: not {*parts}.isdisjoint(VARIANTS[c.model.variant])


def _dilates_pairs(c: ConfigDict) -> bool:
    return dilates_pairs(c.model.depth, c.model.output_stride, c.model.multi_grid)


# Settings, when they have an effect, and what that takes.
_RULES: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], object], str], ...] = (
    (('augment.jitter_share',), lambda c: np.any(c.augment.jitter), 'augment.jitter above 0'),
    (('augment.blur_sigma',), lambda c: c.augment.blur, 'augment.blur above 0'),
    (('augment.rand_magnitude',), lambda c: c.augment.rand_augment, 'augment.rand_augment above 0'),
    (('augment.mix_share',), lambda c: c.augment.mix != 'none', 'an augment.mix'),
    (
        ('model.fuse_stages',),
        _has_part(CommonFusion, FNB, AFNB),
        'a model.variant that fuses stages, such as afnb',
    ),
    (('model.sampling', 'model.sizes'), _has_part(APNB, AFNB), 'a model.variant with APNB or AFNB'),
    (('model.share',), _has_part(NB, APNB), 'a model.variant with NB or APNB'),
    (('model.out_norm',), _has_part(NB, APNB, FNB, AFNB), 'a model.variant with attention'),
    (
        ('model.dilate_second_conv',),
        _dilates_pairs,
        'model.depth=10, 18 or 34, and dilations by model.output_stride or model.multi_grid',
    ),
    (('loss.ohem',), lambda c: not c.loss.terms, 'an empty loss.terms'),
    (('loss.threshold',), _has_term('ohem'), 'the term ohem in loss.terms'),
    (('loss.focal_gamma',), _has_term('focal'), 'the term focal in loss.terms'),
    (('loss.tversky',), _has_term('tversky'), 'the term tversky in loss.terms'),
    (('loss.aux_weight',), lambda c: c.model.aux_channels, 'model.aux_channels above 0'),
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
