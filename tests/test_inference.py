"""Test protocols against mmsegmentation's, their definition and torch's resizing, at awkward sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, nhwc, quick, random_variables
from test_ann import mmseg_network

from ann_jax.data.canvases import Canvases, pad
from ann_jax.errors import ConfigError
from ann_jax.inference import functions
from ann_jax.inference.protocols import (
    Canvas,
    multi_scale,
    sliding_window,
    whole_image,
    window_starts,
)
from ann_jax.models.ann import ANN, Logits
from ann_jax.models.fold import fold
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.mesh import make_mesh
from ann_jax.weights.inputs import normalizer

pytestmark = pytest.mark.usefixtures('compiled_fast')
MESH = make_mesh(jax.devices()[:1])
IDENTITY = lambda image: image


def run(protocol, params, *images, canvas=None):
    """Logits of each image of a batch that shares a canvas, cut to the image."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    canvas = canvas or tuple(sizes.max(0))
    stack = np.zeros((len(images), *canvas, images[0].shape[-1]), np.float32)
    for i, image in enumerate(images):
        stack[i, : image.shape[0], : image.shape[1]] = image
    result = protocol(params, Canvas(stack, sizes))
    assert result.array.shape[:3] == stack.shape[:3] and (result.size == sizes).all()
    return [np.asarray(a)[: i.shape[0], : i.shape[1]] for a, i in zip(result.array, images, strict=True)]


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)


class Sum:
    """Stands in for a network: sums each pixel and its right and lower neighbours, with other weights."""

    takes_canvas = True

    def apply(self, params, image, full_size):
        return Logits(image.with_array(self.logits(params, image.clean())), None)

    def logits(self, params, image):
        padded = jnp.pad(image, ((0, 0), (0, 1), (0, 2), (0, 0)))
        right, lower = padded[:, :-1, 2:], padded[:, 1:, :-2]
        return jnp.concatenate([image, right, lower], -1) @ params['kernel']


KERNEL = {'kernel': np.random.default_rng(1).normal(0, 0.01, (9, 4)).astype(np.float32)}
whole_sum = functools.partial(whole_image, Sum(), IDENTITY)


@pytest.mark.parametrize('name', ['mmseg_ann_thin_v1c_r50', 'mmseg_ann_thin_r101'])
def test_sliding_window_equals_mmseg(name):
    model, variables, arrays, align_corners = mmseg_network(name)
    assert model.align_corners == align_corners
    whole = whole_image(model.clone(folded=True), IDENTITY, MESH)
    crop, stride = int(arrays['slide_crop']), int(arrays['slide_stride'])
    protocol = sliding_window(whole, (crop, crop), (stride, stride), MESH)
    (logits,) = run(protocol, fold(model, variables), nhwc(arrays['slide_input'])[0])
    assert_close(logits[..., :4], nhwc(arrays['slide_logits'])[0])


@functools.cache
def small_network(sampling='average'):
    model = ANN(
        4,
        ResNet(10, 4, (4,)),
        key_channels=4,
        head_channels=8,
        aux_channels=4,
        sizes=(1, 2),
        sampling=sampling,
    )
    variables = random_variables(model, 0, np.zeros((1, 33, 33, 3), np.float32))
    # Small queries and keys: a steep softmax would multiply rounding errors.
    norms = variables['params']['fusion']['attention_0'], variables['params']['context']['attention_0']
    for norm in (layer['bn'] for attention in norms for layer in attention.values() if 'bn' in layer):
        norm['scale'], norm['bias'] = 0.1 * norm['scale'], 0.1 * norm['bias']
    return model, variables, fold(model, variables)


@pytest.mark.parametrize(
    'change', [{'std': (0, 1, 1)}, {'std': (1, 1)}, {'mean': (1,)}, {'mean': (np.nan, 1, 1)}, {'bgr': 'no'}]
)
def test_a_normalisation_that_cannot_be_one_is_refused(change):
    with pytest.raises(ConfigError, match='input'):
        normalizer(**{'mean': (120, 110, 100), 'std': (50, 60, 70), 'bgr': False} | change)


def test_a_normalisation_of_values_from_0_to_1_is_told(caplog):
    normalizer(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), bgr=False)
    assert 'are those of values from 0 to 1, but levels are from 0 to 255' in caplog.text
    caplog.clear()
    normalizer(mean=(0, 0, 0), std=(1, 1, 1), bgr=False)
    assert not caplog.text


