"""The scripts as a user runs them: convert, train from, evaluate, export; and files that are refused."""

import contextlib
import functools
import json
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
from flax import traverse_util
from reference import assert_close, error, nchw, nhwc, normal, oihw, quick
from small import small_folder
from test_main import TINY, run  # noqa: F401

from ann_jax.data.scene_objects import CLASSES
from ann_jax.errors import ConfigError, DataError
from ann_jax.models.ann import ANN
from ann_jax.models.resnet import ResNet
from ann_jax.models.settings import OF_BACKBONE
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.weights import folder as weights
from ann_jax.weights.inputs import normalizer
from ann_jax.weights.layouts import Layout
from ann_jax.weights.opening import open_weights
from ann_jax.weights.start import start

torch = pytest.importorskip('torch', reason='the scripts read and write files of torch')
safetensors = pytest.importorskip('safetensors.torch', reason='the scripts read and write safetensors')

from ann_jax.benchmark.torch_ann import TorchANN  # noqa: E402
from ann_jax.tools.export_checkpoint import main as export  # noqa: E402
from scripts.convert_checkpoint import main as convert  # noqa: E402

THIN = {'depth': 50, 'width': 4, 'key_channels': 8, 'head_channels': 12, 'aux_channels': 6, 'classes': 5}


def torch_network(seed=0, **options):
    """A torch network in which nothing is 0 or 1."""
    torch.manual_seed(seed)
    network = TorchANN(**{**THIN, 'stem_widths': (2, 2, 4), **options}).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                torch.nn.init.uniform_(tensor, low, high)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    return network


def network_of(folder):
    """Our network as a folder of weights describes it."""
    opened = open_weights(folder)
    c = dict(opened.model)
    model = ANN(len(opened.classes), ResNet(**{name: c.pop(name) for name in OF_BACKBONE}), **c)
    return model, opened


@pytest.mark.parametrize('size', [(65, 97), (64, 98), (1, 33)])
@pytest.mark.parametrize(
    'options',
    [
        {'align_corners': True},
        {'stem_widths': (4,), 'ceil_pool': False, 'align_corners': False, 'conv_bias': False},
    ],
)
def test_a_converted_network_equals_torch(options, size, tmp_path, capsys):
    network = torch_network(**options)
    file = tmp_path / 'ann.pth'
    torch.save({'state_dict': {f'module.{key}': value for key, value in network.state_dict().items()}}, file)
    align = str(options['align_corners']).lower()
    convert([str(file), '--out', str(tmp_path / 'ann'), '--align-corners', align])
    printed = capsys.readouterr().out
    assert 'decode_head.conv_seg.weight -> params/classifier/kernel' in printed
    assert 'backbone.layer1.0.bn1.num_batches_tracked left out: step counter' in printed
    model, opened = network_of(tmp_path / 'ann')
    if options.get('ceil_pool', True):  # mmsegmentation's keys, but the authors' pooling
        model = model.clone(backbone=model.backbone.clone(ceil_pool=True))
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    normalize = normalizer(**opened.input)
    apply = functools.partial(model.apply, full_size=True)
    logits = quick(apply)(opened.variables, normalize(image)).main
    with torch.no_grad():
        expected = network(torch.tensor(nchw(normalize(image))))
    assert_close(logits, nhwc(expected))


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_run_starts_from_weights_resumes_and_is_exported(run, tmp_path):  # noqa: F811
    folder, workdir = tmp_path / 'weights', tmp_path / 'run'
    saved = small_folder(folder)
    arguments = ['scenes.py:runlocal', *TINY, f'--config.init.from={folder}', f'--workdir={workdir}']

    evaluated = run(*arguments, '--mode=evaluate')
    assert evaluated.returncode == 0, evaluated.stderr
    assert 'as trained, not as given: model.width: 8 -> 4' in evaluated.stderr
    assert json.loads((workdir / 'metrics.json').read_text())['split'] == 'val'

    still = '--config.optim.learning_rate=0.0'
    trained = run(*arguments, still)
    assert trained.returncode == 0, trained.stderr
    assert 'as the weights need it: model.width: 8 -> 4' in trained.stderr
    result = open_weights(workdir)
    assert_same(result.variables['params'], saved.variables['params'])
    assert result.model == saved.model and result.classes == CLASSES

    folder.rename(tmp_path / 'moved')  # a run that has begun does not need it
    again = run(*arguments, still, '--config.train.steps=7')
    assert again.returncode == 0 and 'resuming from step 6' in again.stderr, again.stderr

    result = open_weights(workdir)
    steps = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()]
    assert len(steps) > 1
    for path in steps:
        source = open_weights(path).source
        assert (source['run'], source['step'], source['crop']) == ('run', int(path.name), (65, 65))
        assert source['dataset'] == 'scenes'
    with pytest.raises(ConfigError, match='no checkpoint'):
        open_weights(workdir / 'checkpoints/5000')
    for ending in ('pth', 'safetensors'):
        export([str(workdir), '--layout=authors', '--out', str(tmp_path / f'back.{ending}')])
        convert([str(tmp_path / f'back.{ending}'), '--out', str(tmp_path / ending)])
        assert_same(open_weights(tmp_path / ending).variables, result.variables)
    assert open_weights(tmp_path / 'pth').classes == CLASSES


