"""A backbone, a loss, an optimizer and a source from outside of the package, through the whole run."""

import functools
import json
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util
from reference import assert_close, error, normal, quick, random_variables

import ann_jax
from ann_jax import build
from ann_jax.data.datasets import Checked
from ann_jax.data.layout import Dataset, check_sample
from ann_jax.errors import ConfigError, DataError
from ann_jax.models.ann import ANN
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import fold
from ann_jax.models.initializers import initial_variables
from ann_jax.models.layers import BatchNorm, Conv, ConvBN, max_pool, relu
from ann_jax.models.resnet import ResNet
from ann_jax.modes.export import export
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import Program
from ann_jax.training.losses import totals_of
from ann_jax.training.state import create_state
from ann_jax.training.step import make_step_parts
from ann_jax.typing import IGNORE
from ann_jax.weights.opening import open_weights
from configs import scenes

pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module', autouse=True)
def two_devices():
    """Eight take their time on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, 'mesh', functools.partial(build.mesh, devices=jax.devices()[:2]))
        yield


class Pyramid(nn.Module):
    """Of this package's layers: it takes canvases, can be folded, and be split over devices."""

    width: int = 4
    folded: bool = False

    takes_canvas = True

    @nn.compact
    def __call__(self, image, train):
        conv = lambda features, stride, name: ConvBN(features, 3, stride, folded=self.folded, name=name)
        x = max_pool(conv(self.width, 2, 'stem')(image, train), ceil=False)
        stages = []
        for i, stride in enumerate((1, 2, 1, 1)):
            x = conv(self.width * 2**i, stride, f'stage{i + 2}')(x, train)
            stages.append(x)
        return stages

    def canvas_height(self, height, shards):
        return -(-height // (8 * shards)) * 8 * shards


class Plain(nn.Module):
    """Of flax's own layers, on plain arrays, with another normalisation."""

    @nn.compact
    def __call__(self, image, train):
        x, stages = image.array, []
        for features, stride in ((4, 4), (8, 2), (8, 1), (12, 1)):
            x = nn.Conv(features, (3, 3), (stride, stride), padding=1)(x)
            x = nn.relu(nn.GroupNorm(2)(x))
            stages.append(x)
        return stages


class Wrapped(nn.Module):
    """This package's own network inside of another module."""

    folded: bool = False

    @nn.compact
    def __call__(self, image, train):
        return ResNet(10, 4, (4,), folded=self.folded, name='net')(image, train)


class Stripes:
    """Random access to samples drawn here: the class is the colour's."""

    dataset = Dataset('stripes', ('red', 'green', 'blue'), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = np.repeat(rng.integers(0, 3, (8, 1)), 8, 0).astype(np.uint8) * np.ones((1, 96), np.uint8)
        image = 200 * np.eye(3, dtype=np.uint8)[label] + rng.integers(0, 50, (64, 96, 3), np.uint8)
        return {'name': f'stripe{index}', 'image': image, 'label': label}


def entropy(main, auxiliary, labels):
    """The main logits alone, and a scalar alone."""
    valid = labels != IGNORE
    losses = optax.softmax_cross_entropy_with_integer_labels(main, jnp.where(valid, labels, 0))
    return jnp.where(valid, losses, 0).sum() / valid.sum()


def config_of(**settings):
    config = scenes.get_config('runlocal')
    config.train.update(steps=60, batch_size=8, log_every=20, checkpoint_every=60, eval_every=60)
    config.augment.crop = (64, 96)
    config.eval.pictures = 1
    config.model.update(depth=50, key_channels=4, head_channels=16, aux_channels=8)
    config.export.update(formats='stablehlo', size=(64, 96))
    for key, value in settings.items():
        config.export[key] = value
    return config


class Notes:
    """Somebody's tracker of experiments."""

    def __init__(self):
        self.calls = []

    def scalars(self, step, values):
        self.calls += [(step, name, type(value)) for name, value in values.items()]

    def images(self, step, images):
        self.calls += [(step, name, image.dtype) for name, image in images.items()]

    def text(self, step, texts):
        self.calls += [(step, name, type(text)) for name, text in texts.items()]


NOTES = Notes()


@pytest.fixture(scope='module', params=[Pyramid, Plain], ids=lambda backbone: backbone.__name__)
def run(request, tmp_path_factory):
    """A trained run, and its backbone."""
    workdir, backbone = tmp_path_factory.mktemp(request.param.__name__), request.param()
    ann_jax.train(
        config_of(),
        workdir,
        train_source=Stripes(64),
        eval_source=Stripes(8),
        backbone=backbone,
        loss=entropy,
        optimizer=optax.adamw(2e-2),
        writer=NOTES,
    )
    assert not (workdir / 'tensorboard').exists() and (workdir / 'pictures').is_dir()
    return workdir, backbone


def test_it_trains_and_evaluates(run):
    workdir, backbone = run
    trained = json.loads((workdir / 'metrics.json').read_text())
    assert trained['miou'] > 0.8
    # Not the dataset of the config, which was not read.
    assert open_weights(workdir).source['dataset'] == 'stripes'
    for count in (8, 5):  # the second is another source, and is kept apart
        ann_jax.evaluate(config_of(), workdir, eval_source=Stripes(count), backbone=backbone)
        assert json.loads((workdir / 'metrics.json').read_text()) == trained
    other = json.loads((workdir / 'metrics-source=stripes_x_5.json').read_text())
    assert (other['protocol']['source'], other['step']) == ('stripes x 5', trained['step'])


def test_it_goes_on_with_its_own_optimizer_alone(run):
    workdir, backbone = run
    config = config_of()
    config.train.steps = 80
    sources = {'train_source': Stripes(64), 'eval_source': Stripes(8)}
    with pytest.raises(ConfigError, match=r'keeps another state, such as opt_state/.*: pass the optimizer'):
        ann_jax.train(config, workdir, **sources, backbone=backbone, loss=entropy)


class Odd(Stripes):
    """One sample of each source is odd."""

    def __init__(self, key, change):
        super().__init__(20)
        self.key, self.change = key, change

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return sample | {self.key: self.change(sample[self.key])} if index == 13 else sample


ODD = {
    'size': (
        'image',
        lambda x: x[:32],
        r"'stripe13' an image \(32, 96, 3\) uint8 .*label must be .* \(32, 96\)",
    ),
    'grey': ('image', lambda x: x[..., 0], r'must be a NumPy array \(H, W, 3\)'),
    'alpha': ('image', lambda x: np.pad(x, ((0, 0), (0, 0), (0, 1))), r'must be a NumPy array \(H, W, 3\)'),
    'float': ('image', lambda x: x / 255, 'float64 .*must hold levels from 0 to 255 as uint8'),
    'list': ('image', lambda x: x.tolist(), 'of type list'),
    'deep label': ('label', lambda x: x[..., None], r'label must be a NumPy array of \(64, 96\)'),
    'wide label': (
        'label',
        lambda x: x.astype(np.int64) + 300,
        'the label 30., but the network has 3 classes',
    ),
    'other class': ('label', lambda x: x + 3, 'the batch has the label'),
    'float label': ('label', lambda x: x / 1, 'labels are float64'),
}


@pytest.mark.parametrize('name', ODD)
def test_samples_of_an_own_source_are_checked(name, tmp_path):
    key, change, message = ODD[name]
    config = config_of()
    config.train.update(steps=4, batch_size=8, accumulate=2)
    with pytest.raises(DataError, match=message):
        ann_jax.train(config, tmp_path, train_source=Odd(key, change), eval_source=Stripes(8))
    with pytest.raises(DataError, match=message):
        list(Checked(Odd(key, change), 'eval_source', 3))


def test_a_run_is_not_resumed_with_its_classes_in_another_order(tmp_path, caplog):
    """That they are called otherwise, or that there are more images, is told."""

    def named(*classes, count=64):
        sources = {'train_source': Stripes(count), 'eval_source': Stripes(8)}
        for each in sources.values():
            each.dataset = replace(each.dataset, classes=classes)
        return sources

    config = config_of()
    config.model.depth = 10
    config.train.steps = 1
    first, *rest = Stripes.dataset.classes
    ann_jax.train(config, tmp_path, **named(first, *rest))
    config.train.steps = 2
    with pytest.raises(ConfigError, match=f'in another order: .*, {first}: restore the order, or use'):
        ann_jax.train(config, tmp_path, **named(*rest, first))
    assert 'images to train on up to' not in caplog.text
    ann_jax.train(config, tmp_path, **named('renamed', *rest, count=70))
    assert 'the run had 64 images to train on up to step 1, and has 70 from now on' in caplog.text
    assert f"names classes otherwise than the run did, such as 'renamed' for '{first}'" in caplog.text


def test_sources_are_used_as_given(tmp_path):
    for sources in ({'train_source': Stripes(0)}, {'eval_source': Stripes(0)}):
        (name,) = sources
        with pytest.raises(DataError, match=f'the {name} has no samples'):
            ann_jax.train(config_of(), tmp_path / 'run', **sources)
    wide = Checked(Odd('label', np.int64), 'train_source', 3)
    assert wide[13]['label'].dtype == np.uint8 and len(pickle.loads(pickle.dumps(wide))) == 20
    with pytest.raises(DataError, match='lacks name, label: give name, image and label'):
        check_sample({'image': 0}, 3, 3, 'train_source')
    with pytest.raises(DataError, match='is no dict'):
        check_sample((0, 1), 3, 3, 'train_source')


@pytest.mark.parametrize('classes', [('red', 'green'), ('red', 'blue', 'green')])
def test_other_classes_to_evaluate_are_refused_before_training(classes, tmp_path):
    """Their number was told after the last step, their order not at all."""
    source = Stripes(8)
    source.dataset = Dataset('stripes', classes, Stripes.dataset.colors[: len(classes)])
    with pytest.raises(DataError, match='but those to evaluate red, .*: give both sources the same'):
        ann_jax.train(config_of(), tmp_path / 'run', train_source=Stripes(64), eval_source=source)
    assert not (tmp_path / 'run').exists()


def test_it_reports_to_a_writer(run):
    workdir, backbone = run
    assert {(20, 'train/loss', float), (60, 'val/miou', float), (0, 'config', str)} <= set(NOTES.calls)
    assert (60, 'val/scores', str) in NOTES.calls
    assert any(name.startswith('pictures/') and kind == np.uint8 for _, name, kind in NOTES.calls)
    other = Notes()
    ann_jax.evaluate(config_of(), workdir, eval_source=Stripes(8), backbone=backbone, writer=other)
    assert (60, 'val/miou', float) in other.calls


@pytest.mark.parametrize('run', [Pyramid], indirect=True)
def test_it_resumes(run, capsys):
    workdir, backbone = run
    config = config_of()
    config.train.steps = 61
    options = {'train_source': Stripes(64), 'eval_source': Stripes(8), 'backbone': backbone}
    with pytest.raises(ConfigError, match='opt_state'):  # of another optimizer
        ann_jax.train(config, workdir, loss=entropy, **options)
    with pytest.raises(ConfigError, match='a run with the backbone Pyramid, not of its config'):
        ann_jax.train(
            config, workdir, loss=entropy, optimizer=optax.adamw(2e-2), **options | {'backbone': None}
        )
    ann_jax.train(config, workdir, loss=entropy, optimizer=optax.adamw(2e-2), **options)
    assert 'step 61 of 61' in capsys.readouterr().out


def test_it_loads_and_is_exported(run, tmp_path):
    workdir, backbone = run
    with pytest.raises(ConfigError, match=rf'custom backbone, {type(backbone).__name__}: pass it'):
        ann_jax.load(workdir)
    sample = Stripes(8)[3]
    result = ann_jax.load(workdir, backbone=backbone)(sample['image'])
    assert (result.ids == sample['label']).mean() > 0.8
    pytest.importorskip('flatbuffers', reason='StableHLO is written with flatbuffers')
    out = tmp_path / 'out'
    export(config_of(output=str(out)), workdir, backbone=backbone)
    program = jax.export.deserialize(bytearray((out / 'model.stablehlo').read_bytes()))
    logits = np.asarray(program.call(sample['image'][None]))[0]
    assert (logits.argmax(-1) == result.ids).mean() > 0.999
    card = (out / 'README.md').read_text()
    assert f'on {type(backbone).__name__}.' in card and f'backbone={type(backbone).__name__}(...)' in card
    again = ann_jax.load(out, backbone=backbone)(sample['image'])
    np.testing.assert_array_equal(again.ids, result.ids)


def model_of(backbone):
    return ANN(3, backbone, key_channels=4, head_channels=8, aux_channels=8, sizes=(1, 2))


@pytest.mark.parametrize(
    'backbone', [Pyramid(), Plain(), Wrapped()], ids=lambda backbone: type(backbone).__name__
)
def test_it_folds(backbone):
    model, image = model_of(backbone), normal(2, 49, 33, 3)
    variables = random_variables(model, 0, image)
    folded = fold(model, variables)
    expected = quick(model.apply)(variables, image).main
    assert_close(quick(model.clone(folded=True).apply)(folded, image).main, expected)
    names = {'/'.join(path) for path in traverse_util.flatten_dict(folded['params'])}
    assert any(name.startswith('backbone') and 'scale' in name for name in names) == (type(backbone) is Plain)


def test_a_backbone_keeps_its_dtype_when_it_is_folded():
    model = model_of(Pyramid()).clone(dtype=jnp.bfloat16)
    folded = fold(model, random_variables(model, 0, normal(1, 33, 33, 3)))['params']
    assert folded['backbone']['stem']['conv']['kernel'].dtype == jnp.float32
    assert folded['bottleneck']['conv']['kernel'].dtype == jnp.bfloat16


class Half(nn.Module):
    """Computes in bfloat16, keeps float32, and cannot be folded."""

    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, image, train):
        x = nn.Conv(4, (3, 3), (8, 8), dtype=self.dtype)(image.array)
        return [nn.BatchNorm(use_running_average=not train)(x)] * 4


def test_what_cannot_be_folded_is_left_as_it_is():
    model = model_of(Half())
    variables = random_variables(model, 0, normal(1, 33, 33, 3))
    folded = fold(model, variables)
    for kind in ('params', 'batch_stats'):
        jax.tree.map(np.testing.assert_array_equal, variables[kind]['backbone'], folded[kind]['backbone'])


class Stubborn(nn.Module):
    """Says that it can be folded, and cannot."""

    folded: bool = False

    @nn.compact
    def __call__(self, image, train):
        x = nn.Conv(4, (3, 3), (8, 8), use_bias=self.folded)(image.array)
        return [nn.relu(x)] * 4


class Preactivated(nn.Module):
    """Normalises before it convolves, under names that say otherwise."""

    folded: bool = False

    @nn.compact
    def __call__(self, image, train):
        x = Conv(4, 3, 8, name='stem')(image)
        x = relu(BatchNorm(folded=self.folded, name='bn1')(x, train))
        return [Conv(4, 3, name='conv1')(x)] * 4


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (Stubborn(), 'cannot fold .*\n.*backbone/Conv_0/bias: absent'),
        (Preactivated(), 'Preactivated computes something else once it is folded'),
    ],
)
def test_a_backbone_that_cannot_be_folded_is_refused_before_training(backbone, message, tmp_path):
    options = {'train_source': Stripes(64), 'eval_source': Stripes(8)}
    with pytest.raises(DataError, match=message):
        ann_jax.train(config_of(), tmp_path / 'run', backbone=backbone, **options)
    assert not list((tmp_path / 'run' / 'checkpoints').glob('[0-9]*'))


