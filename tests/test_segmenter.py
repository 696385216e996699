"""What a segmenter takes and gives: arrays of other libraries, frames that change, results that travel."""

import multiprocessing
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reference import assert_close

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference.batching import in_batches
from ann_jax.parallel import arrays

pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module')
def segmenter(folder, compiled_fast):
    return ann_jax.load(folder)


def test_kernels_lie_as_convolutions_of_gpus_take_them(segmenter, folder, monkeypatch):
    monkeypatch.setitem(arrays.KERNELS, 'cpu', arrays.KERNELS['gpu'])
    other = ann_jax.load(folder)
    orders = {x.format.layout.major_to_minor for x in jax.tree.leaves(other._variables) if x.ndim == 4}
    assert orders == {(3, 0, 1, 2)}
    for moved in (other, pickle.loads(pickle.dumps(other))):
        expected, found = segmenter(picture()), moved(picture())
        assert_close(found.probabilities(), expected.probabilities())
    for ours, theirs in zip(other.stage_maps(picture()), segmenter.stage_maps(picture()), strict=True):
        assert_close(ours, theirs)
    assert other.attention(picture()).keys() == segmenter.attention(picture()).keys()


def picture(seed=0, *, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (48, 64, channels), np.uint8)


def as_torch(array):
    torch = pytest.importorskip('torch', reason='gives tensors')
    return torch.tensor(array)


@pytest.mark.parametrize(
    'convert', [np.array, jnp.asarray, as_torch, Image.fromarray, np.asfortranarray, memoryview]
)
def test_arrays_of_any_library(convert, segmenter):
    result = segmenter(convert(picture()))
    np.testing.assert_array_equal(result.ids, segmenter(picture()).ids)
    np.testing.assert_array_equal(result.image, picture())
    assert result.ids.any() and result.ids.shape == (48, 64)


@pytest.mark.parametrize('convert', [np.array, jnp.asarray, as_torch, list, memoryview])
def test_a_batch_is_a_list(convert, segmenter):
    batch = np.stack([picture(seed) for seed in range(3)])
    results = segmenter(convert(batch))
    assert len(results) == 3
    for result, image in zip(results, batch, strict=True):
        np.testing.assert_array_equal(result.ids, segmenter(image).ids)


def test_grey_and_alpha(segmenter):
    grey = picture(channels=1)
    expected = segmenter(np.repeat(grey, 3, -1)).ids
    for same in (grey, grey[..., 0]):
        np.testing.assert_array_equal(segmenter(same).ids, expected)
    alpha = np.full((48, 64, 1), 255, np.uint8)
    expected = segmenter(picture()).ids
    np.testing.assert_array_equal(segmenter(np.concatenate([picture(), alpha], -1)).ids, expected)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (
            picture().transpose(2, 0, 1),
            r'\(3, 48, 64\) and type uint8 has its channels first: .*transpose\(1, 2, 0\)',
        ),
        (picture().transpose(2, 0, 1)[None], 'channels first'),
        (picture() / np.float32(255), 'image_range'),
        (picture().astype(np.int32), 'image_range'),
        (np.zeros((0, 5, 3), np.uint8), 'image'),
        (np.zeros(7, np.uint8), 'image'),
        (np.zeros((4, 5), object), 'values of type object'),
        (picture(channels=4).view([('x', np.uint8)]), r'values of type \[.*give integers'),
        (np.zeros((0, 2, 5, 6, 3), np.uint8), r'not \(0, 2, 5, 6, 3\)'),
        (np.ma.masked_equal(picture(), 7), r'masked pixels.*filled\(0\)'),
        (memoryview(b'abc'), 'an image is'),
        (b'abc', 'not bytes'),
        (7, 'not int'),
        (None, 'not NoneType'),
        ([picture(), 7], 'not int'),
        ([None], 'not NoneType'),
    ],
)
def test_what_is_no_image_is_refused(image, message, segmenter):
    with pytest.raises(DataError, match=message):
        segmenter(image)


