"""Rows of images split over simulated devices: the numbers of one device, and what travels for them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from reference import assert_close, quick, random_variables

from ann_jax.errors import ConfigError
from ann_jax.inference.protocols import Canvas, multi_scale, sliding_window, whole_image
from ann_jax.kernels.resizing import resize, resize_bilinear
from ann_jax.models.ann import ANN
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import fold
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.arrays import put_batch, replicated, split_batch
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import Program, jit
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import create_state
from ann_jax.training.step import make_train_step
from ann_jax.typing import IGNORE
from ann_jax.weights.inputs import normalizer

pytestmark = pytest.mark.usefixtures('compiled_fast')
CLASSES = 5
NORMALIZE = normalizer(mean=(60.0,) * 3, std=(60.0,) * 3, bgr=False)


def network(ceil_pool=True, avg_down=False, output_stride=8, **settings):
    settings = {'key_channels': 8, 'head_channels': 8, 'aux_channels': 8, 'dropout': 0.2} | settings
    backbone = ResNet(10, 4, (4,), output_stride, ceil_pool=ceil_pool, avg_down=avg_down)
    return ANN(CLASSES, backbone, conv_bias=False, **settings)


@functools.cache
def weights(model):
    return random_variables(model, 0, jnp.zeros((1, 33, 33, 3)))


def mesh_of(data, space):
    return make_mesh(jax.devices()[: data * space], data=data, space=space)


def random_batch(count, height, width, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (count, height, width)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE
    # Brightness differs between images and between rows: statistics of a part are not those of all.
    image = rng.integers(0, 80, (count, height, width, 3)) + 15 * np.arange(count)[:, None, None, None]
    image += np.linspace(0, 60, height, dtype=int)[:, None, None]
    return {'image': image.astype(np.uint8), 'label': label}


def quick_on(mesh, function, **options):
    """`quick`, on a mesh."""
    return Program(quick(function, **options), mesh)


def collectives(program):
    """Kind -> shapes of what a compiled program exchanges."""
    found = {}
    kinds = 'all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter'
    for shape, kind in re.findall(rf'= (.*?) ({kinds})(?:-start)?\(', program.as_text()):
        found.setdefault(kind, []).append(shape)
    return found


def step_on(mesh, model, batch, per_image, **settings):
    """State and metrics after a step."""
    tx = sgd(poly_schedule(0.05, 10))

    def loss(main, auxiliary, labels):
        return segmentation_loss(main, auxiliary, labels, min_kept=500, per_image=per_image)

    step = make_train_step(model, tx, loss=loss, normalize=NORMALIZE, seed=3, **settings)
    state = create_state(weights(model), tx, factors=settings.get('factors'), ema='ema_decay' in settings)
    state = jax.device_put(state, replicated(mesh))
    shardings = (replicated(mesh), split_batch(mesh))
    step = quick_on(mesh, step, in_shardings=shardings, out_shardings=replicated(mesh))
    return jax.device_get(step(state, put_batch(batch, mesh)))


def assert_same_step(one, other):
    """Metrics, parameters and statistics to 1e-5; so the gradients, in the velocity, beside the largest."""
    (one, metrics), (other, others_metrics) = one, other
    for key, value in metrics.items():
        assert_close(others_metrics[key], value, 2e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one.variables), jax.tree.leaves(other.variables), strict=True
    ):
        np.testing.assert_allclose(
            b, a, rtol=0, atol=1e-5 * np.abs(a).max(), err_msg=jax.tree_util.keystr(path)
        )
    gradients, others = ([*jax.tree.leaves(state.opt_state)] for state in (one, other))
    largest = max(np.abs(x).max() for x in gradients)
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest)


def test_a_step_of_averaging_shortcuts_and_a_decoder_equals_one_device():
    model = network(avg_down=True, ceil_pool=False, decoder='stage2', decoder_channels=8)
    batch = random_batch(2, 66, 41)
    settings = {'clip_norm': 0.1, 'frozen_norm': ('stage4',), 'factors': {'stem': 0, 'stage3': 0.5}}
    settings |= {'ema_decay': 0.9}
    one = step_on(mesh_of(1, 1), model, batch, True, **settings)
    assert_same_step(one, step_on(mesh_of(2, 4), model, batch, True, **settings))


@pytest.mark.parametrize('per_image', [True, False])
def test_a_step_on_every_mesh_equals_one_device(per_image):
    """Nine rows at Stage5, which neither two nor eight devices divide; dropout, OHEM and its count too."""
    model, batch = network(), random_batch(4, 65, 41)
    one = step_on(mesh_of(1, 1), model, batch, per_image)
    for sizes in ((4, 2), (1, 8)) if per_image else ((2, 4),):
        assert_same_step(one, step_on(mesh_of(*sizes), model, batch, per_image))


@pytest.mark.parametrize(
    'settings',
    [
        {'variant': 'common', 'fuse_stages': (2, 3, 4)},
        {'variant': 'full', 'sampling': 'max', 'fuse_stages': (3, 4), 'ceil_pool': False},
        {'variant': 'apnb', 'sampling': 'random'},
        {'variant': 'fnb_nb'},
        {'output_stride': 4, 'decoder': 'stage2', 'decoder_channels': 8},
    ],
    ids=lambda settings: '-'.join(map(str, settings.values())),
)
def test_every_variant_gives_the_logits_of_one_device(settings):
    model, image = network(**settings), NORMALIZE(random_batch(2, 50, 33)['image'])
    rngs = {'dropout': jax.random.key(0), 'sampling': jax.random.key(1)}

    def run(mesh):
        def apply(variables, image):
            return model.apply(variables, image, True, rngs=rngs, mutable=['batch_stats'])[0]

        return quick_on(mesh, apply)(weights(model), image)

    one, split = run(mesh_of(1, 1)), run(mesh_of(1, 4))
    for a, b in zip(one, split, strict=True):
        assert_close(b, a)


@pytest.mark.parametrize('avg_down', [False, True])
@pytest.mark.parametrize(('height', 'data', 'space'), [(769, 1, 8), (520, 1, 8), (480, 4, 2), (864, 2, 4)])
def test_the_forward_network_gathers_no_feature_map(height, data, space, avg_down):
    """The paper's crops and windows, dilations 2 and 4, the logits resized: halos and sums only."""
    model, mesh = network(avg_down=avg_down), mesh_of(data, space)
    image = jax.ShapeDtypeStruct((data, height, 33, 3), jnp.float32, sharding=split_batch(mesh))

    def forward(variables, image):
        options = {'full_size': True, 'mutable': ['batch_stats'], 'rngs': {'dropout': key}}
        return model.apply(variables, FeatureMap.of(image), True, **options)[0]

    key = jax.random.key(0)
    program = quick_on(mesh, forward).lower(weights(model), image).compile()
    found = collectives(program)
    assert set(found) == {'all-reduce', 'collective-permute'}
    # What the shards of an image sum is no larger than the anchors: 110 of 8 channels.
    sizes = [
        np.prod([int(n) for n in shape.split(',')])
        for shape in re.findall(r'\[([\d,]+)\]', str(found['all-reduce']))
    ]
    assert max(sizes) <= 110 * 8
    for result in program.out_info:
        assert result.array.shape[1] >= height


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize(('low', 'full', 'space'), [(97, 769, 8), (66, 520, 8), (9, 65, 8), (61, 480, 8)])
def test_resizing_by_shards_equals_the_whole(low, full, space, align_corners):
    mesh = mesh_of(1, space)
    rows = -(-low // space) * space
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, rows, 7, 3)).astype(np.float32)
    cotangent = rng.normal(size=(2, full, 49, 3)).astype(np.float32)

    def whole(x):
        return resize_bilinear(x[:, :low], (full, 49), align_corners)

    def shards(x):
        return resize(x, (low, 7), (8 * rows, 49), (full, 49), align_corners)[:, :full]

    placed = jax.device_put(x, NamedSharding(mesh, P('data', 'space')))
    expected, pull = jax.vjp(whole, x)
    ours, our_pull = jit(lambda x: jax.vjp(shards, x), mesh)(placed)
    assert_close(ours, expected)
    assert_close(
        jit(our_pull, mesh)(cotangent)[0], pull(cotangent)[0], 2e-5
    )  # positions are rounded differently


