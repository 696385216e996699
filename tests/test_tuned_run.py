"""A run with all augmentation and all that may surround the optimizer: resumed to the bit; its average."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_plugins import Pyramid, Stripes

import ann_jax
from ann_jax import build
from ann_jax.config import defaults
from ann_jax.errors import ConfigError
from ann_jax.modes import train as training
from ann_jax.modes.trained import open_trained
from ann_jax.parallel.mesh import make_mesh
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.weights.folder import save
from ann_jax.weights.opening import open_weights
from configs import scenes

pytestmark = pytest.mark.usefixtures('compiled_fast')


class Killed(Exception):
    pass


class Fatal:
    """A writer that ends the run at a step, as if it had been killed."""

    def __init__(self, last):
        self.last = last

    def scalars(self, step, values):
        if step == self.last:
            raise Killed

    def images(self, step, images):
        pass

    def text(self, step, texts):
        pass


def config_of(**settings):
    config = scenes.get_config('runlocal')
    config.train.update(steps=6, batch_size=2, log_every=1, checkpoint_every=2, eval_every=2)
    config.train.frozen_norm = 'backbone/stage3'
    config.dataset.repeat_threshold = 0.9
    config.loss.balance = 'median'
    config.augment.update(
        crop=(64, 96),
        jitter=(0.3, 0.3, 0.3, 0.1),
        blur=0.5,
        noise=5.0,
        grey=0.2,
        rotation=20.0,
        max_class_share=0.9,
        rare_crop=0.3,
        rand_augment=2,
        mix='copy_paste',
    )
    config.eval.pictures = 0
    config.model.update(variant='baseline', head_channels=4, aux_channels=0)
    config.optim.update(
        name='adamw',
        args='b2=0.99',
        learning_rate=0.01,
        schedule='one_cycle',
        warmup_steps=2,
        warmup_factor=0.1,
        decay='kernels',
        decay_factors='backbone=0.5',
        factors='backbone=0.1,stem=0',
        clip_norm=0.5,
        ema_decay=0.9,
    )
    config.update_from_flattened_dict(settings)
    return config


@pytest.fixture(scope='module')
def train():
    """Trains on one device; what runs that go to the same last step compute is compiled once."""
    made, make_step, evaluation = {}, training.make_step, build.evaluation

    def run(workdir, last=None, **settings):
        config = config_of(**settings)
        count = config.train.steps
        once = lambda make: lambda *args, **more: made.setdefault((make, count), make(*args, **more))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, 'mesh', lambda _: make_mesh(jax.devices()[:1]))
            patch.setattr(training, 'make_step', once(make_step))
            patch.setattr(build, 'evaluation', once(evaluation))
            sources = {'train_source': Stripes(8), 'eval_source': Stripes(1)}
            before = config.to_dict()
            ann_jax.train(config, workdir, backbone=Pyramid(2), writer=Fatal(last), **sources)
            assert config.to_dict() == before  # class weights were counted for this run

    return run


@pytest.fixture(scope='module')
def finished(train, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('tuned') / 'run'
    train(workdir)
    return workdir


def test_what_has_no_effect_is_told(train, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(Killed):
        train(tmp_path, last=1, **{'optim.power': 2.0, 'eval.average': 'probabilities'})
    told = [each.getMessage() for each in caplog.records if 'has no effect' in each.getMessage()]
    assert told == [
        'optim.power=2.0 has no effect: it needs optim.schedule=poly',
        "eval.average='probabilities' has no effect: it needs eval.flip, or more than one of eval.scales",
    ]
    for key, value in (('parts', 'backbone'), ('prefer', 'ema')):
        with pytest.raises(ConfigError, match=f'init.{key}={value}: there is no init.from to take it from'):
            train(tmp_path / 'other', **{f'init.{key}': value})
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'optim.learning_rate': 0.5},
            r'a finished run with other settings \(optim.learning_rate: .* -> 0.5\)',
        ),
        ({'model.head_channels': 3}, r'a finished run with other settings \(model.head_channels'),
        (
            {'init.from': 'runs/other'},
            'init.from=runs/other: the run in .* began from random weights: leave it',
        ),
    ],
)
def test_a_finished_run_refuses_what_would_have_no_effect(settings, message, train, finished, capsys):
    with pytest.raises(ConfigError, match=message):
        train(finished, **settings)
    train(finished, **{'train.log_every': 7, 'mesh.space': 1})
    assert '--mode=evaluate evaluates its best checkpoint' in capsys.readouterr().out


def test_classes_in_another_order_are_not_scored(finished):
    source = Stripes(1)
    source.dataset = dataclasses.replace(source.dataset, classes=('green', 'red', 'blue'))
    with pytest.raises(ConfigError, match='in another order: green, red, blue'):
        ann_jax.evaluate(config_of(), finished, eval_source=source, backbone=Pyramid(2))


def arrays(workdir, step):
    return ocp.StandardCheckpointer().restore(workdir / 'checkpoints' / str(step) / 'state')


def test_a_run_that_was_killed_and_ended_early_goes_on_to_the_bit(
    train, finished, tmp_path, caplog, capsys, monkeypatch
):
    caplog.set_level(logging.INFO)
    with pytest.raises(Killed):
        train(tmp_path, last=3)
    # Later evaluations bring less.
    score = Checkpoints.score
    monkeypatch.setattr(Checkpoints, 'score', lambda self, step, *_: score(self, step, 0.9 - step / 10))
    with contextlib.closing(Checkpoints(tmp_path / 'checkpoints')) as checkpoints:
        checkpoints.score(2, 0.0)
    train(tmp_path, **{'train.patience': 1, 'profile.steps': '1:2', 'eval.batch_size': 1})
    assert 'no trace: steps 3 to 6 follow, not 1:2' in caplog.text
    assert 'train.patience: 0 -> 1' in caplog.text and 'eval.batch_size: 0 -> 1' in caplog.text
    assert 'resuming from step 2' in caplog.text and 'of the moving average on val' in caplog.text
    assert 'step 4 of 6, ended by train.patience=1, best checkpoint at step 2' in capsys.readouterr().out
    train(tmp_path, **{'train.patience': 1})
    assert 'is at step 4 of 6, where train.patience ended it' in capsys.readouterr().out
    train(tmp_path, **{'train.patience': 2})
    assert 'step 6 of 6, best checkpoint at step 2' in capsys.readouterr().out
    one, other = arrays(finished, 6), arrays(tmp_path, 6)
    assert one.keys() == {'step', 'params', 'batch_stats', 'opt_state', 'ema'} and one['ema']['count'] == 6
    jax.tree.map(np.testing.assert_array_equal, one, other)
    first, last = arrays(tmp_path, 2), arrays(tmp_path, 6)
    for kind in ('params', 'batch_stats'):
        jax.tree.map(
            np.testing.assert_array_equal, *(each[kind]['backbone']['stem'] for each in (first, last))
        )


def test_a_run_keeps_where_it_began(train, finished, tmp_path, monkeypatch):
    began = {'init.from': str(finished), 'init.parts': 'backbone'}
    for last, settings in ((3, began), (5, {})):  # the command may leave it out
        with pytest.raises(Killed):
            train(tmp_path, last=last, **settings)
        saved = json.loads((tmp_path / 'config.json').read_text())
        assert {f'init.{key}': saved['init'][key] for key in ('from', 'parts')} == began
    # What the weights do not determine has to be as before.
    with pytest.raises(ConfigError, match=r'other settings \(model.variant: baseline -> apnb'):
        train(tmp_path, **began, **{'model.variant': 'apnb'})
    with pytest.raises(Killed):
        train(tmp_path, last=5, **began)
    monkeypatch.chdir(finished.parent)
    with pytest.raises(Killed):  # the same folder
        train(tmp_path, last=5, **began | {'init.from': f'{finished.name}/'})


def test_the_run_itself_may_be_named_as_the_weights_to_evaluate(finished, monkeypatch, caplog):
    config = defaults()
    monkeypatch.chdir(finished.parent)
    for given in (f'./{finished.name}/', str(finished)):
        config.init['from'] = given
        assert open_trained(config, Path(finished.name), Pyramid(2))[1] == Path(finished.name)
    assert 'and not the run' not in caplog.text


def test_a_run_keeps_what_weights_do_not_determine(train, finished, tmp_path):
    given = {'model.dtype': 'bfloat16', 'model.dropout': 0.2, 'model.remat': (5,)}
    for last in (1, 3):
        with pytest.raises(Killed):
            train(tmp_path, last=last, **given, **{'init.from': str(finished)})
        saved = json.loads((tmp_path / 'config.json').read_text())['model']
        assert [saved[key] for key in ('dtype', 'dropout', 'remat')] == ['bfloat16', 0.2, [5]]
    with pytest.raises(ConfigError, match=r'other settings \(model.dtype: bfloat16 -> float32'):
        train(tmp_path, **given | {'model.dtype': 'float32', 'init.from': str(finished)})


def test_the_average_is_what_is_opened_and_exported(finished, tmp_path):
    saved = arrays(finished, 6)
    path = finished / 'checkpoints' / '6'
    average, last = (open_weights(path, prefer) for prefer in ('', 'weights'))
    for kind in ('params', 'batch_stats'):
        jax.tree.map(np.testing.assert_array_equal, average.variables[kind], saved['ema'][kind])
        jax.tree.map(np.testing.assert_array_equal, last.variables[kind], saved[kind])
    assert average.source['weights'] == 'exponential moving average, decay 0.9'
    assert 'miou' in average.source and not {'miou', 'weights'} & last.source.keys()
    save(tmp_path / 'exported', average)
    assert 'moving average, decay 0.9' in (tmp_path / 'exported' / 'model.json').read_text()
    with pytest.raises(ConfigError, match='init.prefer=ema: .*exported is not a run'):
        open_weights(tmp_path / 'exported', 'ema')
    with pytest.raises(ConfigError, match='did you mean .ema.'):
        open_weights(path, 'emma')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'optim.ema_decay': 0.0}, r'optim.ema_decay: 0.9 -> 0.0\): .*--config.optim.ema_decay=0.9\), or'),
        (
            {'optim.factors': 'backbone=0.1'},
            'optim.factors: .* use those .*--config.optim.factors=backbone=0.1,stem=0',
        ),
        ({'optim.name': 'sgd', 'optim.args': ''}, 'optim.args: b2=0.99 -> ; optim.name: adamw -> sgd'),
        ({'optim.name': 'adam'}, 'optim.name: adamw -> adam'),
        ({'optim.decay': 'all'}, r'another state \(optim.decay: kernels -> all\)'),
        (  # all of the optimizer, even what could change
            {'optim.name': 'sgd', 'optim.args': '', 'optim.learning_rate': 0.5},
            'use those .*--config.optim.learning_rate=0.01 --config.optim.name=adamw',
        ),
        (
            {'optim.factors': 'stem=0,stage6=1'},
            "optim.factors: unknown part 'stage6'; .*known: .*stem.*backbone",
        ),
    ],
)
def test_settings_with_which_a_run_cannot_go_on(settings, message, train, finished):
    with pytest.raises(ConfigError, match=message) as error:
        train(finished, **{'train.steps': 8}, **settings)
    assert '\n' not in str(error.value)


def test_evaluations_without_a_better_score(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.without_better(9) == 0
        for step, score in ((1, 0.2), (2, 0.5), (3, 0.5), (4, 0.4), (5, 0.6)):
            checkpoints.score(step, score)
        assert [checkpoints.without_better(step) for step in range(7)] == [0, 0, 0, 1, 2, 0, 0]
