"""Parts of a network, chosen by name: parameter groups, and normalisation in evaluation mode.

A name is the beginning of a parameter's path, such as 'backbone' or 'fusion/query', up to a '/' or '_';
or one of `SHORT`. Where several names fit, the longest path counts.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from ann_jax.errors import ConfigError, unknown
from ann_jax.models.layers import BatchNorm

# Stages as the paper counts them.
SHORT = {
    'all': '',
    'stem': 'backbone/stem',
    'stage2': 'backbone/layer1',
    'stage3': 'backbone/layer2',
    'stage4': 'backbone/layer3',
    'stage5': 'backbone/layer4',
}
_HIGHEST = 1000  # factor


def parse_names(text: str) -> tuple[str, ...]:
    """'stem, stage2' -> names."""
    return tuple(filter(None, (item.strip() for item in text.split(','))))


def parse_factors(text: str, setting: str) -> dict[str, float]:
    """'backbone=0.1,stem=0' -> factor by name.

    Raises:
        ConfigError: the text has another form, a part occurs twice, or a number is not a factor.
    """
    factors: dict[str, float] = {}
    paths = set()
    for item in parse_names(text):
        name, _, number = (each.strip() for each in item.partition('='))
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        path = SHORT.get(name, name)  # `stem` and `backbone/stem` are one part
        if not name or path in paths or not 0 <= factor <= _HIGHEST:
            raise ConfigError(
                f'{setting}={text!r}: {item!r} must be NAME=FACTOR, each part once, with a factor from 0 to '
                f'{_HIGHEST}, as in backbone=0.1,stem=0'
            )
        paths.add(path)
        factors[name] = factor
    return factors


def belongs(path: str, name: str) -> bool:
    """Whether a path such as 'backbone/layer1_0/conv1/kernel' lies in the part of that name."""
    prefix = SHORT.get(name, name)
    return not prefix or path == prefix or path.startswith((f'{prefix}/', f'{prefix}_'))


def factor_of(path: str, factors: Mapping[str, float]) -> float:
    """The factor of the longest name that fits; 1 if none does."""
    length: Callable[[str], int] = lambda name: len(SHORT.get(name, name))
    names = [name for name in factors if belongs(path, name)]
    return factors[max(names, key=length)] if names else 1.0


def of_trained(some: Mapping[str, float], factors: Mapping[str, float]) -> dict[str, float]:
    """The items of `some` whose part is not frozen as a whole: an optimizer does not see frozen parts."""

    def is_frozen(name):
        path = SHORT.get(name, name)
        inside = [other for other in factors if belongs(SHORT.get(other, other), name)]
        return not factor_of(path, factors) and not any(factors[other] for other in inside)

    return {name: factor for name, factor in some.items() if not is_frozen(name)}


def check(names: Collection[str], tree: Any, setting: str) -> None:
    """Refuses names of no part.

    Args:
        names: as given.
        tree: parameters or statistics, in dicts.
        setting: what the names were given for, for the message.

    Raises:
        ConfigError: a name fits no path.
    """
    paths = list(_flat(tree)) if names else []
    for name in names:
        if not any(belongs(path, name) for path in paths):
            short = [known for known in SHORT if any(belongs(path, known) for path in paths)]
            parts = dict.fromkeys([*short, *(path.split('/')[0] for path in paths)])
            raise ConfigError(
                f'{setting}: {unknown("part", name, parts)}, or the beginning of a path in them'
            )


def trained(params: Any, factors: Mapping[str, float]) -> Any:
    """The parameters whose factor is not 0; all of them, as they are, if no factor is 0.

    Raises:
        ConfigError: a name fits no parameter, or all are frozen.
    """
    check(factors, params, 'optim.factors')
    if 0 not in factors.values():
        return params
    kept = {path: x for path, x in _flat(params).items() if factor_of(path, factors)}
    if not kept:
        raise ConfigError('optim.factors: the factor of every part is 0, so that nothing would be trained')
    return _nested(kept)


def whole(params: Any, some: Any) -> Any:
    """All parameters, those in `some` from there."""
    if len(jax.tree.leaves(params)) == len(jax.tree.leaves(some)):
        return some
    return _nested(_flat(params) | _flat(some))


def scaled(tree: Any, factors: Mapping[str, float]) -> Any:
    """Each array of a tree times its factor."""
    if not factors:
        return tree
    times = lambda x, factor: x if factor == 1 else x * factor
    return _nested({path: times(x, factor_of(path, factors)) for path, x in _flat(tree).items()})


def labels(tree: Any, label: Callable[[str], str]) -> Any:
    """A label for every path, in the form of the tree."""
    return _nested({path: label(path) for path in _flat(tree)})


@contextlib.contextmanager
def frozen_norms(is_frozen: Callable[[str], bool]) -> Iterator[None]:
    """Inside, batch normalisation at paths that `is_frozen` takes is in evaluation mode, also when training.

    It normalises by its running statistics and leaves them as they are. This package's `BatchNorm` and
    Flax's are meant; others are not known.
    """

    def intercept(call, args, kwargs, context):
        module = context.module
        if context.method_name != '__call__' or not is_frozen('/'.join(module.path)):
            return call(*args, **kwargs)
        if isinstance(module, BatchNorm):
            return call(*args[:1], **kwargs | {'train': False})
        if isinstance(module, nn.BatchNorm):
            given = module.use_running_average
            if given is None:
                return call(*args, **kwargs | {'use_running_average': True})
            object.__setattr__(module, 'use_running_average', True)  # Flax refuses to be given it twice
            try:
                return call(*args, **kwargs)
            finally:
                object.__setattr__(module, 'use_running_average', given)
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def kept_statistics(before: Any, after: Any, is_frozen: Callable[[str], bool]) -> Any:
    """Running statistics after a step, but those of frozen normalisation as they were."""
    old = _flat(before)
    return _nested({path: old[path] if is_frozen(path) else x for path, x in _flat(after).items()})


def _flat(tree):
    return traverse_util.flatten_dict(dict(tree), sep='/')


def _nested(flat):
    return traverse_util.unflatten_dict(flat, sep='/')
