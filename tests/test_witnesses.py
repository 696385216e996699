"""Runs and weights that earlier commits wrote still open, and give the numbers that those commits got.

The files and how they were made: `witnesses/make.py`.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from reference import assert_close, quick
from witnesses.make import NETWORKS, SMALL, magnitude

from ann_jax import build
from ann_jax.config import defaults
from ann_jax.training.state import TrainState
from ann_jax.training.step import make_train_step
from ann_jax.weights.inputs import normalizer
from ann_jax.weights.opening import open_weights

WITNESSES = Path(__file__).parent / 'witnesses'
COMMITS = ('29e8a0d', 'f5baaa6')
# Of a step; rounding weighs more in the gradient's norm and in the small differences that a step makes.
BOUNDS = {
    'loss': 2e-5,
    'main_loss': 2e-5,
    'auxiliary_loss': 2e-5,
    'kept': 2e-5,
    'pixel_accuracy': 2e-5,
    'parameters': 2e-5,
    'gradient_norm': 5e-5,
    'parameters_moved': 5e-5,
    'statistics_moved': 5e-5,
}


def witness(commit):
    """The batch and what the commit computed from it."""
    with np.load(WITNESSES / f'commit_{commit}.npz') as arrays:
        return dict(arrays)


def filled(saved, default):
    """Saved settings, and today's defaults for keys that did not exist yet."""
    return {
        key: filled(saved.get(key, {}), value) if isinstance(value, dict) else saved.get(key, value)
        for key, value in default.items()
    }


def run(commit):
    """The settings and the state of a run, read without `ann_jax.runs`, and its number of classes."""
    folder = WITNESSES / f'commit_{commit}'
    config = ConfigDict(filled(json.loads((folder / 'config.json').read_text()), defaults().to_dict()))
    num_classes = len(json.loads((folder / 'metrics.json').read_text())['iou'])
    saved = arrays(folder / 'checkpoints/400/state')

    def find(path, _):
        found = saved['opt_state']
        for key in path:
            found = found[key.idx if hasattr(key, 'idx') else getattr(key, 'name', None) or key.key]
        return found

    like = jax.eval_shape(build.optimizer(config).init, saved['params'])
    opt_state = jax.tree_util.tree_map_with_path(find, like)
    return config, TrainState(saved['step'], saved['params'], saved['batch_stats'], opt_state), num_classes


def arrays(folder):
    """A tree that orbax saved, as NumPy arrays in plain dicts and lists."""
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder).item_metadata.tree
    return reader.restore(folder, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree))


def logits(config, num_classes, variables, image):
    """Both logits in evaluation, at the network's resolution."""
    model, normalize = build.model(config, num_classes), build.normalize(config)
    return quick(lambda variables, image: model.apply(variables, normalize(image)))(variables, image)


def assert_logits(computed, expected):
    assert_close(computed.main, expected['logits'])
    assert_close(computed.auxiliary, expected['auxiliary'])


def test_a_run_and_the_folder_exported_from_it_open_and_give_its_logits(tmp_path):
    opened = []
    for name in ('commit_29e8a0d', 'weights_29e8a0d'):
        shutil.copytree(WITNESSES / name, tmp_path / name)  # opening a run may write to it
        opened.append(open_weights(tmp_path / name))
    of_run, of_folder = opened
    jax.tree.map(np.testing.assert_array_equal, of_run.variables, of_folder.variables)
    for name in ('model', 'input', 'classes', 'colors'):
        assert getattr(of_run, name) == getattr(of_folder, name)
    assert of_folder.source == {'run': 'commit_29e8a0d', 'step': 400}
    assert of_folder.source.items() <= of_run.source.items()  # which knows more today
    config = ConfigDict({'model': defaults().model.to_dict() | of_run.model, 'input': of_run.input})
    expected = witness('29e8a0d')
    assert_logits(logits(config, len(of_run.classes), of_run.variables, expected['image']), expected)


def test_the_run_of_an_early_commit_opens(tmp_path):
    """It keeps no names of classes, no colours and no checksums; its data are the scenes."""
    shutil.copytree(WITNESSES / 'commit_f5baaa6', tmp_path / 'run')
    opened = open_weights(tmp_path / 'run')
    assert opened.classes[:2] == ('sky', 'building') and len(opened.colors) == len(opened.classes) == 15
    expected, normalize = witness('f5baaa6'), normalizer(**opened.input)
    computed = quick(opened.network().apply)(opened.variables, normalize(jnp.asarray(expected['image'])))
    assert_logits(computed, expected)
    (tmp_path / 'run' / 'metrics.json').unlink()
    assert open_weights(tmp_path / 'run').classes == opened.classes


@pytest.mark.parametrize('commit', COMMITS)
def test_the_arrays_of_a_run_give_its_logits(commit):
    config, state, num_classes = run(commit)
    expected = witness(commit)
    assert_logits(logits(config, num_classes, state.variables, expected['image']), expected)


@pytest.mark.parametrize('commit', COMMITS)
def test_a_step_from_the_arrays_of_a_run_gives_its_numbers(commit):
    config, state, num_classes = run(commit)
    expected = witness(commit)
    step = make_train_step(
        build.model(config, num_classes),
        build.optimizer(config),
        loss=build.loss(config, num_classes),
        normalize=build.normalize(config),
        seed=config.seed,
    )
    after, metrics = quick(step)(state, {'image': expected['image'], 'label': expected['label']})
    difference = lambda new, old: jax.tree.map(lambda x, y: x - y, new, old)
    computed = metrics | {
        'parameters': magnitude(after.params),
        'parameters_moved': magnitude(difference(after.params, state.params)),
        'statistics_moved': magnitude(difference(after.batch_stats, state.batch_stats)),
    }
    for name, bound in BOUNDS.items():
        assert_close(computed[name], expected[name], bound)


def test_paths_and_shapes_of_all_variables_are_those_of_saved_runs():
    lines = []
    for name, settings in NETWORKS.items():
        model = build.model(ConfigDict({'model': defaults().model.to_dict() | SMALL | settings}), 5)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            lines.append(f'{name} {jax.tree_util.keystr(path, simple=True, separator="/")} {leaf.shape}')
    assert sorted(lines) == (WITNESSES / 'paths.txt').read_text().splitlines()
