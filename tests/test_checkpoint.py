"""Best and newest are kept, states come back as they were, and damage does not pass for a checkpoint."""

import contextlib
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.models.ann import ANN
from ann_jax.models.initializers import initial_variables
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.arrays import replicated
from ann_jax.parallel.mesh import make_mesh
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import TrainState, abstract_state, create_state
from ann_jax.weights.opening import open_weights

# orbax leaves coroutines unawaited where reading or writing fails.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(autouse=True)
def collected_here():
    """What orbax leaves of a checkpoint that it could not read complains when it is collected."""
    yield
    gc.collect()


def tiny_state(step):
    return TrainState(
        step=jnp.asarray(step), params={'w': jnp.full(3, step)}, batch_stats={}, opt_state=(jnp.zeros(3),)
    )


@pytest.mark.parametrize(
    ('scores', 'kept'),
    [
        ((0.1, 0.5, 0.3, 0.2), {2, 3, 4}),
        ((0.4, 0.3, 0.2, 0.1), {1, 3, 4}),
        ((0.1, 0.2, 0.3, 0.4), {3, 4}),
    ],
)
def test_best_and_newest_are_kept(scores, kept, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, score in enumerate(scores, 1):
        checkpoints.save(step, tiny_state(step), {})
        checkpoints.score(step, score)
    assert (checkpoints.latest, checkpoints.best) == (4, 1 + int(np.argmax(scores)))
    checkpoints.close()
    assert {int(path.name) for path in tmp_path.iterdir() if path.is_dir()} == kept


def test_scores_of_steps_that_come_again_are_dropped(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, score in ((1, 0.3), (2, 0.5), (3, 0.4), (4, 0.9)):
        checkpoints.save(step, tiny_state(step), {})
        checkpoints.score(step, score)
    checkpoints.close()
    shutil.rmtree(tmp_path / '4')  # as a damaged one may be moved away
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, tiny_state(4), {})
    assert not checkpoints.scored(4) and checkpoints.best == 2
    checkpoints.close()
    assert {int(path.name) for path in tmp_path.iterdir() if path.is_dir()} == {2, 3, 4}


def test_only_scores_that_were_made_alike_are_compared(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    made = ('on one image', 'on one image', 'on all', 'on all', 'on all')
    for step, (score, how) in enumerate(zip((0.8, 0.9, 0.5, 0.4, 0.3), made, strict=True), 1):
        checkpoints.save(step, tiny_state(step), {})
        checkpoints.score(step, score, how)
        assert checkpoints.best == (1, 2, 3, 3, 3)[step - 1]
    assert [checkpoints.without_better(step) for step in range(1, 6)] == [0, 0, 0, 1, 2]
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best == 3 and checkpoints.steps == [5, 4, 3, 2]  # the best of each is kept
    checkpoints.close()


def test_the_newest_without_a_score_does_not_hide_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tiny_state(1), {})
    checkpoints.score(1, 0.7)
    for step in (2, 3, 4):
        checkpoints.save(step, tiny_state(step), {})
    assert (checkpoints.latest, checkpoints.best) == (4, 1)
    checkpoints.close()
    assert {int(path.name) for path in tmp_path.iterdir() if path.is_dir()} == {1, 3, 4}


def test_an_empty_folder_has_neither(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'new')
    assert (checkpoints.latest, checkpoints.best) == (None, None)
    checkpoints.close()


def test_a_state_comes_back_on_another_number_of_devices(tmp_path):
    model = ANN(3, ResNet(10, 4, (4,)), key_channels=4, head_channels=8, aux_channels=4)
    tx = sgd(poly_schedule(0.1, 10))
    state = jax.device_put(
        create_state(initial_variables(model, 5), tx), replicated(make_mesh(jax.devices()[:1]))
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state, {'seed': 5})
    mesh = make_mesh()
    restored = checkpoints.restore(0, abstract_state(model, tx, replicated(mesh)))
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
        assert b.sharding.is_equivalent_to(replicated(mesh), b.ndim)


def wide_state(step, count=3000):
    return tiny_state(step).replace(params={'w': jnp.full(count, step, jnp.float32)})


def like(state):
    sharding = replicated(make_mesh(jax.devices()[:1]))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def first_whole(checkpoints, state):
    """Step, facts and state of the newest checkpoint that is whole."""
    return checkpoints.first_whole(checkpoints.steps, lambda step, _: checkpoints.restore(step, like(state)))


@pytest.fixture(scope='module')
def two_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, wide_state(step), {'sizes': (1, 3)})
    return folder


