"""Runs of other commits: settings that they lack or that this code lacks, and what is told from damage."""

import contextlib
import json
import logging
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from reference import assert_close, quick
from small import small_folder
from test_witnesses import BOUNDS, COMMITS, WITNESSES, magnitude, witness

import ann_jax
from ann_jax import __version__, build
from ann_jax.config import defaults
from ann_jax.errors import ConfigError, DataError, VersionError
from ann_jax.modes.evaluate import evaluate
from ann_jax.modes.resume import FIXED, first_state, keep_settings
from ann_jax.parallel.mesh import make_mesh
from ann_jax.runs import history
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.runs.facts import Damaged, digest_json, read_facts
from ann_jax.training.step import make_train_step
from ann_jax.weights.opening import open_weights
from configs import scenes

pytestmark = [
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
    pytest.mark.usefixtures('compiled_fast'),
]

# What augmentation did not do once.
AUGMENT = {'jitter': [0.0] * 4, 'jitter_share': 1.0, 'blur': 0.0, 'blur_sigma': [0.1, 2.0], 'noise': 0.0}
AUGMENT |= {'grey': 0.0, 'rotation': 0.0, 'max_class_share': 1.0, 'rare_crop': 0.0, 'rand_augment': 0}
AUGMENT |= {'rand_magnitude': 9, 'mix': 'none', 'mix_share': 0.5}

# What no run reads back.
NOT_OF_A_RUN = ('benchmark', 'predict', 'explain', 'export', 'profile', 'compilation_cache')


def saved_config(commit):
    return json.loads((WITNESSES / f'commit_{commit}' / 'config.json').read_text())


def copy_of(commit, folder):
    shutil.copytree(WITNESSES / f'commit_{commit}', folder / 'run')
    return folder / 'run'


def config_of(commit, **more):
    """Today's config file with the settings that the run has, as its command would give them again."""
    config = scenes.get_config('runlocal')
    config.optim.update(name='sgd', decay='all', schedule='poly', warmup_steps=0, clip_norm=0.0)  # as it was
    known = history.flat(config.to_dict())
    saved = {name: value for name, value in history.flat(saved_config(commit)).items() if name in known}
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    config.update_from_flattened_dict(tuples | more)
    return config


def change_facts(run, change, step=400):
    """Rewrites the facts of a checkpoint as another version would have written them."""
    file = run / 'checkpoints' / str(step) / 'facts' / 'metadata'
    facts = json.loads(file.read_text())
    facts.pop('checksum')
    change(facts)
    file.write_text(json.dumps(facts | {'checksum': digest_json(facts)}))


def resumed(config, run):
    """State, step and the config that a run goes on with."""
    mesh = make_mesh(jax.devices()[:1])
    keep_settings(config, run)
    source = build.source(config, config.dataset.train_split)
    with contextlib.closing(Checkpoints(run / 'checkpoints')) as checkpoints:
        make_model = lambda: build.model(config, source.dataset.num_classes)
        state, first, _ = first_state(config, run, checkpoints, make_model, build.optimizer(config), mesh)
        return state, first, source


@pytest.mark.parametrize('commit', COMMITS)
def test_every_setting_has_a_value_for_the_runs_that_lack_it(commit):
    whole, _ = history.complete(saved_config(commit))
    settings = history.flat(defaults().to_dict())
    missing = [
        name for name in settings if name not in history.flat(whole) and not name.startswith(NOT_OF_A_RUN)
    ]
    assert not missing, (
        f'{missing}: runs of earlier commits lack these settings. Add each to BEFORE in '
        'ann_jax/runs/history.py, with the value that means what the code computed before the setting was '
        'there (not its default, unless that is the same), so that these runs go on as they began'
    )


def test_the_table_names_settings_of_today():
    settings = history.flat(defaults().to_dict())
    assert history.BEFORE.keys() <= settings.keys()
    assert set(history.RENAMED.values()) <= settings.keys()
    assert not (history.GONE.keys() | history.RENAMED.keys()) & settings.keys()


