"""Optimizers by name: the paper's SGD, equal to torch's (Sec. 4.2), and those of optax."""

import ast
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ann_jax.errors import ConfigError, unknown
from ann_jax.ranges import check
from ann_jax.training import groups

DECAYS = ('all', 'kernels')
# Optimizers that a step cannot serve, and why.
REFUSED = {
    'lbfgs': 'its line search computes the loss several times a step',
    'polyak_sgd': 'it needs the value of the loss beside the gradients',
    'rprop': 'it is for gradients of the whole data set, and has no learning rate to schedule',
    'noisy_sgd': 'it keeps a random key, which checkpoints do not hold',
    'optimistic_adam': 'its learning rate cannot be scheduled; optimistic_adam_v2 can',
    'sam': 'it computes the gradients twice a step',
    'dpsgd': 'it needs the gradients of every image',
}
# What other settings determine.
_SETTINGS = {
    'learning_rate': 'optim.learning_rate',
    'weight_decay': 'optim.weight_decay',
    'mask': 'optim.decay and optim.decay_factors',
    'weight_decay_mask': 'optim.decay and optim.decay_factors',
}
# Arguments that are the share of a moving average that a step keeps.
_AVERAGES = ('b1', 'b2', 'b3', 'rho', 'decay', 'momentum')


def sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay: str = 'all',
    decay_factors: Mapping[str, float] | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """torch's SGD: the decay is added to the gradient before the momentum; the learning rate comes last.

    Args:
        schedule: step -> learning rate.
        momentum: fraction of the velocity that is kept.
        weight_decay: factor on the parameters that decay.
        decay: 'all' parameters, like the authors, or only 'kernels' of convolutions.
        decay_factors: on the decay of parts of the network, see `groups`.
        nesterov: Nesterov's momentum.

    Raises:
        ConfigError: unknown `decay`, or a number is out of its range.
    """
    check('optim.momentum', momentum)
    check('optim.weight_decay', weight_decay)
    return optax.chain(
        _decayed(weight_decay, decay, decay_factors or {}),
        optax.trace(momentum, nesterov),
        optax.scale_by_learning_rate(schedule),
    )


