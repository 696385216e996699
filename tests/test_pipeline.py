"""The order and content of batches, a function of (seed, step) alone; and errors that reach the consumer."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from trees import open_source, write_tree

from ann_jax.data import pipeline
from ann_jax.data.augment.mixing import Mix
from ann_jax.data.augment.transforms import Augment
from ann_jax.data.pipeline import ClosingIterator, Replacing, eval_batches, train_batches
from ann_jax.errors import DataError
from ann_jax.typing import IGNORE

PLAIN = Augment((4, 6), scale_range=(1, 1), flip=False, brightness=0)
RANDOM = Augment((5, 7), mean=(0, 0, 0))
EVERYTHING = Augment(
    (5, 7),
    jitter=(0.3, 0.3, 0.3, 0.1),
    blur=0.5,
    noise=5.0,
    grey=0.2,
    rotation=20.0,
    max_class_share=0.7,
    rare_crop=0.3,
    rand_augment=2,
)


class Numbered:
    """Samples that tell their number: every pixel of the label is it, and the image is noise of that seed."""

    def __init__(self, count, sizes=((4, 6),)):
        self.count, self.sizes = count, sizes

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        size = self.sizes[i % len(self.sizes)]
        image = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        return {'name': f'n{i}', 'image': image, 'label': np.full(size, i, np.uint8)}


class Broken(Numbered):
    def __getitem__(self, i):
        if i == 5:
            raise DataError('n5.png is truncated')
        return super().__getitem__(i)


class Dying(Numbered):
    """Sample 5 ends the reading process as the system does when memory runs out."""

    def __getitem__(self, i):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


class TellsJax(Numbered):
    """The label is 1 where the reading process has started a JAX backend, 2 where it has not imported jax."""

    def __getitem__(self, i):
        bridge = sys.modules.get('jax._src.xla_bridge')
        state = 2 if bridge is None else int(bridge.backends_are_initialized())
        return {**super().__getitem__(i), 'label': np.full((4, 6), state, np.uint8)}


def take(count, *args, **kwargs):
    iterator = train_batches(*args, **kwargs)
    try:
        return list(itertools.islice(iterator, count))
    finally:
        iterator.close()


def numbers(batches):
    return [batch['label'][:, 0, 0].tolist() for batch in batches]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a['image'], b['image'])
        np.testing.assert_array_equal(a['label'], b['label'])


def test_shapes():
    (batch,) = take(1, Numbered(7), RANDOM, batch_size=3, seed=0)
    assert set(batch) == {'image', 'label', 'name', 'problem'}
    assert batch['image'].shape == (3, 5, 7, 3) and batch['label'].shape == (3, 5, 7)
    assert batch['image'].dtype == batch['label'].dtype == np.uint8


def test_every_sample_once_an_epoch_and_a_new_order_in_each():
    order = np.concatenate(numbers(take(20, Numbered(10), PLAIN, batch_size=2, seed=3))).reshape(4, 10)
    assert (np.sort(order) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in order}) == 4
    assert tuple(order[0]) != tuple(range(10))


@pytest.mark.parametrize(('count', 'batch_size'), [(1, 3), (2, 5), (7, 3), (3, 3)])
def test_batches_run_across_epochs(count, batch_size):
    flat = np.concatenate(numbers(take(2 * count, Numbered(count), PLAIN, batch_size=batch_size, seed=0)))
    epochs = flat[: len(flat) // count * count].reshape(-1, count)
    assert (np.sort(epochs) == np.arange(count)).all()


def test_seed_decides_order_and_augmentation():
    first = take(4, Numbered(9), RANDOM, batch_size=3, seed=1)
    assert_same(take(4, Numbered(9), RANDOM, batch_size=3, seed=1), first)
    assert_same(take(4, Numbered(9), RANDOM, batch_size=3, seed=1, num_threads=5, prefetch=1), first)
    assert numbers(take(4, Numbered(9), PLAIN, batch_size=3, seed=2)) != numbers(
        take(4, Numbered(9), PLAIN, batch_size=3, seed=1)
    )


def test_augmentation_differs_between_epochs():
    first, second = (batch['image'] for batch in take(2, Numbered(1), RANDOM, batch_size=1, seed=0))
    assert (first != second).any()


@pytest.mark.parametrize('num_workers', [1, 2])
def test_workers_change_nothing(num_workers):
    # The other samples of a mix are a second draw of the source.
    augment, mix = (RANDOM, None) if num_workers == 1 else (EVERYTHING, Mix(Numbered(9), 'cutmix', 0.7))
    expected = take(9, Numbered(9), augment, batch_size=2, seed=1, mix=mix)
    got = take(7, Numbered(9), augment, batch_size=2, seed=1, start_step=2, num_workers=num_workers, mix=mix)
    assert_same(got, expected[2:])


@pytest.mark.parametrize('kind', ['cutmix', 'classmix', 'copy_paste'])
def test_mixing_is_a_function_of_the_step_and_tells_of_bad_samples(kind):
    counts = 24 * np.eye(9, dtype=int)
    mix = Mix(Replacing(Broken(9)), kind, 0.9, counts)
    whole = take(9, Numbered(9), PLAIN, batch_size=2, seed=1, mix=mix)
    assert_same(take(5, Numbered(9), PLAIN, batch_size=2, seed=1, start_step=4, mix=mix), whole[4:])
    mixed = [len(np.unique(label)) for batch in whole for label in batch['label']]
    assert sum(mixed) > len(mixed) or kind != 'cutmix'  # a sample has one class, which classmix pastes whole
    own = [name for batch in whole for name in batch['name']]
    changed = [
        (label != int(name[1:])).any()
        for name, label in zip(own, (x for batch in whole for x in batch['label']), strict=True)
    ]
    assert 0.3 < np.mean(changed) < 1
    problems = {problem for batch in whole for problem in batch['problem']}
    assert problems == {'', 'n5.png is truncated'}
    assert_same(
        take(3, Numbered(9), PLAIN, batch_size=2, seed=1, mix=Mix(Numbered(9), kind, 0.0, counts)),
        take(3, Numbered(9), PLAIN, batch_size=2, seed=1),
    )


def test_shards_interleave_to_the_whole():
    whole = take(6, Numbered(9), RANDOM, batch_size=4, seed=1)
    shards = [
        take(6, Numbered(9), RANDOM, batch_size=4, seed=1, shard_index=i, shard_count=2) for i in range(2)
    ]
    for batch, even, odd in zip(whole, *shards, strict=True):
        for key in ('image', 'label'):
            np.testing.assert_array_equal(batch[key][0::2], even[key])
            np.testing.assert_array_equal(batch[key][1::2], odd[key])


@pytest.mark.parametrize('step', [1, 4, 5])
def test_resumes_at_a_step(step):
    expected = take(8, Numbered(5), RANDOM, batch_size=2, seed=4)
    assert_same(take(8 - step, Numbered(5), RANDOM, batch_size=2, seed=4, start_step=step), expected[step:])


def test_resumes_far_into_the_run():
    assert len(take(1, Numbered(5), RANDOM, batch_size=8, seed=4, start_step=150_000)) == 1


@pytest.mark.parametrize(
    ('batch_size', 'shard_count', 'near'),
    [(6, 4, '4 or 8'), (2, 4, 'try 4'), (9, 2, '8 or 10'), (0, 1, 'try 1')],
)
def test_indivisible_batch(batch_size, shard_count, near):
    for batches in (
        lambda **kwargs: train_batches(Numbered(3), PLAIN, seed=0, **kwargs),
        lambda **kwargs: eval_batches(Numbered(3), **kwargs),
    ):
        with pytest.raises(ValueError, match=near):
            batches(batch_size=batch_size, shard_count=shard_count)


def test_bad_shard_index_and_empty_source():
    with pytest.raises(ValueError, match='shard_index 2'):
        train_batches(Numbered(3), PLAIN, batch_size=2, seed=0, shard_index=2, shard_count=2)
    with pytest.raises(ValueError, match='no samples'):
        train_batches(Numbered(0), PLAIN, batch_size=2, seed=0)


def test_workers_serve_scripts_that_parse_no_flags():
    flags.FLAGS.unparse_flags()
    try:
        assert len(take(1, Numbered(2), PLAIN, batch_size=2, seed=0, num_workers=1)) == 1
    finally:
        flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize('num_workers', [0, 1])
def test_errors_reach_the_consumer(num_workers):
    with pytest.raises(DataError, match='n5.png is truncated'):
        take(10, Broken(8), PLAIN, batch_size=2, seed=0, num_workers=num_workers)
    names = []
    with pytest.raises(DataError, match='n5.png is truncated'):
        names += [n for _, n in eval_batches(Broken(8), batch_size=2, num_workers=num_workers)]


def test_a_bad_file_is_named(tmp_path):
    written = write_tree('camvid', tmp_path)
    path = written['train'][1][0]
    path.write_bytes(path.read_bytes()[:300])
    source = open_source('camvid', root=tmp_path, split='train')
    with pytest.raises(DataError, match=path.name):
        take(3, source, PLAIN, batch_size=3, seed=0)
    with pytest.raises(DataError, match=path.name):
        list(eval_batches(source, batch_size=2))


def test_workers_start_no_jax_backend():
    (batch,) = take(1, TellsJax(2), PLAIN, batch_size=2, seed=0, num_workers=1)
    assert (batch['label'] != 1).all()


SIZES = ((4, 6), (4, 6), (4, 6), (8, 3))  # three alike, then another


def test_eval_yields_each_sample_once_at_its_size():
    source = Numbered(10, SIZES)
    batches = list(eval_batches(source, batch_size=2))
    assert [names for _, names in batches] == [
        ('n0', 'n1'),
        ('n2',),
        ('n3',),
        ('n4', 'n5'),
        ('n6',),
        ('n7',),
        ('n8', 'n9'),
    ]
    for batch, names in batches:
        for row, name in enumerate(names):
            sample = source[int(name[1:])]
            np.testing.assert_array_equal(batch['image'][row], sample['image'])
            np.testing.assert_array_equal(batch['label'][row], sample['label'])
        assert batch['image'].shape == (*batch['label'].shape, 3)
        assert len(batch['label']) == 2
        assert (batch['image'][len(names) :] == 0).all() and (batch['label'][len(names) :] == IGNORE).all()


@pytest.mark.parametrize('shard_count', [2, 4])
def test_eval_shards_are_the_rows_of_the_whole(shard_count):
    whole = list(eval_batches(Numbered(10, SIZES), batch_size=4))
    shards = [
        list(eval_batches(Numbered(10, SIZES), batch_size=4, shard_index=i, shard_count=shard_count))
        for i in range(shard_count)
    ]
    assert {len(shard) for shard in shards} == {len(whole)}
    for (batch, names), *parts in zip(whole, *shards, strict=True):
        for key in ('image', 'label'):
            np.testing.assert_array_equal(np.concatenate([part[key] for part, _ in parts]), batch[key])
        assert sum((part_names for _, part_names in parts), ()) == names


def test_eval_workers_change_nothing():
    expected = list(eval_batches(Numbered(6, SIZES), batch_size=2))
    got = list(eval_batches(Numbered(6, SIZES), batch_size=2, num_workers=1))
    assert [names for _, names in got] == [names for _, names in expected]
    assert_same([batch for batch, _ in got], [batch for batch, _ in expected])


def test_eval_of_nothing():
    assert list(eval_batches(Numbered(0), batch_size=2)) == []


def test_eval_can_be_left_early():
    batches = eval_batches(Numbered(50), batch_size=2)
    next(batches)
    batches.close()


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_bad_sample_is_replaced_by_the_next_and_told(num_workers):
    whole = take(4, Numbered(8), PLAIN, batch_size=2, seed=0)
    names = [name for batch in whole for name in batch['name']]
    assert sorted(names) == [f'n{i}' for i in range(8)]
    got = take(4, Replacing(Broken(8)), PLAIN, batch_size=2, seed=0, num_workers=num_workers)
    pairs = [pair for batch in got for pair in zip(batch['name'], batch['problem'], strict=True)]
    expected = [('n6', 'n5.png is truncated') if name == 'n5' else (name, '') for name in names]
    assert pairs == expected


def test_a_source_without_a_usable_sample_is_an_error():
    class AllBroken(Numbered):
        def __getitem__(self, i):
            raise DataError(f'n{i}.png is truncated')

    with pytest.raises(DataError, match='no sample can be used; the first: n2.png'):
        Replacing(AllBroken(3))[2]


def test_the_death_of_a_worker_is_an_error_that_says_so():
    iterator = train_batches(Dying(40), PLAIN, batch_size=1, seed=0, num_workers=1)
    with pytest.raises(DataError, match='a data worker died .*fewer loader.workers'):
        for _ in range(40):
            next(iterator)
    iterator.close()


def test_a_bad_sample_of_an_evaluation_is_left_without_a_label_and_logged(caplog):
    batches = list(eval_batches(Replacing(Broken(8), unlabelled=True), batch_size=2))
    labels = [label[0, 0] for batch, _ in batches for label in batch['label']]
    assert labels == [0, 1, 2, 3, 4, IGNORE, 6, 7]
    assert 'not evaluated: n5.png is truncated' in caplog.text


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.ENOSPC, 'No space left on device'),
        RuntimeError(
            f'Worker process was terminated unexpectedly with exit code -{int(signal.SIGBUS)}. Search'
        ),
    ],
)
def test_no_room_for_the_workers_names_shared_memory(error):
    def read():
        yield 1
        raise error

    batches = ClosingIterator(read())
    assert next(batches) == 1
    with pytest.raises(DataError, match=r'/dev/shm.*--shm-size.*loader\.workers=0'):
        next(batches)


@pytest.mark.parametrize(
    ('error', 'kind', 'text'),
    [
        (RuntimeError('Worker process was terminated unexpectedly with exit code -9.'), DataError, 'memory'),
        (OSError(errno.EIO, 'Input/output error'), OSError, 'Input/output'),
    ],
)
def test_other_ends_of_workers_do_not(error, kind, text):
    def read():
        raise error
        yield

    with pytest.raises(kind, match=text) as raised:
        next(ClosingIterator(read()))
    assert '/dev/shm' not in str(raised.value)


LEFT = """
import sys
from multiprocessing.shared_memory import SharedMemory