def test_backbones_start_a_fresh_head_when_asked(run, tmp_path):  # noqa: F811
    saved = small_folder(tmp_path / 'weights').variables
    flat = traverse_util.flatten_dict(
        {group: {'backbone': tree['backbone']} for group, tree in saved.items()}
    )
    names = Layout('', 'plain', '')
    state = {names.key(path): oihw(x) if x.ndim == 4 else x for path, x in flat.items()}
    state = {key: torch.tensor(array) for key, array in state.items()} | {'fc.weight': torch.ones(7, 32)}
    torch.save(state, tmp_path / 'resnet10-imagenet.pth')
    folder = tmp_path / 'resnet10'
    convert([str(tmp_path / 'resnet10-imagenet.pth'), '--out', str(folder)])
    assert set(open_weights(folder).variables['params']) == {'backbone'}
    arguments = ['scenes.py:runlocal', *TINY, '--config.train.steps=1', f'--config.init.from={folder}']
    still = '--config.optim.learning_rate=0.0'
    started = run(*arguments, f'--workdir={tmp_path / "b"}', still)
    assert started.returncode == 0, started.stderr
    assert f'starting from {folder} (backbone)' in started.stderr  # it has nothing else
    with contextlib.closing(Checkpoints(tmp_path / 'b/checkpoints')) as checkpoints:
        origin = checkpoints.facts(1)['started_from']
    assert (origin['file'], len(origin['sha256'])) == ('resnet10-imagenet.pth', 64)
    result = open_weights(tmp_path / 'b')
    assert_same(result.variables['params']['backbone'], saved['params']['backbone'])
    assert result.model['width'] == 4 and result.model['head_channels'] == 32
    evaluated = run(
        'scenes.py:runlocal', '--mode=evaluate', f'--config.init.from={folder}', f'--workdir={tmp_path / "c"}'
    )
    assert evaluated.returncode == 1 and 'a backbone alone' in evaluated.stderr


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def good_file(path):
    torch.save(torch_network().state_dict(), path)
    return path


def hostile(path):
    torch.save({'state_dict': Hostile(path.with_name('proof'))}, path)


def hostile_legacy(path):
    path.write_bytes(pickle.dumps(Hostile(path.with_name('proof')), protocol=2))