NORMALIZE = normalizer(mean=(120, 110, 100), std=(50, 60, 70), bgr=True)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (3, 130), (64, 64), (77, 50)])
def test_a_whole_image_equals_the_trained_network_and_torchs_resizing(size, align_corners):
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    model, variables, params = small_network()
    image = random_image(*size)
    protocol = whole_image(model.clone(folded=True, align_corners=align_corners), NORMALIZE, MESH)
    main = np.asarray(quick(model.apply)(variables, NORMALIZE(image[None])).main)
    tensor = torch.tensor(main.transpose(0, 3, 1, 2))
    expected = torch.nn.functional.interpolate(tensor, size, mode='bilinear', align_corners=align_corners)
    assert_close(run(protocol, params, image)[0], nhwc(expected)[0])
    assert_close(run(protocol, params, image, canvas=(80, 140))[0], nhwc(expected)[0])


def naive_windows(function, image, crop, stride):
    """Sum over windows by definition."""
    height, width = image.shape[:2]
    total, count = 0, np.zeros((height, width, 1))
    for y in range(0, max(height - crop[0], 0) + stride[0], stride[0]):
        for x in range(0, max(width - crop[1], 0) + stride[1], stride[1]):
            bottom, right = min(y + crop[0], height), min(x + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            part = function(image[top:bottom, left:right])
            total = total + np.pad(part, ((top, height - bottom), (left, width - right), (0, 0)))
            count[top:bottom, left:right] += 1
    assert count.min() >= 1
    return total / count


@pytest.mark.parametrize('stride', [(32, 48), (21, 30), (7, 48)])
@pytest.mark.parametrize('size', [(32, 48), (31, 47), (33, 49), (70, 50), (20, 100), (1, 1)])
def test_windows_by_definition(size, stride):
    whole, params, image = whole_sum(MESH), KERNEL, random_image(*size)
    expected = naive_windows(lambda part: run(whole, params, part)[0], image, (32, 48), stride)
    protocol = sliding_window(whole, (32, 48), stride, MESH)
    assert_close(run(protocol, params, image)[0], expected)
    other = random_image(50, 90, seed=1)
    both = run(protocol, params, image, other, canvas=(80, 112))
    assert_close(both[0], expected)


@pytest.mark.parametrize('average', ['logits', 'probabilities'])
@pytest.mark.parametrize('flip', [True, False])
@pytest.mark.parametrize('size', [(40, 57), (1, 9)])
def test_scales_and_flips_by_definition(size, flip, average):
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')

    def resized(x, size):
        tensor = torch.tensor(np.ascontiguousarray(np.asarray(x)[None].transpose(0, 3, 1, 2)))
        return nhwc(torch.nn.functional.interpolate(tensor, size, mode='bilinear', align_corners=False))[0]

    whole, params = whole_sum(MESH), KERNEL
    image, scales = random_image(*size), (0.5, 1.0, 1.75)
    results = []
    for scale in scales:
        scaled = resized(image, tuple(max(int(n * scale + 0.5), 1) for n in size))
        for mirror in (False, True) if flip else (False,):
            logits = run(whole, params, scaled[:, ::-1] if mirror else scaled)[0]
            logits = resized(logits[:, ::-1] if mirror else logits, size)
            results.append(jax.nn.softmax(logits) if average == 'probabilities' else logits)
    expected = np.mean(results, 0)
    protocol = multi_scale(whole, scales, flip, average, MESH)
    for canvas in (None, (64, 64)):
        (logits,) = run(protocol, params, image, canvas=canvas)
        assert_close(np.exp(logits) if average == 'probabilities' else logits, expected, 2e-5)


@pytest.mark.parametrize(('size', 'average'), [((33, 49), 'logits'), ((20, 100), 'probabilities')])
def test_protocols_of_a_plain_function(size, average):
    """Windows and scales of a function from images to logits; inside of jit too."""
    images = np.stack([random_image(*size, seed) for seed in (0, 1)])
    predict = functools.partial(Sum().logits, KERNEL)
    windows = functions.sliding_window(predict, (32, 48), (21, 30))
    expected = [
        naive_windows(lambda part: predict(part[None])[0], image, (32, 48), (21, 30)) for image in images
    ]
    assert_close(windows(images), np.stack(expected))
    scaled = functions.multi_scale(predict, (0.5, 1.0, 1.75), flip=True, average=average)
    protocol = multi_scale(whole_sum(MESH), (0.5, 1.0, 1.75), True, average, MESH)
    assert_close(scaled(images), np.stack(run(protocol, KERNEL, *images)))
    both = functions.multi_scale(windows, (0.7, 1.0), flip=True)
    assert_close(quick(both)(images), both(images))


def test_a_plain_function_takes_batches():
    predict = lambda images: images
    for protocol in (
        functions.sliding_window(predict, (32, 48), (21, 30)),
        functions.multi_scale(predict, (1.0,), flip=True),
    ):
        with pytest.raises(ConfigError, match=r'must be \(B, H, W, C\), with at least one image'):
            protocol(np.zeros((0, 48, 64, 3), np.float32))


def test_a_plain_function_must_give_logits_of_the_size_of_the_image():
    half = lambda images: images[:, ::2, ::2]
    for protocol in (functions.multi_scale(half, (1.0,)), functions.sliding_window(half, (8, 8), (8, 8))):
        with pytest.raises(ConfigError, match='must have the height and width of the image'):
            protocol(np.zeros((1, 16, 16, 3), np.float32))
    with pytest.raises(ConfigError, match='at most eval.crop'):
        functions.sliding_window(half, (8, 8), (9, 8))
    with pytest.raises(ConfigError, match="unknown average 'votes'"):
        functions.multi_scale(half, (1.0,), average='votes')


def test_constant_logits_stay_constant():
    image = np.full((61, 85, 3), 100, np.float32)

    class Constant(Sum):
        def logits(self, params, image):
            return jnp.ones((*image.shape[:3], 2)) * jnp.array([3.0, -5.0])

    windows = sliding_window(whole_image(Constant(), IDENTITY, MESH), (32, 48), (21, 30), MESH)
    protocol = multi_scale(windows, (0.5, 1.0, 1.3), True, 'logits', MESH)
    (logits,) = run(protocol, KERNEL, image, canvas=(64, 96))
    assert_close(logits, np.broadcast_to([3.0, -5.0], logits.shape), 1e-6)


def test_every_device_works_on_its_own_images():
    mesh = make_mesh()
    images = [random_image(20 + 5 * i, 70 - 3 * i, seed=i) for i in range(8)]
    results = []
    for devices in (mesh, MESH):
        protocol = multi_scale(
            sliding_window(whole_sum(devices), (32, 32), (20, 20), devices),
            (0.7, 1.0),
            True,
            'logits',
            devices,
        )
        results.append(run(protocol, KERNEL, *images, canvas=(64, 96)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_programs_are_shared_between_sizes():
    traced = []

    class Counted(Sum):
        def logits(self, params, image):
            traced.append(image.shape)
            return super().logits(params, image)

    canvases, rng = Canvases(), np.random.default_rng(0)
    protocol = multi_scale(
        whole_image(Counted(), IDENTITY, MESH), (0.5, 1.0), False, 'logits', MESH, canvases
    )
    for height, width in rng.integers(100, 500, (20, 2)):
        image = random_image(height, min(width, 2 * height))
        run(protocol, KERNEL, image, canvas=canvases.fit(*image.shape[:2]))
    assert len(set(traced)) == len(traced) <= 12


def test_canvases():
    canvases = Canvases()
    assert [canvases.fit(*size) for size in [(60, 80), (80, 60), (360, 480)]] == [
        (60, 80),
        (80, 60),
        (360, 480),
    ]
    assert canvases.fit(300, 470) == (360, 480)  # near enough to use again
    assert canvases.fit(500, 700) == (512, 768)
    assert canvases.fit(1025, 2048) == (1536, 2048)
    for height, width in np.random.default_rng(0).integers(1, 900, (200, 2)):
        canvas = canvases.fit(height, width)
        assert canvas[0] >= height and canvas[1] >= width
    assert Canvases(exact_only=True).fit(17, 900) == (17, 900)
    stack = pad([np.ones((2, 3), np.uint8)], (4, 5), 2, fill=9)
    assert stack.shape == (2, 4, 5) and (stack == 1).sum() == 6 and (stack[1] == 9).all()


def test_window_starts():
    assert window_starts(10, 10, 5) == [0] == window_starts(3, 10, 5)
    assert window_starts(11, 10, 5) == [0, 1]
    assert window_starts(2048, 864, 576) == [0, 576, 1152, 1184]


def test_padding_is_refused_where_it_would_change_the_result():
    model, _, params = small_network(sampling='max')
    protocol = whole_image(model.clone(folded=True), NORMALIZE, MESH)
    run(protocol, params, random_image(40, 50))
    with pytest.raises(ConfigError, match='model.sampling=max and random, .* need images of one size'):
        run(protocol, params, random_image(40, 50), canvas=(64, 64))
    with pytest.raises(ConfigError, match="unknown average 'votes'"):
        multi_scale(protocol, (1.0,), True, 'votes', MESH)