def by_totals(main, auxiliary, labels, totals=None):
    """The same loss, which adds up over the parts of a batch."""
    valid = labels != IGNORE
    losses = optax.softmax_cross_entropy_with_integer_labels(main, jnp.where(valid, labels, 0))
    return jnp.where(valid, losses, 0).sum() / (valid.sum() if totals is None else totals.valid)


def test_a_loss_in_parts(tmp_path):
    config = config_of()
    config.train.update(accumulate=2, batch_size=16)
    with pytest.raises(ConfigError, match='the loss must take `totals`'):
        ann_jax.train(config, tmp_path, train_source=Stripes(64), eval_source=Stripes(8), loss=entropy)
    model = model_of(Plain())
    parts = make_step_parts(model, optax.sgd(0.1), loss=by_totals, normalize=lambda x: x / 255.0, seed=0)
    state = create_state(random_variables(model, 0, normal(1, 33, 33, 3)), optax.sgd(0.1))
    samples = [Stripes(8)[i] for i in range(4)]
    batch = {key: np.stack([sample[key][:33, :33] for sample in samples]) for key in ('image', 'label')}
    batch['label'][:2, 9:] = IGNORE  # parts of unequal weight
    halves = [{key: value[half] for key, value in batch.items()} for half in (slice(0, 2), slice(2, 4))]
    compute, mines = totals_of(by_totals)
    totals = compute([half['label'] for half in halves])
    assert not mines and totals.weight is None
    run = quick(parts.forward_backward)
    losses = [float(run(state, half, None, totals).metrics['loss']) for half in halves]
    assert all(0 < loss < 10 for loss in losses)
    first, second = (float(run(state, half).metrics['loss']) for half in halves)
    weights = [(half['label'] != IGNORE).sum() for half in halves]
    assert sum(losses) == pytest.approx(np.average([first, second], weights=weights), rel=1e-5)


