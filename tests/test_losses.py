"""Losses against the authors' outputs, torch, and their definition in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import assert_close, golden, nchw, nhwc, normal, quick, torch_gradients

from ann_jax.data.layout import check_pixels
from ann_jax.errors import ConfigError, DataError
from ann_jax.parallel.arrays import split_batch
from ann_jax.parallel.mesh import make_mesh
from ann_jax.training.losses import Loss, batch_totals, segmentation_loss
from ann_jax.training.mining import kth_smallest
from ann_jax.training.pixel_losses import cross_entropy, ohem_cross_entropy, true_probability
from ann_jax.typing import IGNORE


@functools.partial(quick, static_argnums=(5, 6))
def loss_and_gradients(main, auxiliary, labels, threshold, min_kept, per_image, class_weights):
    options = {'threshold': threshold, 'min_kept': min_kept, 'per_image': per_image}

    def total(main, auxiliary):
        loss = segmentation_loss(main, auxiliary, labels, class_weights=class_weights, **options)
        return loss.total, loss

    (_, loss), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(main, auxiliary)
    return loss, *gradients


@pytest.mark.parametrize('case', [f'case{i}' for i in range(6)])
def test_loss_equals_the_authors(case):
    arrays = golden('authors_ohem')
    labels = np.where(arrays['labels'] == arrays['ignore_label'], IGNORE, arrays['labels']).astype(np.uint8)
    weights = tuple(arrays['class_weights'].tolist()) if arrays[f'{case}/weighted'] else None
    loss, main, auxiliary = loss_and_gradients(
        nhwc(arrays['logits']),
        nhwc(arrays['aux_logits']),
        labels,
        float(arrays[f'{case}/threshold']),
        int(arrays[f'{case}/min_kept']),
        False,
        weights,
    )
    assert_close(loss.total, arrays[f'{case}/loss'])
    assert_close(main, nhwc(arrays[f'{case}/grad_logits']))
    assert_close(auxiliary, nhwc(arrays[f'{case}/grad_aux_logits']))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def ohem_by_definition(logits, labels, threshold, min_kept, class_weights):
    """Loss of (N, K) logits, its gradient, and the number of kept pixels."""
    gradient = np.zeros(logits.shape)
    index = np.flatnonzero(labels != IGNORE)
    if not index.size:
        return 0.0, gradient, 0
    log_p = log_softmax(logits)
    # The order of float32 probabilities decides, as in the code under test.
    p = np.exp(log_p[index, labels[index]]).astype(np.float32)
    limit = max(np.sort(p)[min(min_kept, len(p) - 1)], np.float32(threshold))
    index = index[p < limit]
    if not index.size:
        return 0.0, gradient, 0
    true = labels[index]
    weights = class_weights[true]
    gradient[index] = weights[:, None] * np.exp(log_p[index])
    gradient[index, true] -= weights
    return -(weights * log_p[index, true]).sum() / len(index), gradient / len(index), len(index)


def auxiliary_by_definition(logits, labels, class_weights):
    """Loss of (N, K) logits, divided by the sum of weights, and its gradient."""
    gradient = np.zeros(logits.shape)
    index = np.flatnonzero(labels != IGNORE)
    if not index.size:
        return 0.0, gradient
    log_p, true = log_softmax(logits), labels[index]
    weights = class_weights[true]
    gradient[index] = weights[:, None] * np.exp(log_p[index])
    gradient[index, true] -= weights
    return -(weights * log_p[index, true]).sum() / weights.sum(), gradient / weights.sum()


def random_case(seed, batch, height, width, classes=5):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((batch, height, width, classes), np.float32)
    labels = rng.integers(0, classes, (batch, height, width), np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return logits, labels, rng.uniform(0.5, 2, classes).astype(np.float32)


@pytest.mark.parametrize('per_image', [False, True])
@pytest.mark.parametrize(
    ('threshold', 'min_kept', 'weighted'),
    [(0.7, 10, True), (0.3, 30, False), (0.7, 10_000, False), (1e-6, 1, True)],
)
def test_loss_by_definition(threshold, min_kept, weighted, per_image):
    logits, labels, weights = random_case(min_kept, 3, 9, 7)
    auxiliary = normal(*logits.shape, seed=1)
    labels[0] = IGNORE  # an image without a valid pixel counts 0 in the mean
    class_weights = weights if weighted else np.ones_like(weights)
    rows = len(labels) if per_image else 1
    flat = lambda x: x.reshape(rows, -1, *x.shape[3:])
    expected = [
        ohem_by_definition(*row, threshold, min_kept, class_weights)
        for row in zip(flat(logits), flat(labels), strict=True)
    ]
    auxiliary_expected = [
        auxiliary_by_definition(*row, class_weights)
        for row in zip(flat(auxiliary), flat(labels), strict=True)
    ]

    loss, grad_main, grad_aux = loss_and_gradients(
        logits,
        auxiliary,
        labels,
        threshold,
        min_kept,
        per_image,
        tuple(weights.tolist()) if weighted else None,
    )
    assert_close(loss.main, np.mean([loss for loss, *_ in expected]))
    assert_close(loss.auxiliary, np.mean([loss for loss, _ in auxiliary_expected]))
    assert_close(loss.total, loss.main + 0.4 * loss.auxiliary)
    assert_close(loss.kept, sum(kept for *_, kept in expected) / (labels != IGNORE).sum())
    assert_close(flat(np.asarray(grad_main)), np.stack([g for _, g, _ in expected]) / rows)
    assert_close(flat(np.asarray(grad_aux)), 0.4 * np.stack([g for _, g in auxiliary_expected]) / rows)


@pytest.mark.parametrize('ohem', [False, True])
@pytest.mark.parametrize('per_image', [False, True])
def test_a_batch_without_valid_pixels(ohem, per_image):
    logits, labels = normal(2, 4, 5, 3), np.full((2, 4, 5), IGNORE, np.uint8)

    @quick
    def run(main, auxiliary):
        def loss(main, auxiliary):
            result = segmentation_loss(main, auxiliary, labels, ohem=ohem, per_image=per_image)
            return result.total, result

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(main, auxiliary)

    gradients, result = run(logits, 50 * logits)
    assert (result.total, result.main, result.auxiliary) == (0, 0, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(logits))


def logits_of(p):
    """Two-class logits whose first class has the probabilities p."""
    p = np.asarray(p, np.float64)
    return np.stack([np.log(p), np.log1p(-p)], -1).astype(np.float32)[None]


@pytest.mark.parametrize(
    ('p', 'threshold', 'min_kept', 'kept'),
    [
        ([0.1, 0.2, 0.3, 0.9], 0.5, 0, 3),  # the threshold decides
        ([0.1, 0.2, 0.3, 0.9], 0.15, 2, 2),  # the (min_kept + 1)-th smallest decides, strictly
        ([0.1, 0.2, 0.3, 0.9], 0.15, 3, 3),
        ([0.1, 0.2, 0.3, 0.9], 0.15, 100, 3),  # the last pixel never lies below itself
        ([0.1, 0.2, 0.3, 0.9], 0.95, 100, 4),
        ([0.5, 0.5, 0.5], 0.5, 1, 0),  # a probability equal to the threshold is easy
        ([0.5, 0.5, 0.5], 0.500001, 1, 3),
    ],
)
def test_which_pixels_are_kept(p, threshold, min_kept, kept):
    labels = np.zeros((1, len(p)), np.uint8)
    loss, count = ohem_cross_entropy(logits_of(p), labels, threshold=threshold, min_kept=min_kept)
    assert count[0] == kept
    assert_close(loss[0], -np.log(np.sort(p)[:kept]).mean() if kept else 0)


@pytest.mark.parametrize('size', [1, 2, 7, 1000])
def test_kth_smallest_is_the_sorted_one(size):
    rng = np.random.default_rng(size)
    rows = np.stack(
        [
            rng.random(size, np.float32),
            rng.integers(0, 3, size).astype(np.float32),  # ties
            np.zeros(size, np.float32),
            # From the smallest normal number to the largest.
            np.exp2(rng.uniform(-126, 127.9, size)).astype(np.float32),
            np.full(size, np.finfo(np.float32).max),
            np.where(rng.random(size) < 0.5, np.float32(2), rng.random(size, np.float32)).astype(np.float32),
        ]
    )
    find = quick(kth_smallest)
    for k in {0, size // 3, size // 2, size - 1}:
        found = find(rows, jnp.full(len(rows), k))
        np.testing.assert_array_equal(found, np.sort(rows)[:, k])
    each = np.arange(len(rows)) % size  # another k for each row
    np.testing.assert_array_equal(find(rows, each), np.sort(rows)[np.arange(len(rows)), each])


@pytest.mark.parametrize('weighted', [False, True])
def test_cross_entropy_equals_torch(weighted):
    torch = pytest.importorskip('torch')
    logits, labels, weights = random_case(4, 3, 6, 7)
    reference = functools.partial(
        torch.nn.functional.cross_entropy,
        target=torch.tensor(labels.astype(np.int64)),
        weight=torch.tensor(weights) if weighted else None,
        ignore_index=IGNORE,
    )
    expected, (gradient,) = torch_gradients(reference, np.float32(1), nchw(logits))
    loss = lambda x: cross_entropy(
        x.reshape(1, -1, 5), labels.reshape(1, -1), weights if weighted else None
    ).sum()
    ours, ours_gradient = quick(jax.value_and_grad(loss))(logits)
    assert_close(ours, expected)
    assert_close(ours_gradient, nhwc(gradient))


def test_cross_entropy_of_extreme_logits_is_finite():
    logits = np.array([[[1e4, -1e4, 0], [-1e4, 1e4, 0]]], np.float32)
    labels = np.array([[0, 0]], np.uint8)
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels).sum())(logits)
    assert_close(loss, 1e4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(('ohem', 'per_image'), [(True, False), (False, True)])
def test_an_average_over_all_pixels_is_that_of_mmsegmentation(ohem, per_image):
    """Its losses per pixel, 0 where a pixel is ignored or not kept, summed and divided by their number."""
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    logits, labels, weights = random_case(3, 4, 9, 7)
    auxiliary = normal(*logits.shape, seed=1)
    labels[1] = IGNORE
    target = torch.tensor(labels.astype(np.int64))
    entropy = functools.partial(torch.nn.functional.cross_entropy, ignore_index=IGNORE, reduction='none')
    losses = lambda x, **options: entropy(torch.tensor(nchw(x)), target, **options).double().numpy()
    weighted = {'weight': torch.tensor(weights)}
    main, valid = losses(logits, **weighted), labels != IGNORE
    if ohem:
        p = np.where(valid, np.exp(-losses(logits)), 2)
        for row, rows in ((i, [i]) for i in range(4)) if per_image else ((slice(None), range(4)),):
            good = np.sort(p[row][valid[row]])
            if good.size:
                main[rows] *= p[row] < max(0.3, good[min(20, good.size - 1)])
    options = {'ohem': ohem, 'per_image': per_image, 'threshold': 0.3, 'min_kept': 20, 'average': 'all'}
    options['class_weights'] = tuple(weights.tolist())
    loss = quick(functools.partial(segmentation_loss, **options))(logits, auxiliary, labels)
    assert_close(loss.main, main.sum() / labels.size)
    assert_close(loss.auxiliary, losses(auxiliary, **weighted).sum() / labels.size)
    # Rows below the images, as devices need them, are no pixels.
    below = lambda x, fill: np.concatenate([x, np.full_like(x[:, :3], fill)], 1)
    padded = quick(functools.partial(segmentation_loss, pixels=labels[0].size, **options))(
        below(logits, 0), below(auxiliary, 0), below(labels, IGNORE)
    )
    assert_close(padded.total, loss.total)


def test_an_average_over_all_pixels_of_parts_and_on_eight_devices():
    logits, labels, _ = random_case(5, 8, 9, 7)
    labels[2] = IGNORE
    options = {'threshold': 0.3, 'min_kept': 20, 'per_image': False, 'average': 'all'}
    loss = quick(functools.partial(segmentation_loss, **options))
    whole = loss(logits, logits[::-1], labels)
    halves = [(logits[part], logits[::-1][part], labels[part]) for part in (slice(4), slice(4, None))]
    p = [quick(true_probability)(main, label) for main, _, label in halves]
    totals_of = quick(functools.partial(batch_totals, threshold=0.3, min_kept=20))
    totals = totals_of([label for *_, label in halves], p)
    parts = [loss(*half, totals=totals) for half in halves]
    assert_close(sum(part.total for part in parts), whole.total)
    mesh = make_mesh()
    assert mesh.shape['data'] == 8
    split = jax.device_put((logits, logits[::-1], labels), split_batch(mesh))
    with jax.set_mesh(mesh):
        assert_close(loss(*split).total, whole.total)


def test_the_two_averages_differ_by_the_share_of_ignored_pixels():
    logits, labels = normal(1, 20, 20, 5), np.zeros((1, 20, 20), np.uint8)
    labels[:, :5] = IGNORE  # a quarter
    loss = functools.partial(segmentation_loss, logits, None, ohem=False)
    total = lambda average: quick(functools.partial(loss, average=average))(labels).total
    assert_close(total('all') / total('valid'), 0.75)
    with pytest.raises(ConfigError, match="unknown loss.average 'al'; did you mean 'all'"):
        total('al')


LABELS = np.zeros((2, 4, 5), int)


@pytest.mark.parametrize('labels', [LABELS - 1, LABELS + 3, jnp.asarray(LABELS + 300)])
def test_labels_without_a_class_are_refused(labels):
    """They had no loss, but counted in the mean."""
    logits, message = normal(2, 4, 5, 3), 'the network has 3 classes, 0 to 2'
    for loss in (lambda *given: segmentation_loss(given[0], *given), cross_entropy, ohem_cross_entropy):
        with pytest.raises(DataError, match=message):
            loss(logits, labels)


def test_labels_of_another_form_are_refused():
    """They were broadcast and compared as they were; tests with types would say so before."""
    with pytest.raises(DataError, match=r'labels of shape \(1, 4, 5\) for pixels of shape \(2, 4, 5\)'):
        check_pixels(LABELS[:1], LABELS.shape, 3)
    with pytest.raises(DataError, match='labels are float64: give integers'):
        check_pixels(LABELS.astype(float), LABELS.shape, 3)
    jax.eval_shape(lambda labels: check_pixels(labels, labels.shape, 3), LABELS + 7)  # values are not known


def test_weights_for_other_classes_are_refused():
    """The last weight stood for the classes without one."""
    logits = normal(2, 4, 5, 3)
    with pytest.raises(ConfigError, match=r'class_weights of shape \(2,\) for 3 classes'):
        segmentation_loss(logits, logits, LABELS, class_weights=(1.0, 2.0))


@pytest.mark.parametrize('settings', [{'label_smoothing': 2.0}, {'threshold': 7.0}, {'min_kept': -7}])
def test_numbers_of_a_loss_out_of_range_are_refused(settings):
    (name,) = settings
    logits = normal(2, 4, 5, 3)
    with pytest.raises(ConfigError, match=f'loss.{name}='):
        segmentation_loss(logits, logits, LABELS, **settings)


def test_more_classes_than_labels_have_are_refused():
    with pytest.raises(DataError, match='300 classes: at most 255'):
        cross_entropy(normal(1, 2, 2, 300), np.full((1, 2, 2), 255))


@pytest.mark.parametrize('loss', [jnp.ones(2), (jnp.ones(()), jnp.ones(()))])
def test_a_loss_that_is_no_scalar_is_refused(loss):
    with pytest.raises(ConfigError, match='must be a scalar or a `Loss`'):
        Loss.of(loss)
