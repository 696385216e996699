"""Imports run one way: from drivers down to the ground, and between neighbours as the table says."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'ann_jax'

# From the ground up: the wings and files of each layer.
LAYERS = {
    'ground': ('errors', 'buckets', 'files', 'ranges', 'typing', 'parallel', 'kernels'),
    'network and data': ('models', 'data'),
    'keeping': ('runs', 'weights'),
    'jobs': ('training', 'inference', 'evaluation'),
    'drivers': ('config', 'command', 'build', 'modes', 'benchmark', 'tools', 'main', '__main__'),
}
# What may be imported of the own layer.
NEIGHBOURS = {
    'buckets': {'errors'},
    'files': {'buckets', 'errors'},
    'ranges': {'errors'},
    'parallel': {'errors'},
    'kernels': {'errors', 'parallel'},
    'weights': {'runs'},
    'evaluation': {'inference'},
    'build': {'config'},
    'modes': {'config', 'build'},
    'benchmark': {'config', 'build'},
    'tools': {'command', 'config', 'build', 'benchmark'},
    'main': {'command', 'config', 'modes', 'benchmark'},
    '__main__': {'main'},
}
LAYER = {wing: number for number, wings in enumerate(LAYERS.values()) for wing in wings}
# The front door, `ann_jax.load`, opens the jobs when asked.
FILES = [path for path in sorted(PACKAGE.rglob('*.py')) if path != PACKAGE / '__init__.py']


def room(path):
    """data/classes for ann_jax/data/classes.py."""
    return path.relative_to(PACKAGE).with_suffix('').as_posix()


ROOMS = {room(path) for path in FILES}


def wing(name):
    return name.split('/')[0]


def imported(path):
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            yield from names if node.module.split('.')[0] == 'ann_jax' else [node.module]


def at_the_top(path):
    """Roots of what a file imports as soon as it is imported itself."""
    body = ast.parse(path.read_text()).body
    names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in body if isinstance(node, ast.ImportFrom)]
    return {name.split('.')[0] for name in names}


def rooms_imported(path):
    for name in imported(path):
        if name.split('.')[0] == 'ann_jax':
            parts = name.split('.')[1:]
            # The longest prefix that is a file: what follows is a name in it.
            prefixes = ['/'.join(parts[:n]) for n in range(len(parts), 0, -1)]
            found = [each for p in prefixes for each in (p, f'{p}/__init__') if each in ROOMS]
            if found:  # the version lies in ann_jax itself
                yield found[0]


def test_every_room_lies_in_a_layer():
    assert {wing(name) for name in ROOMS} == set(LAYER)


@pytest.mark.parametrize('path', FILES, ids=room)
def test_imports_come_from_below_or_from_a_neighbour(path):
    own = wing(room(path))
    allowed = {own, *NEIGHBOURS.get(own, ()), *(other for other in LAYER if LAYER[other] < LAYER[own])}
    climbs = [name for name in rooms_imported(path) if wing(name) not in allowed]
    assert not climbs, f'{room(path)} imports {climbs}'


def test_no_circles():
    graph = {room(path): set(rooms_imported(path)) - {room(path)} for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize('path', [p for p in FILES if wing(room(p)) == 'data'], ids=room)
def test_data_knows_no_device(path):
    roots = {name.split('.')[0] for name in imported(path)}
    assert not roots & {'jax', 'flax', 'optax', 'ml_collections', 'torch'}
    assert 'absl' not in roots or room(path) == 'data/pipeline'  # whose workers read flags of grain


@pytest.mark.parametrize('path', FILES, ids=room)
def test_torch_and_configs_stay_where_they_belong(path):
    roots = {name.split('.')[0] for name in imported(path)}
    references = ('benchmark/reference', 'benchmark/torch_ann', 'benchmark/mmseg_ann')
    # Tools write files of torch and safetensors.
    late = roots - at_the_top(path) if wing(room(path)) == 'tools' else set()
    assert 'torch' not in roots - late or room(path) in references
    assert 'safetensors' not in roots - late
    assert 'ml_collections' not in roots or wing(room(path)) in LAYERS['drivers']


@pytest.mark.parametrize('path', FILES, ids=room)
def test_text_is_read_and_written_in_a_named_encoding(path):
    """The one of the system is not UTF-8 everywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
        text = name in ('read_text', 'write_text', 'FileHandler', '_Quiet', 'TextIOWrapper')
        if name in ('open', 'fdopen') and not {'Image', 'av', 'rasterio'} & {
            *ast.unparse(node.func).split('.')
        }:
            modes = node.args[isinstance(node.func, ast.Name) :]  # a path's own method has no path
            text = not any('b' in str(getattr(arg, 'value', '')) for arg in modes)
        encoded = any(keyword.arg == 'encoding' for keyword in node.keywords)
        assert encoded or not text, f'line {node.lineno}: {ast.unparse(node)}'


@pytest.mark.parametrize('path', [p for p in FILES if wing(room(p)) not in ('kernels', 'parallel')], ids=room)
def test_only_kernels_and_parallel_ask_for_mesh_and_platform(path):
    text = path.read_text()
    for question in ('get_abstract_mesh', 'row_shards', 'platform_dependent', 'default_backend', 'on_cpu'):
        assert question not in text or wing(room(path)) == 'benchmark', question


def test_no_layer_takes_a_mesh_or_rows():
    for path in FILES:
        if wing(room(path)) != 'models':
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                names = {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)}
                assert not names & {'mesh', 'rows', 'low_rows', 'split', 'platform'}, (
                    f'{room(path)}: {node.name}'
                )