def truncated(path):
    data = good_file(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped(path):
    good_file(path)
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    data = bytearray(path.read_bytes())
    data[entry.header_offset + entry.file_size // 2 + 200] ^= 1
    path.write_bytes(data)


def not_finite(path):
    state = torch_network().state_dict()
    state['decode_head.conv_seg.bias'][2] = np.nan
    torch.save(state, path)


def foreign(path):
    torch.save({'features.0.weight': torch.ones(8, 3, 3, 3)}, path)


def text(path):
    path.write_text('<html>404</html>')


def empty(path):
    path.write_bytes(b'')


def numbers(path):
    torch.save([1, 2, 3], path)


def other_zip(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('readme', 'hello')


def wrong_name(path):
    good_file(path)


REFUSED = [
    (hostile, 'a.pth', 'refused, because it uses (posix|os).system'),
    (hostile_legacy, 'a.pth', 'refused, because it uses (posix|os).system'),
    (truncated, 'a.pth', 'is not a complete torch file'),
    (flipped, 'a.pth', 'is damaged'),
    (not_finite, 'a.pth', 'decode_head.conv_seg.bias: holds numbers that are not finite'),
    (foreign, 'a.pth', 'not a known network.*features.0.weight'),
    (text, 'a.pth', 'is a web page, not weights'),
    (empty, 'a.pth', 'is not a complete torch file'),
    (numbers, 'a.pth', 'holds a list, not a state dict'),
    (other_zip, 'a.pth', 'is a zip archive that torch did not write .*unpack it'),
    (text, 'a.safetensors', 'is a web page, not weights'),
    (wrong_name, 'a-0123abcd.pth', 'its name promises a checksum that begins with 0123abcd'),
    (lambda path: None, 'absent.pth', 'no such file'),
]


@pytest.mark.parametrize(
    ('make', 'name', 'message'), REFUSED, ids=lambda value: getattr(value, '__name__', None)
)
def test_bad_files_are_refused_and_nothing_is_written(make, name, message, tmp_path):
    make(tmp_path / name)
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=rf'(?s)^error: .*{name}.*{message}'):
        convert([str(tmp_path / name), '--out', str(tmp_path / 'out')])
    assert set(tmp_path.iterdir()) == before


def test_facts_come_from_the_file_its_name_or_the_user(tmp_path):
    state = torch_network(classes=19).state_dict()
    meta = {
        'cfg': 'img_norm_cfg = dict(mean=[1, 2, 3])\nmodel = dict(decode_head=dict(align_corners=True))',
        'dataset_meta': {'classes': [f'c{i}' for i in range(19)]},
    }

    def facts(name, content, *arguments):
        torch.save(content, tmp_path / name)
        folder = tmp_path / f'{len(list(tmp_path.iterdir()))}'
        convert([str(tmp_path / name), '--out', str(folder), *arguments])
        return open_weights(folder)

    assert facts('a.pth', state).model['align_corners'] is False
    assert facts('b_769x769.pth', state).model['align_corners'] is True
    assert facts('c.pth', state, '--align-corners=true').model['align_corners'] is True
    named = facts('d.pth', {'state_dict': state, 'meta': meta})
    assert (
        named.model['align_corners'] is True and named.classes[3] == 'c3' and named.input['mean'] == (1, 2, 3)
    )
    assert facts('e.pth', state, '--classes=cityscapes').classes[0] == 'road'
    with pytest.raises(SystemExit, match='camvid names 11, but the classifier has 19 outputs'):
        facts('f.pth', state, '--classes=camvid')
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    assert facts('g.pth', half).variables['params']['classifier']['kernel'].dtype == np.float32


def test_a_model_folder_is_whole_or_refused(tmp_path):
    variables = {'params': {'backbone': {'w': normal(3, 4)}}, 'batch_stats': {'backbone': {'m': normal(4)}}}
    folder = tmp_path / 'a'
    saved = weights.Weights(
        variables, {'sizes': (1, 3)}, {'mean': (1.0, 2.0)}, ('x',), ((1, 2, 3),), {'file': 'f'}
    )
    weights.save(folder, saved)
    loaded = weights.load(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert (
        loaded._replace(variables=None) == saved._replace(variables=None)
        if hasattr(saved, '_replace')
        else True
    )
    assert (loaded.model, loaded.input, loaded.classes, loaded.colors) == (
        saved.model,
        saved.input,
        ('x',),
        ((1, 2, 3),),
    )
    with pytest.raises(ConfigError, match='exists'):
        weights.save(folder, saved)
    assert safetensors.load_file(folder / 'weights.safetensors').keys() == {
        'params/backbone/w',
        'batch_stats/backbone/m',
    }
    data = bytearray((folder / 'weights.safetensors').read_bytes())
    data[150] ^= 1
    (folder / 'weights.safetensors').write_bytes(data)
    with pytest.raises(DataError, match='does not match its checksum'):
        open_weights(folder)
    (folder / 'model.json').write_text('{')
    with pytest.raises(DataError, match='a damaged weights folder'):
        open_weights(folder)
    with pytest.raises(ConfigError, match='no checkpoint and no model.json'):
        open_weights(tmp_path)


def test_a_folder_of_before_is_read(tmp_path):
    """Its arrays are in weights.npz."""
    np.savez(tmp_path / 'weights.npz', **{'params/backbone/w': np.ones((3, 4), np.float32)})
    facts = {'model': {'sizes': [1, 3]}, 'input': {'mean': [1.0]}, 'classes': ['x'], 'colors': [[1, 2, 3]]}
    facts |= {'version': 1, 'sha256': weights.sha256(tmp_path / 'weights.npz'), 'source': {'file': 'f'}}
    (tmp_path / 'model.json').write_text(json.dumps(facts))
    loaded = weights.load(tmp_path)
    np.testing.assert_array_equal(loaded.variables['params']['backbone']['w'], np.ones((3, 4)))
    assert (loaded.classes, loaded.colors, loaded.model) == (('x',), ((1, 2, 3),), {'sizes': (1, 3)})


def test_parts_are_an_explicit_choice():
    def tree(classes, head=True):
        layers = {'backbone': np.zeros(2), 'fusion': np.zeros(3), 'classifier': np.zeros(classes)}
        return {'params': layers if head else {'backbone': layers['backbone']}}

    ones = lambda tree: jax.tree.map(np.ones_like, tree)
    taken = lambda *arguments: {k: bool(v.all()) for k, v in start(*arguments)['params'].items()}
    assert taken(tree(2), ones(tree(2)), 'all') == {'backbone': True, 'fusion': True, 'classifier': True}
    assert taken(tree(2), ones(tree(5)), 'but_classifier') == {
        'backbone': True,
        'fusion': True,
        'classifier': False,
    }
    assert taken(tree(2), ones(tree(5)), 'backbone') == {
        'backbone': True,
        'fusion': False,
        'classifier': False,
    }
    assert taken(tree(2), ones(tree(2, False)), 'backbone')['backbone']
    with pytest.raises(ConfigError, match=r'classifier: \(5,\), the network has \(2,\)'):
        taken(tree(2), tree(5), 'all')
    with pytest.raises(ConfigError, match='params/fusion: absent'):
        taken(tree(2), tree(2, False), 'all')


def test_export_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(SystemExit, match='must end in .pth or .safetensors'):
        export([str(tmp_path), '--layout=authors', '--out', str(tmp_path / 'a.bin')])
    with pytest.raises(SystemExit, match='no checkpoint'):
        export([str(tmp_path), '--layout=authors', '--out', str(tmp_path / 'a.pth')])


def test_the_peer_is_no_trivial_network():
    """The reference of this file depends on every tensor it has."""
    image = torch.tensor(normal(1, 3, 65, 65))
    with torch.no_grad():
        plain = torch_network()(image)
        network = torch_network()
        network.decode_head.fusion.stages[0].out_project.weight.mul_(0)
        assert error(network(image), plain) > 1e-4
        network = torch_network()
        network.decode_head.context.stages[0].key_project.conv.weight.mul_(-1)
        assert error(network(image), plain) > 1e-5