def test_an_array_outside_of_the_range_is_told(folder, caplog):
    segmenter = ann_jax.load(folder, image_range='0,4095')
    told = lambda: [each.getMessage() for each in caplog.records]
    segmenter(picture().astype(np.uint16) << 4)
    segmenter(np.full((48, 64, 3), 0.5))  # it is blank
    assert told() == []
    segmenter(picture() / 255)
    (line,) = told()
    assert (
        line.startswith('an array with values from 0 to 1 is blank for the network')
        and 'image_range is 0,4095' in line
    )


def test_pictures_that_cannot_be_used_are_told(segmenter, folder, tmp_path):
    Image.fromarray(picture()).save(tmp_path / 'a.png')
    with Image.open(tmp_path / 'a.png') as closed:
        pass
    for image, message in (
        (closed, 'cannot read the image .*closed'),
        (Image.new('RGB', (0, 10)), 'the Pillow image has no pixels: it is 0x10'),
        ('a\0b.png', r'cannot read the image .*a\\x00b.png.*null byte'),
        ('a' * 5000, 'File name too long'),
        ('', 'an empty path'),
    ):
        errors = []
        assert [each for each in segmenter.stream([image, picture()], errors)][0].ids.shape == (48, 64)
        assert len(errors) == 1
        with pytest.raises(DataError, match=message):
            segmenter(image)
    small = ann_jax.load(folder, max_pixels=10)
    for image in (tmp_path / 'a.png', Image.fromarray(picture())):
        with pytest.raises(DataError, match='64x48 is more than 10 pixels'):
            small(image)