def test_what_a_run_lacks_is_what_its_commit_computed():
    run = saved_config('f5baaa6') | {'seed': 7}
    whole, added = history.complete(run)
    assert whole['model']['out_norm'] is False and whole['model']['remat'] == []
    assert whole['dataset']['scenes']['seed'] == 7  # scenes were drawn with the run's seed
    assert whole['dataset']['scenes']['version'] == 1
    assert added['train.accumulate'] == 1 and 'seed' not in added
    run['dataset']['scenes']['seed'] = 3
    assert (
        history.complete(run)[0]['dataset']['scenes'] | {'version': 2, 'seed': 3}
        == (history.complete(run)[0]['dataset']['scenes'])
    )
    added = {'dataset.scenes.version': 3, 'model.avg_down': False, 'model.dilate_second_conv': True}
    added |= {'dataset.reduce_zero_label': False, 'dataset.image_ending': '', 'dataset.val_share': 0.0}
    added |= {'dataset.image_range': '', 'dataset.bands': '', 'dataset.page': 1}
    added |= {'dataset.max_pixels': 1_000_000_000, 'loss.average': 'valid', 'check.strict': False}
    added |= {'loss.balance': 'none', 'dataset.repeat_threshold': 0.0}
    added |= {f'augment.{key}': value for key, value in AUGMENT.items()}
    added |= {'loss.terms': '', 'loss.label_smoothing': 0.0, 'loss.boundary_weight': 1.0}
    added |= {'loss.boundary_width': 2, 'loss.focal_gamma': 2.0, 'loss.tversky': [0.3, 0.7]}
    added |= {'optim.name': 'sgd', 'optim.args': '', 'optim.schedule': 'poly', 'optim.warmup_steps': 0}
    added |= {'optim.warmup_factor': 0.0, 'optim.decay_factors': '', 'optim.factors': ''}
    added |= {'optim.clip_norm': 0.0, 'optim.ema_decay': 0.0, 'init.prefer': ''}
    added |= {'train.frozen_norm': '', 'train.patience': 0}
    added |= {'model.decoder': 'none', 'model.decoder_channels': 256}
    added |= {'train.deterministic': False}
    assert history.complete(saved_config('29e8a0d'))[1] == added


def test_renamed_and_removed_settings(monkeypatch):
    run = {'benchmark': {'peer_batch': 3}, 'model': {'old': 1}}
    assert history.complete(run)[0]['benchmark'] == {'reference_batch': 3}
    assert history.complete(run)[0]['model']['old'] == 1
    monkeypatch.setitem(history.GONE, 'model.old', 1)
    assert 'old' not in history.complete(run)[0]['model']
    assert history.complete({'model': {'old': 2}})[0]['model']['old'] == 2


@pytest.mark.parametrize('commit', COMMITS)
def test_evaluation_gives_the_scores_that_the_commit_wrote(commit, tmp_path, caplog):
    """The config is today's for the bench; the network, its input and the drawing are those of the run."""
    run = copy_of(commit, tmp_path)
    expected = json.loads((run / 'metrics.json').read_text())
    (run / 'metrics.json').unlink()
    config = scenes.get_config('runlocal')
    with caplog.at_level(logging.INFO):
        evaluate(config, run)
    scores = json.loads((run / 'metrics.json').read_text())
    assert scores['iou'].keys() == expected['iou'].keys()
    for name in ('step', 'miou', 'pixel_accuracy'):
        assert scores[name] == pytest.approx(expected[name], rel=1e-4), name
    if commit == 'f5baaa6':
        assert caplog.text.count('keeps what it computed: model.out_norm=False') == 1