def make_optimizer(
    schedule: optax.Schedule,
    name: str = 'sgd',
    args: Mapping[str, Any] | None = None,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decay: str = 'all',
    decay_factors: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """An optimizer by its name.

    Weight decay is the optimizer's own if it has any (adamw, lamb, lion, ...: apart from the gradient);
    otherwise it is added to the gradient, as torch does for Adam, RMSprop and others.

    Args:
        schedule: step -> learning rate.
        name: 'sgd', or a factory of optax.
        args: of the factory, see `arguments`.
        momentum: of 'sgd'.
        weight_decay, decay, decay_factors: see `sgd`.

    Raises:
        ConfigError: the name or an argument is unknown or cannot be used.
    """
    factors, args = decay_factors or {}, dict(args or {})
    if name == 'sgd':
        return sgd(
            schedule,
            momentum=momentum,
            weight_decay=weight_decay,
            decay=decay,
            decay_factors=factors,
            **args,
        )

    def rated(**decay):
        if name == 'sm3':  # takes no schedule, and its steps are proportional to the rate
            return optax.chain(_factories()[name](1.0, **args), optax.scale_by_schedule(schedule))
        return _factories()[name](schedule, **args, **decay)

    if 'weight_decay' not in inspect.signature(_factories()[name]).parameters:
        return optax.chain(_decayed(weight_decay, decay, factors), rated())
    if decay == 'all' and not factors:
        return rated(weight_decay=weight_decay)

    # One group per factor: arguments named `mask` know only two.
    names = {factor: f'group_{i}' for i, factor in enumerate(sorted({0.0, 1.0, *factors.values()}))}

    def label(path):
        decays = decay == 'all' or path.split('/')[-1] == 'kernel'
        return names[groups.factor_of(path, factors) if decays else 0.0]

    def of_params(params):
        groups.check(factors, params, 'optim.decay_factors')
        return groups.labels(params, label)

    each = {names[factor]: rated(weight_decay=factor * weight_decay) for factor in names}
    return optax.partition(each, of_params)


def arguments(name: str, text: str) -> dict[str, Any]:
    """Arguments of an optimizer, from a text such as 'b2=0.95,nesterov=True'.

    Raises:
        ConfigError: the optimizer or an argument is unknown or cannot be used.
    """
    factories = _factories()
    if name in REFUSED:
        raise ConfigError(f'optim.name={name}: {REFUSED[name]}, which this training step does not')
    if name not in factories:
        if hasattr(optax.contrib, name):
            raise ConfigError(
                f'optim.name={name}: it is in optax.contrib, whose optimizers differ in what they need: pass '
                f'it from Python, ann_jax.train(config, workdir, optimizer=optax.contrib.{name}(...))'
            )
        raise ConfigError(unknown('optim.name', name, sorted(factories)))
    known = _known_arguments(name)
    args = {}
    for item in filter(None, (item.strip() for item in text.split(','))):
        key, equals, value = (each.strip() for each in item.partition('='))
        if key in _SETTINGS:
            raise ConfigError(f'optim.args={text!r}: {key} is set by {_SETTINGS[key]}')
        if name == 'sgd' and key == 'momentum':
            raise ConfigError(f'optim.args={text!r}: the momentum of sgd is set by optim.momentum')
        if not equals or key not in known:
            takes = ', '.join(f'{each}={default}' for each, default in known.items()) or 'none'
            what = unknown(f'argument of {name}', key, known).split('known: ')[0]
            raise ConfigError(f'optim.args={text!r}: {what}it takes {takes}')
        if key in args:
            raise ConfigError(f'optim.args={text!r}: {key} is given twice')
        args[key] = _value(value)
        # Any text would be true.
        if isinstance(known[key], bool) and not isinstance(args[key], bool):
            raise ConfigError(f'optim.args={text!r}: {key} must be True or False')
        if key in _AVERAGES and isinstance(args[key], (int, float)) and not 0 <= args[key] < 1:
            raise ConfigError(f'optim.args={text!r}: {key} must be at least 0 and less than 1')
    _try(name, args, text)
    return args


def _value(text):
    try:
        return ast.literal_eval(text.capitalize() if text in ('true', 'false') else text)
    except (ValueError, SyntaxError):
        return text  # the name of a dtype


def _try(name, args, text):
    """Runs the optimizer on shapes alone: what it cannot compute with is told by its own error."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)  # no device is opened
    params = {'kernel': shape((1, 1, 2, 2)), 'bias': shape((2,))}

    def update(params):
        tx = make_optimizer(lambda step: 0.1, name, args)
        return tx.update(params, tx.init(params), params)

    try:
        jax.eval_shape(update, params)
    except Exception as error:  # whatever the factory raises
        why = ' '.join(str(error).split())[:200]
        raise ConfigError(f'optim.args={text!r}: {name} cannot be used with it ({why})') from error


def _known_arguments(name):
    """Argument -> default, of those that `optim.args` may give."""
    if name == 'sgd':  # the rest is set by settings of its own
        return {'nesterov': False}
    parameters = inspect.signature(_factories()[name]).parameters.items()
    return {key: each.default for key, each in parameters if key not in _SETTINGS}


@functools.cache
def _factories() -> dict[str, Callable]:
    """Optimizers of optax: functions whose first argument is the learning rate."""
    found = {}
    for name in dir(optax):
        function = getattr(optax, name)
        skipped = name.startswith(('_', 'scale_by')) or name in REFUSED or inspect.isclass(function)
        if callable(function) and not skipped:
            try:
                first = next(iter(inspect.signature(function).parameters), '')
            except ValueError:  # of a builtin
                continue
            if first == 'learning_rate':
                found[name] = function
    return found


def _decayed(weight_decay, decay, factors):
    """Adds the decay to the gradient; the state has one form, whatever the factors are."""
    if decay not in DECAYS:
        raise ConfigError(unknown('decay', decay, DECAYS))

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: decay == 'all' or path[-1].key == 'kernel', params
        )

    plain = optax.add_decayed_weights(weight_decay, mask)
    if not factors:
        return plain

    def init(params):
        groups.check(factors, params, 'optim.decay_factors')
        return plain.init(params)

    # It adds what is proportional to the parameters.
    update = lambda gradients, state, params: plain.update(gradients, state, groups.scaled(params, factors))
    return optax.GradientTransformation(init, update)
