"""The public names, and a loop of one's own made of them."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from reference import assert_close, quick

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.kernels.resizing import resize_bilinear
from ann_jax.models.feature_map import FeatureMap
from ann_jax.parallel.mesh import make_mesh
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.step import make_train_step
from ann_jax.typing import IGNORE
from ann_jax.weights.inputs import IMAGENET_RGB

pytestmark = pytest.mark.usefixtures('compiled_fast')
ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there():
    for name in ann_jax.__all__:
        assert getattr(ann_jax, name).__doc__, name
    assert set(ann_jax.__all__) <= set(dir(ann_jax))
    with pytest.raises(AttributeError, match="module 'ann_jax' has no attribute 'Ann'"):
        _ = ann_jax.Ann


def test_the_import_is_lazy():
    code = 'import sys, ann_jax; assert not {"jax", "flax", "cv2", "grain"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


class Net(nn.Module):
    """Somebody's network: plain Flax around the paper's block, logits at half the size of the image."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        x = ann_jax.APNB(channels=4, sizes=(1, 2), dropout=0.0)(x, train)
        return nn.Dense(3)(x)


def random_batch(seed=0, size=8, height=18, width=14, classes=3):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (size, height, width)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE
    return {'image': rng.integers(0, 256, (size, height, width, 3), np.uint8), 'label': label}


def plain_entropy(main, auxiliary, labels):
    assert auxiliary is None
    return segmentation_loss(main, auxiliary, labels, ohem=False, per_image=False)


def test_a_step_of_somebodys_network_by_definition():
    """Loss and parameters after a step, on one device and on eight."""
    net, tx, batch = Net(), optax.sgd(0.1), random_batch()
    variables = jax.device_get(quick(lambda: net.init(jax.random.key(0), jnp.zeros((1, 18, 14, 3)), False))())

    def objective(params):
        x = ann_jax.normalizer(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr=False)(
            batch['image']
        )
        arguments = {'params': params, 'batch_stats': variables['batch_stats']}, x, True
        logits, _ = net.apply(*arguments, mutable=['batch_stats'])
        logits = resize_bilinear(logits, (18, 14), False)
        valid = batch['label'] != IGNORE
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, batch['label'], 0))
        return (losses * valid).sum() / valid.sum()

    loss, gradient = quick(jax.value_and_grad(objective))(variables['params'])
    expected = jax.tree.map(lambda x, g: x - 0.1 * g, variables['params'], gradient)
    for devices in (1, 8):
        step = ann_jax.make_step(net, tx, make_mesh(jax.devices()[:devices]), loss=plain_entropy)
        state, metrics = step(ann_jax.create_state(variables, tx), batch)
        assert_close(metrics['loss'], loss)
        assert_close(ravel_pytree(state.params)[0], ravel_pytree(expected)[0])
        assert (metrics['auxiliary_loss'], metrics['kept'], state.step) == (0, 1, 1)


@functools.cache
def small_ann():
    backbone = ann_jax.ResNet(depth=10, width=4, stem_widths=(4,))
    model = ann_jax.ANN(3, backbone, key_channels=4, head_channels=8, aux_channels=4, sizes=(1, 2))
    return model, ann_jax.initial_variables(model, 0)


def test_the_step_is_that_of_the_trainer():
    model, variables = small_ann()
    tx, batch = ann_jax.sgd(ann_jax.poly_schedule(0.1, 10)), random_batch(1, height=49, width=33)
    normalize = ann_jax.normalizer(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr=False)
    pure = make_train_step(model, tx, loss=segmentation_loss, normalize=normalize, seed=0)
    expected, _ = quick(pure)(ann_jax.create_state(variables, tx), batch)
    mesh = make_mesh(data=4, space=2)
    state, _ = ann_jax.make_step(model, tx, mesh)(ann_jax.create_state(variables, tx), batch)
    assert_close(ravel_pytree(state.params)[0], ravel_pytree(expected.params)[0])


@pytest.mark.parametrize('space', [1, 2])
def test_the_evaluation_counts_each_image_alone(space):
    """Images of several sizes in a batch, on several devices."""
    model, variables = small_ann()
    normalize = ann_jax.normalizer(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr=False)
    sizes = [(49, 33), (40, 33), (49, 20), (33, 33)]
    batch = random_batch(2, 4, 49, 33) | {'size': np.array(sizes, np.int32)}
    expected = np.zeros((3, 3), int)
    for image, label, (height, width) in zip(batch['image'], batch['label'], sizes, strict=True):
        image[height:], image[:, width:], label[height:], label[:, width:] = 9, 9, IGNORE, IGNORE
        part = normalize(image[None, :height, :width])
        logits = quick(functools.partial(model.apply, full_size=True))(variables, part).main
        true, predicted = label[:height, :width], np.asarray(logits)[0].argmax(-1)
        np.add.at(expected, (true[true != IGNORE], predicted[true != IGNORE]), 1)
    evaluate = ann_jax.make_eval(model, make_mesh(jax.devices()[: 4 * space], data=4, space=space))
    confusion = evaluate(variables, batch)
    assert np.abs(confusion - expected).sum() <= 2  # a tie may fall otherwise
    assert confusion.sum() == (batch['label'] != IGNORE).sum()