@pytest.mark.parametrize('commit', COMMITS)
def test_a_resumed_step_gives_the_numbers_of_the_commit(commit, tmp_path, caplog):
    """Whatever today's config says of the settings that the run does not have."""
    run, expected = copy_of(commit, tmp_path), witness(commit)
    new = {'model.out_norm': True, 'dataset.scenes.seed': 9} if commit == 'f5baaa6' else {}
    config = config_of(commit, **new, **{'dataset.scenes.version': 3})
    with caplog.at_level(logging.INFO):
        state, first, source = resumed(config, run)
    assert first == 400 and source.dataset.num_classes == len(saved_classes(run))
    assert caplog.text.count('keeps what it computed') == 1 and 'dataset.scenes.version' in caplog.text
    assert config.model.out_norm is False and config.dataset.scenes.seed == 0
    step = make_train_step(
        build.model(config, source.dataset.num_classes),
        build.optimizer(config),
        loss=build.loss(config, source.dataset.num_classes),
        normalize=build.normalize(config),
        seed=config.seed,
    )
    before = jax.device_get(state)
    after, metrics = quick(step)(before, {'image': expected['image'], 'label': expected['label']})
    moved = lambda new, old: magnitude(jax.tree.map(lambda x, y: x - y, new, old))
    computed = metrics | {
        'parameters': magnitude(after.params),
        'parameters_moved': moved(after.params, before.params),
        'statistics_moved': moved(after.batch_stats, before.batch_stats),
    }
    for name, bound in BOUNDS.items():
        assert_close(computed[name], expected[name], bound)


def saved_classes(run):
    return json.loads((run / 'metrics.json').read_text())['iou']


