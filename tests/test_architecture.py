"""Imports run one way: a room knows only rooms on lower floors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'ann_jax'

FLOORS = [
    [
        '__init__',
        'data/__init__',
        'models/__init__',
        'typing',
        'errors',
        'winograd',
        'pooling',
        'data/names',
    ],
    ['ops', 'losses', 'metrics', 'optim', 'sharding', 'visualize', 'weights', 'canvas', 'convolution'],
    [
        'processes',
        'rows',
        'workdir',
        'stopping',
        'data/classes',
        'data/reading',
        'data/survey',
        'data/transforms',
    ],
    ['data/scene_objects', 'data/pipeline', 'models/layers', 'models/convert'],
    ['data/archives', 'data/decode', 'data/own'],
    ['data/scenes', 'data/files', 'inference', 'state', 'report', 'models/resnet', 'models/blocks'],
    ['data/datasets', 'data/records', 'models/ann', 'train_step', 'checkpoint'],
    ['models/recognize', 'models/deploy', 'config', 'accumulate'],
    ['evaluate'],
    ['build'],
    ['restore', 'browse', 'check'],
    ['resume'],
    ['train', 'segmenter'],
    ['predict', 'export', 'benchmark/contest', 'benchmark/mmseg_peer', 'benchmark/torch_peer'],
    ['benchmark/attention', 'benchmark/reading', 'benchmark/heads', 'benchmark/dilation'],
    ['benchmark/networks', 'benchmark/peer'],
    ['benchmark/__init__'],
    ['main'],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob('*.py'))


def room(path):
    return path.relative_to(PACKAGE).with_suffix('').as_posix()


def imported(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            yield from names if node.module.split('.')[0] == 'ann_jax' else [node.module]


def rooms_imported(path):
    for name in imported(path):
        if name.split('.')[0] == 'ann_jax':
            parts = name.split('.')[1:]
            # The longest prefix that is a file: what follows is a name in it.
            found = [p for p in ('/'.join(parts[:n]) for n in range(len(parts), 0, -1)) if p in FLOOR]
            yield found[0] if found else '__init__'


def test_every_room_has_a_floor():
    assert sorted(map(room, FILES)) == sorted(FLOOR)


# The front door, `ann_jax.load`, opens the top floor, when asked.
@pytest.mark.parametrize('path', [p for p in FILES if room(p) != '__init__'], ids=room)
def test_imports_only_from_lower_floors(path):
    climbs = [other for other in rooms_imported(path) if FLOOR[other] >= FLOOR[room(path)]]
    assert not climbs, f'{room(path)} imports {climbs}, which do not lie below it'


@pytest.mark.parametrize('path', [p for p in FILES if room(p).startswith('data/')], ids=room)
def test_data_knows_no_device(path):
    roots = {name.split('.')[0] for name in imported(path)}
    assert not roots & {'jax', 'flax', 'optax', 'absl', 'ml_collections', 'torch'}


@pytest.mark.parametrize('path', FILES, ids=room)
def test_torch_and_configs_stay_where_they_belong(path):
    roots = {name.split('.')[0] for name in imported(path)}
    peers = ('benchmark/peer', 'benchmark/torch_peer', 'benchmark/mmseg_peer')
    assert 'torch' not in roots or room(path) in peers
    if 'ml_collections' in roots:
        assert FLOOR[room(path)] >= FLOOR['config']
