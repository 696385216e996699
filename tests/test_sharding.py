"""Eight simulated devices against one: the same step, the same statistics, the same evaluation."""

import jax
import numpy as np
import pytest

from ann_jax.errors import ConfigError
from ann_jax.evaluation.evaluate import evaluate
from ann_jax.inference.protocols import whole_image
from ann_jax.models.ann import ANN
from ann_jax.models.fold import fold
from ann_jax.models.initializers import initial_variables
from ann_jax.models.resnet import ResNet
from ann_jax.parallel.arrays import put_batch, replicated, split_batch
from ann_jax.parallel.mesh import check_batch_size, make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import create_state
from ann_jax.training.step import make_train_step
from ann_jax.typing import IGNORE
from ann_jax.weights.inputs import normalizer

pytestmark = pytest.mark.usefixtures('compiled_fast')
CLASSES = 5
MODEL = ANN(
    CLASSES, ResNet(10, 4, (4,)), key_channels=8, head_channels=8, aux_channels=8, dropout=0.05, sizes=(1, 3)
)
NORMALIZE = normalizer(mean=(120.0,) * 3, std=(60.0,) * 3, bgr=False)


def random_batch(seed, size=8):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (size, 33, 41)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE
    # Images that differ in brightness: statistics per device would differ from those of the batch.
    image = rng.integers(0, 100, (size, 33, 41, 3)) + 20 * np.arange(size)[:, None, None, None]
    return {'image': np.minimum(image, 255).astype(np.uint8), 'label': label}


def train(mesh, steps=2):
    tx = sgd(poly_schedule(0.05, 10))

    def loss(main, auxiliary, labels):
        return segmentation_loss(main, auxiliary, labels, min_kept=500)

    factors = {'stem': 0.5, 'stage3': 0}
    settings = {'clip_norm': 0.5, 'factors': factors, 'frozen_norm': ('stage4',), 'ema_decay': 0.9}
    step = jit(
        make_train_step(MODEL, tx, loss=loss, normalize=NORMALIZE, seed=3, **settings),
        mesh,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    state = create_state(initial_variables(MODEL, 0), tx, factors=factors, ema=True)
    state = jax.device_put(state, replicated(mesh))
    for i in range(steps):
        state, metrics = step(state, put_batch(random_batch(i), mesh))
    return jax.device_get((state, metrics))


def test_train_step_on_eight_devices_equals_one():
    """Loss, gradients (through the velocity), dropout and batch statistics all run over the global batch.

    So do the norm that is clipped, and the moving average.
    """
    one, many = (train(make_mesh(jax.devices()[:n])) for n in (1, 8))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(many), strict=True):
        scale = max(np.abs(a).max(), 1e-3)
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path))
    statistics = one[0].batch_stats['backbone']['stem']['bn1']['mean']
    np.testing.assert_allclose(
        many[0].batch_stats['backbone']['stem']['bn1']['mean'], statistics, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('per_image', [True, False])
def test_loss_on_eight_devices_equals_one(per_image):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 8, 33, 41, CLASSES)).astype(np.float32)
    labels = random_batch(2)['label']

    def loss(main, auxiliary, labels):
        return segmentation_loss(main, auxiliary, labels, min_kept=3000, per_image=per_image).total

    values = []
    for devices in (1, 8):
        split = split_batch(make_mesh(jax.devices()[:devices]))
        arrays = jax.device_put((*logits, labels), split)
        values.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(*arrays)))
    np.testing.assert_allclose(values[1][0], values[0][0], rtol=1e-6)
    np.testing.assert_allclose(values[1][1], values[0][1], rtol=1e-5, atol=1e-9)


def test_evaluation_on_eight_devices_equals_one():
    count = 11  # the last batch is filled up
    variables = initial_variables(MODEL, 0)
    data = random_batch(5, count)
    matrices = []
    for devices in (1, 8):
        mesh = make_mesh(jax.devices()[:devices])
        protocol = whole_image(MODEL.clone(folded=True), NORMALIZE, mesh)
        batches = []
        for start in range(0, count, 8):
            batch = {key: value[start : start + 8] for key, value in data.items()}
            fill = 8 - len(batch['label'])
            batch['image'] = np.pad(batch['image'], ((0, fill), (0, 0), (0, 0), (0, 0)))
            batch['label'] = np.pad(batch['label'], ((0, fill), (0, 0), (0, 0)), constant_values=IGNORE)
            batch['size'] = np.array([batch['label'].shape[1:]] * 8, np.int32)
            batches.append((batch, [str(i) for i in range(start, min(start + 8, count))]))
        seen = []
        matrix = evaluate(
            protocol,
            jax.device_put(fold(MODEL, variables), replicated(mesh)),
            batches,
            num_classes=CLASSES,
            mesh=mesh,
            on_sample=lambda name, *arrays, seen=seen: seen.append(name),
        )
        matrices.append(matrix)
        assert seen == [str(i) for i in range(count)]
    np.testing.assert_array_equal(*matrices)
    assert matrices[0].sum() == (data['label'] != IGNORE).sum()


def test_batch_that_does_not_divide_is_refused_with_the_nearest():
    mesh = make_mesh()
    check_batch_size(16, mesh, 'train.batch_size')
    with pytest.raises(ConfigError, match=r'train.batch_size=12 .* 8 devices.* 8 or 16'):
        check_batch_size(12, mesh, 'train.batch_size')
    with pytest.raises(ConfigError, match='8'):
        check_batch_size(0, mesh, 'train.batch_size')