def test_initializers_from_elsewhere_are_honoured():
    model = model_of(Plain())
    ours = traverse_util.flatten_dict(initial_variables(model, 3))
    flax = quick(lambda: model.init(jax.random.key(3), jnp.zeros((1, 33, 33, 3))))()
    flax = traverse_util.flatten_dict(flax)
    assert ours.keys() == flax.keys()
    for path, leaf in flax.items():
        if path[1] == 'backbone':
            np.testing.assert_allclose(ours[path], leaf, rtol=1e-6, err_msg=str(path))
    assert error(ours['params', 'classifier', 'kernel'], flax['params', 'classifier', 'kernel']) > 0.1
    assert np.std(ours['params', 'classifier', 'kernel']) == pytest.approx(0.01, rel=0.4)


def test_a_canvas_and_split_rows_where_the_backbone_knows_them():
    image, canvas = normal(2, 49, 33, 3), np.full((2, 64, 40, 3), 7, np.float32)
    canvas[:, :49, :33] = image
    size = np.array([(49, 33)] * 2)
    model = model_of(Pyramid())
    variables = random_variables(model, 0, image)
    expected = quick(model.apply)(variables, image).main
    height, width = expected.shape[1:3]
    run = lambda variables, image, size=None: model.apply(variables, FeatureMap.of(image, size)).main.array
    assert_close(quick(run)(variables, canvas, size)[:, :height, :width], expected)
    mesh = make_mesh(jax.devices()[:4], data=1, space=4)
    assert_close(Program(quick(run), mesh)(variables, image)[:, :height], expected)

    plain = model_of(Plain())
    assert model.takes_canvas and not plain.takes_canvas
    variables = random_variables(plain, 0, image)
    with pytest.raises(ConfigError, match='Plain returns arrays'):
        jax.eval_shape(lambda: plain.apply(variables, FeatureMap.of(canvas, size)))
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match='Plain has no method canvas_height'):
        jax.eval_shape(lambda: plain.apply(variables, image))