@pytest.mark.parametrize('damage', ['missing', 'truncated', 'altered'])
def test_whatever_file_is_damaged_what_is_restored_is_what_was_saved(damage, two_saved, tmp_path):
    """Every file of the newest checkpoint in turn: it is passed over, or the file did not matter."""
    names = [path.relative_to(two_saved) for path in (two_saved / '2').rglob('*') if path.is_file()]
    passed_over = 0
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two_saved, folder)
        content = bytearray((folder / name).read_bytes())
        if damage == 'missing':
            (folder / name).unlink()
        elif damage == 'truncated':
            (folder / name).write_bytes(content[: len(content) // 2])
        elif content:
            content[len(content) // 2] ^= 0x10
            (folder / name).write_bytes(content)
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            step, _, state = first_whole(checkpoints, wide_state(0))
        assert int(state.step) == step
        np.testing.assert_array_equal(state.params['w'], np.full(3000, step, np.float32))
        passed_over += step == 1
    assert passed_over >= 4


def test_values_other_than_those_saved_are_damage(two_saved, tmp_path, monkeypatch, caplog):
    """As if the file system had given back other bytes that orbax takes for good."""
    shutil.copytree(two_saved, tmp_path / 'copy')
    with contextlib.closing(Checkpoints(tmp_path / 'copy')) as checkpoints:
        restore = checkpoints._manager.restore

        def flip(step, **arguments):
            items = restore(step, **arguments)
            if step == 2 and 'state' in items:
                state = items['state']
                items = {'state': state.replace(params={'w': state.params['w'].at[7].add(1e-6)})}
            return items

        monkeypatch.setattr(checkpoints._manager, 'restore', flip)
        step, _, _ = first_whole(checkpoints, wide_state(0))
    assert step == 1 and 'params/w is not what was saved' in caplog.text


def test_an_empty_step_is_passed_over_and_set_aside(two_saved, tmp_path, caplog):
    folder = tmp_path / 'copy'
    shutil.copytree(two_saved, folder)
    (folder / '3').mkdir()
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        step, facts, _ = first_whole(checkpoints, wide_state(0))
        assert step == 2 and facts['sizes'] == [1, 3]
        assert str(folder / '3') in caplog.text
        checkpoints.set_aside([3])
        assert checkpoints.latest == 2 and (folder / 'damaged.3').is_dir()
        checkpoints.save(3, wide_state(3), {})
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        assert first_whole(checkpoints, wide_state(0))[0] == 3


def test_without_a_whole_checkpoint_the_error_names_the_folder(tmp_path):
    (tmp_path / '5').mkdir()
    with (
        contextlib.closing(Checkpoints(tmp_path)) as checkpoints,
        pytest.raises(DataError, match=f'{tmp_path} has no intact checkpoint'),
    ):
        first_whole(checkpoints, wide_state(0))


def test_another_network_is_refused_with_tensors_and_both_shapes(two_saved):
    with contextlib.closing(Checkpoints(two_saved)) as checkpoints:
        with pytest.raises(ConfigError) as error:
            first_whole(checkpoints, wide_state(0, 4000))
    for text in ('params/w', '(3000,)', '(4000,)', 'init.from', 'init.parts=but_classifier'):
        assert text in str(error.value)


KILLED = """
import sys
import jax.numpy as jnp
from ann_jax.runs.checkpoints import Checkpoints
from ann_jax.training.state import TrainState

checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 1000):
    params = {'w': jnp.full(1 << 21, step, jnp.float32)}
    state = TrainState(step=jnp.asarray(step), params=params, batch_stats={}, opt_state=())
    checkpoints.save(step, state, {})
"""


def test_kill_while_saving_leaves_the_newest_whole_checkpoint(tmp_path):
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(tmp_path)], env=environment)
    deadline = time.time() + 120
    while time.time() < deadline:
        names = [path.name for path in tmp_path.iterdir()]
        if any('tmp' in name for name in names) and max(map(int, filter(str.isdigit, names)), default=0) > 2:
            break
    process.kill()
    process.wait()
    assert any('tmp' in path.name for path in tmp_path.iterdir()), 'it was not killed while saving'
    newest = max(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    sample = TrainState(step=jnp.asarray(0), params={'w': jnp.zeros(1 << 21)}, batch_stats={}, opt_state=())
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        step, _, state = first_whole(checkpoints, sample)
        assert step == newest == int(state.params['w'][-1])
        checkpoints.save(step + 1, state.replace(step=state.step + 1), {})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.latest == newest + 1


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_full_disk_is_a_clear_error_and_spares_earlier_checkpoints(tmp_path):
    folder = tmp_path / 'checkpoints'
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, wide_state(1), {})
    checkpoints.close()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(folder)
    big = wide_state(2).replace(params={'w': jnp.asarray(np.random.default_rng(0).random(1 << 18))})
    try:
        # A file cannot grow any more: what a full disk does to its writer.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(SaveError, match='checkpoints: File too large. Free space'):
            checkpoints.save(2, big, {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        assert first_whole(checkpoints, wide_state(0))[0] == 1


def test_what_tensorstore_calls_too_late_is_not_printed(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, 'unraisablehook', printed.append)
    for _ in range(2):
        Checkpoints(tmp_path).close()
    late, other = RuntimeError('Event loop is closed'), RuntimeError('other')
    for error, place in ((late, None), (late, 'a finalizer'), (other, None)):
        sys.unraisablehook(SimpleNamespace(exc_value=error, object=place))
    assert [(lost.exc_value, lost.object) for lost in printed] == [(late, 'a finalizer'), (other, None)]


def test_a_damaged_checkpoint_that_was_asked_for_is_named_alone(two_saved, tmp_path, caplog):
    shutil.copytree(two_saved, tmp_path / 'run' / 'checkpoints')
    (tmp_path / 'run/checkpoints/2/facts/metadata').write_text('{')
    with pytest.raises(DataError, match=r'checkpoints/2 is damaged') as error:
        open_weights(tmp_path / 'run/checkpoints/2')
    assert 'remove' not in str(error.value) and 'the checkpoint before' not in caplog.text


def test_what_is_no_file_in_a_checkpoint_is_not_waited_for(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path / 'checkpoints')
    for name, kind in (('scores.json', 'device'), ('1/facts/metadata', 'device'), ('2/_METADATA', 'pipe')):
        path = tmp_path / 'checkpoints' / name
        path.unlink(missing_ok=True)
        os.mkfifo(path) if kind == 'pipe' else path.symlink_to('/dev/zero')
        with pytest.raises(DataError, match=f'{name} is a {kind}, not a file of a checkpoint: move it away'):
            open_weights(tmp_path)
        path.unlink()


def test_some_branches_are_read_without_the_rest(two_saved, tmp_path):
    folder = tmp_path / 'checkpoints'
    shutil.copytree(two_saved, folder)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        content = checkpoints.read(2, ('params', 'batch_stats'))
        assert set(content) == {'params', 'batch_stats'}
        np.testing.assert_array_equal(content['params']['w'], np.full(3000, 2, np.float32))
        facts = json.loads((folder / '2' / 'facts' / 'metadata').read_text())
        assert 'opt_state/0' in facts['arrays']


def test_damaged_scores_are_reported_and_forgotten(two_saved, tmp_path, caplog):
    folder = tmp_path / 'copy'
    shutil.copytree(two_saved, folder)
    (folder / 'scores.json').write_text('{"1": 0.')
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        assert checkpoints.best is None and 'scores.json' in caplog.text


def test_no_checkpoint_is_removed_whose_score_is_lost(tmp_path):
    steps = lambda: {int(path.name) for path in tmp_path.iterdir() if path.is_dir()}
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        for step, score in ((1, 0.5), (2, 0.3), (3, 0.4)):
            checkpoints.save(step, tiny_state(step), {})
            checkpoints.score(step, score)
    (tmp_path / 'scores.json').write_text('{"1": 0.')
    for step in (4, 5, 6):  # of which each resumes
        with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
            checkpoints.save(step, tiny_state(step), {})
            checkpoints.score(step, 0.6 - step / 100)
    assert steps() == {1, 2, 3, 4, 5, 6}
    assert (tmp_path / 'damaged.scores.json').read_text() == '{"1": 0.'
    (tmp_path / 'damaged.scores.json').unlink()
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(7, tiny_state(7), {})
    assert steps() == {4, 6, 7}


def test_an_empty_folder_beyond_the_last_step_is_not_how_far_the_run_is(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path / 'copy')
    (tmp_path / 'copy' / '99999').mkdir()
    with contextlib.closing(Checkpoints(tmp_path / 'copy')) as checkpoints:
        assert checkpoints.reached == 2
        assert checkpoints.latest == 99999


def test_a_link_among_the_checkpoints_stays(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path / 'copy')
    (tmp_path / 'copy' / '2').rename(tmp_path / 'elsewhere')
    (tmp_path / 'copy' / '2').symlink_to(tmp_path / 'elsewhere')
    with contextlib.closing(Checkpoints(tmp_path / 'copy')) as checkpoints:
        for step in (3, 4, 5):
            checkpoints.save(step, wide_state(step), {})
    assert (tmp_path / 'copy' / '2').is_symlink() and (tmp_path / 'elsewhere' / 'facts').is_dir()
    assert {path.name for path in (tmp_path / 'copy').iterdir() if path.is_dir()} >= {'2', '4', '5'}
    assert not (tmp_path / 'copy' / '3').exists()


def test_a_folder_that_was_removed_during_the_run_is_not_made_again(tmp_path):
    folder = tmp_path / 'run' / 'checkpoints'
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        shutil.rmtree(tmp_path / 'run')
        with pytest.raises(SaveError, match=f'{folder} was removed during the run'):
            checkpoints.save(1, wide_state(1), {})
    assert not folder.exists()