@pytest.mark.parametrize('per_image', [True, False])
def test_the_loss_of_split_rows_gathers_nothing(per_image):
    mesh = mesh_of(2, 4)
    rng = np.random.default_rng(1)
    logits, labels = (
        rng.normal(size=(2, 4, 32, 9, CLASSES)).astype(np.float32),
        random_batch(4, 32, 9)['label'],
    )

    def loss(main, auxiliary, labels):
        return segmentation_loss(main, auxiliary, labels, min_kept=300, per_image=per_image).total

    function = jax.jit(jax.value_and_grad(loss))
    expected = function(*logits, labels)
    arguments = jax.device_put((*logits, labels), NamedSharding(mesh, P('data', 'space')))
    assert set(collectives(function.lower(*arguments).compile())) == {'all-reduce'}
    for a, b in zip(expected, function(*arguments), strict=True):
        assert_close(b, a)


def predictions(mesh, model, images, protocol):
    whole = whole_image(model.clone(folded=True), NORMALIZE, mesh)
    match protocol:
        case 'windows':
            whole = sliding_window(whole, (49, 41), (30, 30), mesh)
        case 'scales':
            whole = multi_scale(whole, (0.75, 1.0), True, 'logits', mesh)
    params = jax.device_put(fold(model, weights(model)), replicated(mesh))
    array = jax.device_put(images.array, split_batch(mesh))
    return np.asarray(whole(params, Canvas(array, images.size)).array)