def test_what_a_loop_cannot_do_is_refused():
    net, tx = Net(), optax.sgd(0.1)
    variables = jax.device_get(quick(lambda: net.init(jax.random.key(0), jnp.zeros((1, 18, 14, 3)), False))())
    state, batch = ann_jax.create_state(variables, tx), random_batch(size=6)
    with pytest.raises(ConfigError, match='batch size=6 does not divide over 8 devices; .* 8'):
        ann_jax.make_step(net, tx, loss=plain_entropy)(state, batch)
    one = make_mesh(jax.devices()[:1])
    for label, message in (
        (np.int32(-1), 'the label -1'),
        (np.uint8(3), 'the label 3, but the network has 3'),
    ):
        wrong = batch | {'label': np.full((6, 18, 14), label)}
        for model in (net, small_ann()[0]):
            with pytest.raises(DataError, match=message):
                ann_jax.make_step(model, tx, one, loss=plain_entropy)(state, wrong)
            with pytest.raises(DataError, match=message):
                ann_jax.make_eval(model, one)(variables, wrong | {'label': list(wrong['label'])})
    split = make_mesh(data=2, space=4)
    with pytest.raises(ConfigError, match='mesh.space=4: rows of images can only be split for an ANN'):
        ann_jax.make_step(net, tx, split, loss=plain_entropy)(state, batch)
    evaluate = ann_jax.make_eval(net, make_mesh(jax.devices()[:1]))
    whole = batch | {'size': np.array([(18, 14)] * 6)}
    assert np.asarray(evaluate(variables, whole)).sum() == (batch['label'] != IGNORE).sum()
    with pytest.raises(ConfigError, match='padded images'):
        evaluate(variables, batch | {'size': np.array([(17, 14)] * 6)})
    for size in ((19, 14), (18, 0)):
        with pytest.raises(DataError, match=r'must be heights and widths from 1 to \(18, 14\)'):
            evaluate(variables, batch | {'size': np.array([size] * 6)})


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ann_jax.make_step(Net(), optax.sgd(0.1), clip_norm=-1.0), 'optim.clip_norm=-1.0'),
        (lambda: ann_jax.make_step(Net(), optax.sgd(0.1), ema_decay=2.0), 'optim.ema_decay=2.0'),
        (lambda: ann_jax.make_step(Net(), optax.sgd(0.1), factors={'Conv_0': -1.0}), 'factors: Conv_0=-1.0'),
        (lambda: ann_jax.poly_schedule(0.1, -5), 'max_steps=-5: must be above 0'),
        (lambda: ann_jax.sgd(0.1, momentum=9.0), 'optim.momentum=9.0'),
        (lambda: ann_jax.sgd(0.1, weight_decay=-1.0), 'optim.weight_decay=-1.0'),
        (lambda: ann_jax.Dataset('a', 'xy', ((0, 0, 0), (1, 1, 1))), 'must be a tuple of names'),
        (lambda: ann_jax.Dataset('a', ('x', 'x'), ((0, 0, 0), (1, 1, 1))), 'each once'),
        (lambda: ann_jax.Dataset('a', ('x',), ((0, 0, 600),)), 'is not red, green and blue from 0 to 255'),
    ],
)
def test_numbers_and_names_that_cannot_be_meant_are_refused(make, message):
    """A negative norm turned gradients around, negative steps let the rate rise."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('scale', [1 / 255, -1.0])
def test_images_that_are_no_levels_are_refused(scale):
    """Floats from 0 to 1, as torchvision has them, were almost black."""
    net, tx, one = Net(), optax.sgd(0.1), make_mesh(jax.devices()[:1])
    batch = random_batch(size=2)
    images = np.float32(scale) * batch['image']
    variables = jax.device_get(quick(lambda: net.init(jax.random.key(0), jnp.zeros((1, 18, 14, 3)), False))())
    with pytest.raises(DataError, match='levels are from 0 to 255: give these, or normalize='):
        ann_jax.make_eval(net, one)(variables, batch | {'image': images})
    with pytest.raises(DataError, match='the batch has images from'):
        ann_jax.make_step(net, tx, one)(ann_jax.create_state(variables, tx), batch | {'image': images})
    own = ann_jax.make_eval(net, one, normalize=lambda x: ann_jax.normalizer(**IMAGENET_RGB)(x / scale))
    expected = ann_jax.make_eval(net, one)(variables, batch)
    assert np.abs(np.asarray(own(variables, batch | {'image': images})) - expected).sum() <= 4


@pytest.mark.parametrize('mesh', [{'data': 1}, {'data': 1, 'space': 4}])
def test_logits_are_arrays_of_the_size_of_the_image(mesh):
    model, variables = small_ann()
    image = np.zeros((1, 49, 33, 3), np.float32)
    mesh = make_mesh(jax.devices()[: mesh.get('space', 1)], **mesh)
    with jax.set_mesh(mesh):
        low, full = (
            quick(functools.partial(model.apply, full_size=full))(variables, image) for full in (0, 1)
        )
    assert low.main.shape == (1, 7, 5, 3) and full.main.shape == full.auxiliary.shape == (1, 49, 33, 3)
    mapped = quick(functools.partial(model.apply, full_size=True))(variables, FeatureMap.of(image))
    assert_close(mapped.main.array, full.main)


def test_the_example_trains(environment):
    run = [sys.executable, str(ROOT / 'examples' / 'own_loop.py'), '2']
    printed = subprocess.run(
        run, check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    ).stdout
    assert 'step 2: loss' in printed and 'on 32 images' in printed
