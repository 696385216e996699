"""Finds the state dict of a ResNet or an ANN in what a file holds, whatever it is wrapped in.

Training code wraps networks: the state dict lies in a dict beside the optimizer, and its keys begin with the
names of the modules around the network. Both are found by what they lead to: the keys of a stem and of the
first block after it.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ann_jax.errors import DataError
from ann_jax.weights.layouts import BLOCK_MARKS, HEAD_MARKS, STEMS
from ann_jax.weights.pickles import Unread

PREFERENCES = (None, 'ema')
# Modules that wrap others and mean nothing for the network: DataParallel, torch.compile, FSDP, checkpointing.
_WRAPPING = r'(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
# Names of moving averages of the weights, and of the networks that contrastive training averages.
_AVERAGED = re.compile(r'(?i)(^|[._])(ema|k|key|momentum|teacher|target|avg|averaged?|swa)([._]|$)')
_BUFFER = r'\.(running_mean|running_var|num_batches_tracked)$'
_SWAPPED = 'ema_state_dict'
# Where a file has several networks of one kind, the first of these is taken.
_USUAL = ('state_dict', 'model_state_dict', 'model')
# Where else a network may be.
_WRAPPERS = (*_USUAL, 'model_state', 'net', 'network', 'params', 'weights', 'model_ema', 'ema', 'teacher')


class Found(NamedTuple):
    """A state dict.

    Attributes:
        state: key -> tensor, or what is `Unread`; keys as the network itself has them.
        outside: keys of tensors that are not part of the network.
        notes: what was taken off, and what else the file holds.
    """

    state: dict[str, Any]
    outside: list[str]
    notes: list[str]


class _Candidate(NamedTuple):
    wrapper: str  # names of the dicts around it, such as 'state_dict'
    prefix: str  # of the keys of a whole network, or of a backbone alone
    state: dict[str, Any]
    wrapping: list[str]  # what was taken off its keys
    averaged: bool

    def __str__(self):
        where = [self.wrapper] if self.wrapper else []
        return ', '.join(where + [f'below {self.prefix!r}'] if self.prefix else where or ['the file itself'])


def find(content: Mapping[str, Any], prefer: str | None = None, file: str = 'IN.pth') -> Found:
    """Finds the network in a checkpoint; of several, the one that was trained, or its moving average.

    Args:
        content: a dict with string keys.
        prefer: 'ema' for the moving average.
        file: its name, for messages.

    Raises:
        DataError: there are several networks, a module instead of its tensors, two tensors of one name, or
            no moving average.
    """
    candidates = [each for wrapper, tree in _trees(content) for each in _candidates(wrapper, tree)]
    if not candidates:
        return _unknown(content, file)
    averaged = [each for each in candidates if each.averaged]
    plain = [each for each in candidates if not each.averaged]
    notes = []
    if any(each.wrapper == _SWAPPED and not each.averaged for each in candidates):
        notes.append(f'state_dict is the moving average, as mmengine saves it, and {_SWAPPED} is without')
        prefer = None
    if prefer == 'ema' and not averaged:
        raise DataError('prefer=ema: it holds no moving average of the weights')
    chosen = averaged if prefer == 'ema' or not plain else plain
    chosen.sort(key=lambda each: _USUAL.index(each.wrapper) if each.wrapper in _USUAL else len(_USUAL))
    taken, *rivals = chosen
    rivals = [each for each in rivals if not _equal(each.state, taken.state) or each.prefix != taken.prefix]
    if rivals and (taken.wrapper not in _USUAL or rivals[0].wrapper == taken.wrapper):
        raise DataError(
            f'holds several networks ({"; ".join(map(str, [taken, *rivals]))}): save the state dict of one'
        )
    if others := [each for each in candidates if each is not taken]:
        average = ', a moving average' if taken.averaged else ''
        notes.append(f'taken: {taken}{average}; also there: {"; ".join(map(str, others))}')
        if averaged and not taken.averaged:
            notes[-1] += f'. A moving average of the weights ({averaged[0]}) is taken with prefer=ema'
    elif taken.averaged:
        notes.append(f'taken: {taken}, by its name a moving average')
    if taken.averaged and (lent := _statistics(taken, candidates)):
        taken.state.update(lent)
        notes.append('the moving average has no running statistics: they are those of the weights beside it')
    if taken.wrapping:
        notes.append(f'taken off the names of its tensors: {", ".join(taken.wrapping)}')
    prefix, state = taken.prefix, taken.state
    below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    outside = [key for key in state if not key.startswith(prefix)]
    if prefix:
        notes.append(f'taken off the names of its tensors: {prefix}')
    if outside:
        roots = ', '.join(dict.fromkeys(key.split('.')[0] for key in outside))
        notes.append(f'left out, because it is not below {prefix}: {roots}')
    return Found(below, outside, notes)


def _statistics(average, candidates):
    """Running statistics for an average of parameters alone, from the weights that it is the average of."""
    below = lambda each: {key.removeprefix(each.prefix) for key in each.state if key.startswith(each.prefix)}
    for each in candidates:
        buffers = {key for key in below(each) if re.search(_BUFFER, key)}
        if not each.averaged and buffers and below(each) - buffers == below(average):
            return {f'{average.prefix}{key}': each.state[f'{each.prefix}{key}'] for key in buffers}
    return {}


def _unknown(content, file):
    """The tensors of a network that is not known, for a message about them."""
    tensors = any(isinstance(value, np.ndarray | dict) for value in content.values())
    for name in (*_WRAPPERS, *([] if tensors else content)):
        module = content.get(name)
        if isinstance(module, Unread) and module.name.split('.')[0] not in sys.stdlib_module_names:
            raise DataError(module_cure(module.name, file, f'[{name!r}]'))
    names = [name for name in _WRAPPERS if isinstance(content.get(name), dict)]
    return Found(dict(content[names[0]] if names else content), [], [])


def module_cure(name: str, file: str, index: str = '') -> str:
    """The message for a pickled module or a TorchScript program, with the Python that takes its tensors out.

    Args:
        name: of its class.
        file: that holds it.
        index: Python that follows the content of the file, to reach the module.
    """
    script = name.startswith('__torch__')
    read = f'torch.jit.load({file!r})' if script else f'torch.load({file!r}, weights_only=False){index}'
    out = file.rpartition('.')[0] + '_state.pth'
    what = 'a TorchScript program' if script else f'an object of {name}'
    where = 'with torch' if script else 'where its code is installed, if you trust it'
    return (
        f'holds {what}, not a state dict of names and tensors: {where}, run '
        f'python -c "import torch; torch.save({read}.state_dict(), {out!r})"'
    )


def _trees(tree: Mapping, name: str = '', depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The dicts with tensors in a file, and their names."""
    if depth < 5 and all(isinstance(key, str) for key in tree):
        if any(isinstance(value, np.ndarray | Unread) for value in tree.values()):
            yield name, tree
        for key, value in tree.items():
            if isinstance(value, dict) and 'optim' not in key:  # its moments may have the names of weights
                yield from _trees(value, f'{name}.{key}' if name else key, depth + 1)