def test_arguments_of_other_kinds_are_told(segmenter, folder):
    for settings, message in (
        ({'device': 'cpu'}, "device='cpu': must be one of jax.local_devices"),
        ({'space': '1'}, "space='1': must be a number"),
        ({'flop': True}, r"unknown settings \['flop'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            ann_jax.load(folder, **settings)
    with pytest.raises(ConfigError, match=r"weights='runs/x': must be a `Weights`; ann_jax.load opens"):
        ann_jax.Segmenter('runs/x')
    for settings in (
        {'batch_size': 2.5},
        {'batch_size': '2'},
        {'batch_size': None},
        {'ahead': 1.5},
        {'ahead': -1},
    ):
        with pytest.raises(ConfigError, match='must be a whole number of at least'):
            next(segmenter.stream([picture()], **settings))
    with pytest.raises(ConfigError, match='an empty path'):
        ann_jax.load('')


def test_a_tensor_that_numpy_cannot_read_is_refused(segmenter):
    torch = pytest.importorskip('torch', reason='gives tensors')
    for tensor in (torch.zeros(9, 9, 3, requires_grad=True), torch.zeros(9, 9, 3, dtype=torch.bfloat16)):
        with pytest.raises(DataError, match=r'NumPy cannot read a Tensor of shape \(9, 9, 3\)'):
            segmenter(tensor)


def test_batches_give_in_order_what_images_give_alone(segmenter):
    images = [picture(0), picture(1)[:40], np.zeros(7, np.uint8), picture(2)[:, :50], picture(3), picture(4)]
    errors = []
    results = list(segmenter.stream(images, errors, batch_size=2))
    assert len(results) == 5 and len(errors) == 1
    for result, image in zip(results, images[:2] + images[3:], strict=True):
        np.testing.assert_array_equal(result.image, image)
        np.testing.assert_array_equal(result.ids, segmenter(image).ids)
    last = list(segmenter.stream(images[3:], batch_size=3))[-1].probabilities()
    np.testing.assert_allclose(last, segmenter(images[-1]).probabilities(), atol=1e-5)
    with pytest.raises(ConfigError, match='batch_size=0: must be a whole number of at least 1'):
        list(segmenter.stream(images, batch_size=0))


def test_batches_are_full_or_of_one_and_hold_few():
    kinds = [1, 1, 2, None, 1, 2, 2, 2, 1, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    taken, batches, given = [], [], []

    def run(items):
        batches.append([kinds[i] for i in items])
        return [10 * i for i in items]

    for item, result in in_batches(
        map(lambda i: taken.append(i) or i, range(len(kinds))), kinds.__getitem__, run, 3
    ):
        assert result == 10 * item
        given.append(item)
        assert len(taken) - len(given) < 3 * 3
    assert given == list(range(len(kinds)))
    assert all(len(batch) in (1, 3) and len(set(batch)) == 1 for batch in batches)
    assert [1, 1, 1] in batches and [2, 2, 2] in batches and [None] in batches and [3] in batches


@pytest.mark.parametrize('ahead', [None, 0, 1, 3])
def test_a_camera_may_write_over_its_frames(ahead, segmenter):
    """Each frame is copied when it is taken, and no more are taken than asked for."""
    buffer, taken = np.zeros((48, 64, 3), np.uint8), []

    def camera():
        for number in range(8):
            taken.append(number)
            buffer[:] = picture(number)
            yield buffer

    for number, result in enumerate(segmenter.stream(camera(), ahead=ahead)):
        assert len(taken) <= number + 1 + (ahead or 0)
        np.testing.assert_array_equal(result.image, picture(number))
        np.testing.assert_array_equal(result.ids, segmenter(picture(number)).ids)
    assert number == 7


def test_errors_in_a_stream_are_collected(segmenter):
    errors = []
    frames = iter([picture(0), None, picture(1).astype(float), picture(2)])
    results = list(segmenter.stream(frames, errors))
    assert len(results) == 2 and len(errors) == 2 and 'not NoneType' in errors[0]


def test_results_are_ones_own(segmenter):
    image = picture()
    result = segmenter(image)
    image[:] = 0
    result.image[:] = 1
    np.testing.assert_array_equal(result.image, picture())
    assert result == result and result != segmenter(picture()) and len({result, result}) == 1
    assert repr(result).startswith('Result(64 x 48, ') and '\n' not in repr(result)
    assert repr(segmenter) == 'Segmenter(full on ResNet-10, 17 classes, float32)'


def test_probabilities_run_no_network_again(segmenter, monkeypatch):
    expected = next(segmenter.probabilities([picture()]))
    older, result = segmenter(picture(1)), segmenter(picture())
    for again in (lambda: older.probabilities(), lambda: segmenter.run(picture())):
        assert again().shape == expected.shape
    monkeypatch.setattr(segmenter, '_logits', lambda image: pytest.fail('it ran again'))
    for _ in range(2):
        np.testing.assert_array_equal(result.probabilities(), expected)
    np.testing.assert_array_equal(expected.argmax(-1), result.ids)


def test_results_and_segmenters_travel(segmenter):
    result = segmenter(picture())
    other = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(other.ids, result.ids)
    np.testing.assert_array_equal(other.overlay(), result.overlay())
    for opacity in (-0.1, 60, float('nan')):
        with pytest.raises(ConfigError, match=f'opacity={opacity}: must be from 0'):
            result.overlay(opacity=opacity)
    with pytest.raises(ConfigError, match='pickled .* segment result.image again'):
        other.probabilities()
    again = pickle.loads(pickle.dumps(segmenter))
    np.testing.assert_array_equal(again(picture()).probabilities(), result.probabilities())


def test_the_device_is_chosen(folder, segmenter):
    device = jax.devices()[5]
    elsewhere = pickle.loads(pickle.dumps(ann_jax.load(folder, device=device)))
    assert {x.device for x in jax.tree.leaves(elsewhere._variables)} == {device}
    np.testing.assert_array_equal(elsewhere(picture()).ids, segmenter(picture()).ids)
    with pytest.raises(ConfigError, match='space=2: name one device'):
        ann_jax.load(folder, device=device, space=2)
    for space in (0, -2, 99):
        with pytest.raises(ConfigError, match=f'space={space}: must be from 1 to 8'):
            ann_jax.load(folder, space=space)


def _said(function, queue):
    try:
        function()
    except ConfigError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_a_forked_process_is_refused_and_does_not_hang(folder, segmenter):
    context = multiprocessing.get_context('fork')
    for use in (lambda: segmenter(picture()), lambda: ann_jax.load(folder), lambda: _unpickled(segmenter)):
        queue = context.SimpleQueue()
        process = context.Process(target=_said, args=(use, queue))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert "get_context('spawn')" in queue.get()


def _unpickled(segmenter):
    made = {**segmenter._made}
    type(segmenter).__new__(type(segmenter)).__setstate__({'weights': None, 'variables': {}, 'made': made})