sys.warnoptions.append(sys.argv[1])
print(SharedMemory(create=True, size=10).name)
"""


def test_batches_on_their_way_are_removed_without_a_warning():
    ended = subprocess.run([sys.executable, '-c', LEFT, pipeline._TRACKER], capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stderr == ''
    name = ended.stdout.strip()
    deadline = time.time() + 10
    while os.path.exists(f'/dev/shm/{name}') and time.time() < deadline:
        time.sleep(0.02)
    assert name and not os.path.exists(f'/dev/shm/{name}')


class Other(Numbered):
    """Samples of which one part is changed."""

    def __init__(self, **changed):
        super().__init__(3)
        self.changed = changed

    def __getitem__(self, i):
        return {**super().__getitem__(i), **self.changed}


WRONG = [
    ({'image': np.full((4, 6, 3), 0.5, np.float32)}, 'image .* float32 .* levels from 0 to 255 as uint8'),
    ({'image': np.zeros((4, 6), np.uint8)}, r'must be a NumPy array \(H, W, channels\)'),
    ({'image': np.zeros((3, 4, 6), np.uint8)}, r'label must be a NumPy array of \(3, 4\)'),
    ({'label': np.full((4, 6), 256)}, 'from 256 to 256: give class indices, or 255'),
    ({'label': np.full((4, 6), -1)}, 'from -1 to -1'),
    ({'label': np.zeros((4, 6), np.float32)}, 'labels are float32'),
    ({'label': np.zeros((5, 6), np.uint8)}, r'label must be a NumPy array of \(4, 6\)'),
]


@pytest.mark.parametrize(('changed', 'message'), WRONG)
def test_samples_of_another_form_are_refused(changed, message):
    """They were cast to bytes: images from 0 to 1 became black, and label 256 became class 0."""
    message = 'the source gives for .*' + message
    with pytest.raises(DataError, match=message):
        take(1, Other(**changed), PLAIN, batch_size=2, seed=0)
    with pytest.raises(DataError, match=message):
        take(1, Numbered(3), PLAIN, batch_size=2, seed=0, mix=Mix(Other(**changed), 'cutmix', 1.0))
    with pytest.raises(DataError, match=message):
        list(eval_batches(Other(**changed), batch_size=2))


def test_labels_of_other_integers_become_bytes():
    (batch,) = take(1, Other(label=np.full((4, 6), 7)), PLAIN, batch_size=2, seed=0)
    assert batch['label'].dtype == np.uint8 and (batch['label'] == 7).all()


def test_a_step_before_the_first_is_refused():
    with pytest.raises(ValueError, match='start_step=-1'):
        train_batches(Numbered(3), PLAIN, batch_size=2, seed=0, start_step=-1)