def _candidates(wrapper, tree):
    state: dict[str, Any] = {}
    names: dict[str, str] = {}
    for key, value in tree.items():
        short = re.sub(_WRAPPING, '', key)
        if short in state and not _same(state[short], value):
            raise DataError(f'holds {short} twice, as {names[short]} and as {key}, which differ: keep one')
        state[short], names[short] = value, key
    wrapping = sorted({found[0] for key in tree for found in re.finditer(_WRAPPING, key)})
    # mmcv saves the average of x.weight as ema_x_weight.
    average = {
        key: state.pop(name) for key in list(state) if (name := f'ema_{key.replace(".", "_")}') in state
    }
    # mmengine saves the average as state_dict, and the weights that are trained in its place.
    swapped = wrapper == _SWAPPED and 'steps' in tree
    for prefix in _prefixes(state):
        averaged = bool(_AVERAGED.search(f'{wrapper}.{prefix}'.strip('.'))) and not swapped
        yield _Candidate(wrapper, prefix, state, wrapping, averaged)
        if average:
            name = f'{wrapper or "the file itself"}, ema_*'
            yield _Candidate(name, prefix, {**state, **average}, wrapping, True)


def _prefixes(state):
    """Prefixes below which there is a network."""
    found = []
    for name, (_, mark) in STEMS.items():
        block = BLOCK_MARKS.get(name, 'layer1.0.conv1.weight')
        for key in state:
            prefix = key.removesuffix(mark)
            if key.endswith(mark) and prefix[-1:] in ('', '.') and prefix + block in state:
                found.append(_whole(prefix, state))
    return list(dict.fromkeys(found))


def _whole(prefix, state):
    """The prefix of the whole network around a backbone, if its heads are of a kind that is known."""
    for last in ('backbone.', 'backbone_net.'):
        outer = prefix.removesuffix(last)
        if outer != prefix and outer[-1:] in ('', '.'):
            heads = tuple(outer + head for heads in HEAD_MARKS.values() for head in heads)
            return outer if any(key.startswith(heads) for key in state) else prefix
    return prefix


def _same(one, other):
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(one, other)


def _equal(one, other):
    return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