def test_an_early_run_goes_on_to_its_end(environment, tmp_path):
    """By the command that began it, on one device, with the optimizer that the config had."""
    run = copy_of('f5baaa6', tmp_path)
    c = history.flat(saved_config('f5baaa6'))
    c |= {'train.steps': 402, 'train.eval_every': 402, 'train.checkpoint_every': 402}
    c |= {'optim.name': 'sgd', 'optim.decay': 'all'}
    names = [name for name in c if name.startswith(('model.', 'loss.', 'optim.', 'train.'))]
    flags = [f'--config.{name}={tuple(c[name]) if isinstance(c[name], list) else c[name]}' for name in names]
    command = [
        sys.executable,
        '-m',
        'ann_jax.main',
        '--config=configs/scenes.py:runlocal',
        f'--workdir={run}',
    ]
    result = subprocess.run(
        command + flags,
        cwd=WITNESSES.parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    for text in ('keeps what it computed: dataset.scenes.seed=0, model.out_norm=False', 'traffic light'):
        assert text in result.stderr + result.stdout
    assert 'keeps what it computed' in (run / 'log.txt').read_text()
    assert json.loads((run / 'checkpoints' / 'scores.json').read_text()).keys() == {'400', '402'}
    facts = read_facts(run / 'checkpoints' / '402')
    assert facts['version'] == __version__ and facts['config']['model']['out_norm'] is False
    assert facts['config']['dataset']['scenes']['version'] == 1 and 'traffic light' in facts['classes']


def test_the_best_score_of_an_early_run_is_known(tmp_path):
    run = copy_of('f5baaa6', tmp_path)
    shutil.copytree(run / 'checkpoints/400', run / 'checkpoints/500')
    (run / 'checkpoints/500/metrics/metrics').write_text('{"miou": 0.01}')
    with contextlib.closing(Checkpoints(run / 'checkpoints')) as checkpoints:
        assert (checkpoints.best, checkpoints.latest, checkpoints.scored(500)) == (400, 500, True)


def test_resuming_with_other_settings_names_the_flags_of_the_run(tmp_path):
    run = copy_of('f5baaa6', tmp_path)
    config = config_of('f5baaa6', **{'augment.crop': (49, 49), 'model.share': 'query_key'})
    with pytest.raises(ConfigError, match='augment.crop') as error:
        resumed(config, run)
    for text in ("'--config.augment.crop=(65,65)'", '--config.model.share=none', 'another --workdir'):
        assert text in str(error.value)
    assert 'out_norm' not in str(error.value) and 'remat' not in str(error.value)


def test_what_a_run_may_change_stays_changed_and_is_logged(tmp_path, caplog):
    run = copy_of('f5baaa6', tmp_path)
    config = config_of('f5baaa6', **{'model.remat': (3,), 'train.accumulate': 2, 'optim.learning_rate': 0.01})
    with caplog.at_level(logging.INFO):
        resumed(config, run)
    assert (config.model.remat, config.train.accumulate) == ((3,), 2)
    for text in ('optim.learning_rate: 0.05 -> 0.01', 'train.accumulate: 1 -> 2', 'model.remat: [] -> (3,)'):
        assert text in caplog.text


def gated(facts):
    facts['config']['model']['gate'] = 'spatial'
    facts['version'] = '9.1.0'


def ringed(facts):
    facts['config']['model']['variant'] = 'ring'
    facts['version'] = '9.1.0'


@pytest.mark.parametrize(
    ('change', 'text'), [(gated, "model.gate='spatial'"), (ringed, "model.variant='ring'")]
)
def test_a_network_of_a_newer_version_is_refused_and_its_backbone_taken(change, text, tmp_path):
    run = copy_of('29e8a0d', tmp_path)
    change_facts(run, change)
    message = rf'a newer version of ann_jax \(9.1.0; this is {__version__}\).*{text}.*init.parts=backbone'
    for use in (
        lambda: ann_jax.load(run),
        lambda: evaluate(scenes.get_config('runlocal'), run),
        lambda: resumed(config_of('29e8a0d'), run),
        lambda: start_from(run, 'all', tmp_path / 'new'),
    ):
        with pytest.raises(VersionError, match=message):
            use()
    state, _, _ = start_from(run, 'backbone', tmp_path / 'new')
    kernel = open_weights(run).variables['params']['backbone']['stem']['conv1']['kernel']
    np.testing.assert_array_equal(state.params['backbone']['stem']['conv1']['kernel'], kernel)


def start_from(run, parts, workdir):
    config = scenes.get_config('runlocal')
    config.init['from'], config.init.parts = str(run), parts
    return resumed(config, workdir)


def test_a_loss_of_a_newer_version_keeps_a_run_from_going_on_alone(tmp_path, monkeypatch):
    run = copy_of('29e8a0d', tmp_path)
    change_facts(run, lambda facts: facts['config']['loss'].update(smoothing=0.1))
    with pytest.raises(VersionError, match=r'it does not say which.*loss.smoothing=0.1.*init.from='):
        resumed(config_of('29e8a0d'), run)
    assert open_weights(run).network()
    monkeypatch.setitem(history.GONE, 'loss.smoothing', 0.1)
    assert resumed(config_of('29e8a0d'), run)[1] == 400


def test_items_and_facts_of_a_newer_version_are_named(tmp_path, caplog):
    run = copy_of('29e8a0d', tmp_path)
    change_facts(run, lambda facts: facts.update(temperature=2))
    assert resumed(config_of('29e8a0d'), run)[1] == 400
    assert '400 also holds temperature, which this version does not know' in caplog.text
    folder = run / 'checkpoints' / '400'
    shutil.copytree(folder / 'facts', folder / 'average')
    with pytest.raises(VersionError, match='newer or changed version.*also holds average.*init.from='):
        resumed(config_of('29e8a0d'), run)
    assert open_weights(run).network()
    assert 'also holds average, temperature, which this version does not know' in caplog.text
    record = json.loads((folder / '_CHECKPOINT_METADATA').read_text())
    record['item_handlers'] = {'average': '', 'state': ''}
    (folder / '_CHECKPOINT_METADATA').write_text(json.dumps(record))
    shutil.rmtree(folder / 'facts')
    for use in (lambda: open_weights(run), lambda: resumed(config_of('29e8a0d'), run)):
        with pytest.raises(VersionError, match='holds average, state in place of state and facts'):
            use()


@pytest.mark.parametrize('section', ['config', 'model', 'input'])
def test_facts_without_what_this_version_needs(section, tmp_path):
    run = copy_of('29e8a0d', tmp_path)
    change_facts(run, lambda facts: (facts if section == 'config' else facts['config']).pop(section))
    for use in (lambda: open_weights(run), lambda: resumed(config_of('29e8a0d'), run)):
        with pytest.raises(VersionError, match=f'checkpoints/400 .*does not hold its {section}'):
            use()


def test_facts_of_classes_are_not_needed(tmp_path):
    run = copy_of('29e8a0d', tmp_path)
    expected = open_weights(run).classes
    change_facts(run, lambda facts: (facts.pop('classes'), facts.pop('colors')))
    opened = open_weights(run)
    assert opened.classes == expected and len(opened.colors) == 17


def test_damage_is_told_from_what_is_no_checkpoint(tmp_path):
    run = copy_of('29e8a0d', tmp_path)
    foreign = run / 'checkpoints' / '500'
    foreign.mkdir()
    (foreign / 'model.pt').write_bytes(b'1')
    with pytest.raises(Damaged, match='500 is not a checkpoint: it holds model.pt'):
        read_facts(foreign)
    assert open_weights(run).source['step'] == 400
    shutil.rmtree(run / 'checkpoints/400/facts')
    with pytest.raises(DataError, match='400 is damaged.*move it away') as error:
        open_weights(run)
    assert 'remove' not in str(error.value)


def edit(path, **changes):
    facts = json.loads(path.read_text())
    for key, value in changes.items():
        facts.pop(key, None) if value is None else facts.update({key: value})
    path.write_text(json.dumps(facts))


def test_a_folder_of_weights_names_its_version_and_what_is_unknown(tmp_path, caplog):
    folder = tmp_path / 'weights'
    saved = small_folder(folder)
    file = folder / 'model.json'
    whole = json.loads(file.read_text())
    assert whole['source']['ann_jax'] == __version__ == open_weights(folder).version
    source = {'ann_jax': '9.1.0'}
    for changes, message in (
        ({'model': saved.model | {'gate': 1}}, r'9.1.0; .*model.gate=1.*init.parts=backbone'),
        ({'model': saved.model | {'share': 'ring'}}, r"9.1.0; .*model.share='ring'"),
        ({'model': {k: v for k, v in saved.model.items() if k != 'variant'}}, 'no model.variant'),
        ({'input': saved.input | {'gamma': 2}}, 'input.gamma=2'),
        ({'version': 99}, 'format 99 of model.json.*the arrays of .*weights.safetensors'),
        ({'input': None}, 'model.json has no input'),
    ):
        file.write_text(json.dumps(whole))
        edit(file, source=source, **changes)
        with pytest.raises(VersionError, match=message):
            open_weights(folder).network()
    file.write_text(json.dumps(whole))
    edit(file, calibration=[1], classes=None, colors=None, sha256=None)
    opened = open_weights(folder)
    assert opened.network().num_classes == 17 and opened.classes[16] == 'class 16'
    assert 'also holds calibration' in caplog.text and 'has no checksum' in caplog.text
    file.write_text('{"format": "layers-model"}')
    with pytest.raises(DataError, match='model.json was not written by ann_jax'):
        open_weights(folder)
    file.write_text(json.dumps(whole)[:-20])
    with pytest.raises(DataError, match='damaged.*move it away'):
        open_weights(folder)


def test_a_setting_that_a_network_would_ignore_is_an_error():
    settings = defaults().model.to_dict() | {'gate': 1}
    with pytest.raises(ConfigError, match='model.gate'):
        build.model(ConfigDict({'model': settings}), 5)


def test_the_fixed_sections_are_sections():
    assert all(name.split('.')[0] in defaults() for name in FIXED)