@pytest.mark.parametrize(
    ('protocol', 'settings'),
    [
        ('whole', {}),
        ('whole', {'variant': 'common', 'fuse_stages': (2, 4), 'ceil_pool': False}),
        ('whole', {'sampling': 'max'}),
        ('whole', {'avg_down': True, 'ceil_pool': False}),
        ('windows', {}),
        ('scales', {}),
    ],
)
def test_protocols_over_split_rows_equal_one_device(protocol, settings):
    model = network(**settings)
    array = random_batch(2, 70, 44)['image']
    sizes = [(70, 44)] * 2 if settings.get('sampling') else [(70, 44), (53, 37)]
    images = Canvas(array, np.array(sizes, np.int32))
    one, split = (predictions(mesh, model, images, protocol) for mesh in (mesh_of(1, 1), mesh_of(2, 4)))
    for a, b, (height, width) in zip(one, split, sizes, strict=True):
        assert_close(b[:height, :width], a[:height, :width])


def test_evaluation_of_split_rows_gathers_no_feature_map():
    mesh, model = mesh_of(1, 8), network()
    image = jax.ShapeDtypeStruct((1, 769, 33, 3), jnp.float32, sharding=split_batch(mesh))
    size = jax.ShapeDtypeStruct((1, 2), jnp.int32, sharding=split_batch(mesh))

    folded = model.clone(folded=True)

    def forward(variables, image, size):
        return folded.apply(variables, FeatureMap.of(image, size), full_size=True).main

    program = quick_on(mesh, forward).lower(fold(model, weights(model)), image, size).compile()
    found = collectives(program)
    assert set(found) == {'all-reduce', 'collective-permute'}
    assert re.findall(r'\[[\d,]+\]', str(found['all-reduce'])) == ['[1,110,8]'] * 4  # of two blocks


def test_meshes_from_the_config():
    shape = lambda **sizes: dict(make_mesh(**sizes).shape)
    assert shape() == {'data': 8, 'space': 1}
    assert shape(space=2) == shape(data=4, space=-1) == shape(data=4, space=2) == {'data': 4, 'space': 2}
    assert dict(make_mesh(jax.devices()[:3]).shape) == {'data': 3, 'space': 1}


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        ({'space': 3}, r'mesh.space=3 does not divide 8 devices: 1, 2, 4, 8 divide'),
        ({'data': 5, 'space': -1}, r'mesh.data=5 does not divide 8 devices'),
        ({'data': 2, 'space': 2}, r'is 4 of 8 devices: mesh.data=4, or -1, goes with mesh.space=2'),
        ({'data': -1, 'space': -1}, r'one of them'),
    ],
)
def test_meshes_that_do_not_divide_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(**sizes)
