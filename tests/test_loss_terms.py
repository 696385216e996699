"""The terms of a loss against torch's operators, optax, and their definitions in NumPy."""

import functools

import jax
import numpy as np
import optax
import pytest
from reference import assert_close, nchw, nhwc, normal, quick, torch_gradients

from ann_jax.errors import ConfigError
from ann_jax.parallel.mesh import make_mesh
from ann_jax.training import terms
from ann_jax.training.boundaries import near_boundary
from ann_jax.training.losses import batch_totals, segmentation_loss
from ann_jax.training.pixel_losses import true_probability
from ann_jax.training.region_losses import lovasz_softmax, tversky_loss
from ann_jax.typing import IGNORE

CLASSES = 5
WEIGHTS = (0.5, 1.0, 2.0, 0.0, 1.5)
EVERY = (('ohem', 1.0), ('focal', 0.3), ('dice', 0.5), ('tversky', 2.0), ('lovasz', 1.5))


def random_case(seed, batch=3, height=9, width=7):
    """Logits, and labels in patches; the last class occurs in the first image alone."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((batch, height, width, CLASSES), np.float32)
    labels = rng.integers(0, CLASSES - 1, (batch, -(-height // 3), -(-width // 2)), np.uint8)
    labels = labels.repeat(3, 1)[:, :height].repeat(2, 2)[:, :, :width].copy()
    labels[0, :2, :3] = CLASSES - 1
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    return logits, labels


def boundary_by_definition(labels, width):
    near = np.zeros(labels.shape, bool)
    for i, y, x in np.ndindex(labels.shape):
        window = labels[i, max(y - width, 0) : y + width + 1, max(x - width, 0) : x + width + 1]
        near[i, y, x] = labels[i, y, x] != IGNORE and len(set(window.ravel().tolist()) - {IGNORE}) > 1
    return near


def test_near_a_boundary():
    _, labels = random_case(0)
    near = [boundary_by_definition(labels, width) for width in (1, 3)]
    ours = quick(lambda labels: [near_boundary(labels, width) for width in (1, 3)])(labels)
    np.testing.assert_array_equal(ours, near)
    assert 0.1 < near[0].mean() < near[1].mean() < 0.9


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', ['cross_entropy', 'focal', 'ohem'])
def test_losses_of_pixels_equal_torch(name, weighted):
    """With smoothed labels (not focal) and boundaries; every image a row, and the auxiliary head too."""
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    logits, labels = random_case(1)
    auxiliary = normal(*logits.shape, seed=3)
    target = torch.tensor(labels.astype(np.int64))
    valid = target != IGNORE
    by_class = torch.tensor(WEIGHTS if weighted else (1.0,) * CLASSES)
    near = torch.tensor(boundary_by_definition(labels, 2))
    by_pixel = torch.where(near, 3.0, 1.0) * valid
    weights = by_pixel * by_class[torch.where(valid, target, 0)]
    smoothing = 0.0 if name == 'focal' else 0.1

    def mean(x, name, smoothing):
        entropies = torch.nn.functional.cross_entropy(
            x, target, by_class, ignore_index=IGNORE, reduction='none', label_smoothing=smoothing
        )
        plain = torch.nn.functional.cross_entropy(x, target, ignore_index=IGNORE, reduction='none')
        p = torch.exp(-plain).detach() if name == 'ohem' else torch.exp(-plain)
        if name == 'focal':
            return ((1 - p) ** 1.5 * weights * plain).sum((1, 2)) / weights.sum((1, 2))
        if name == 'ohem':
            kept = valid & (p < 0.4)
            return (kept * by_pixel * entropies).sum((1, 2)) / kept.sum((1, 2))
        return (by_pixel * entropies).sum((1, 2)) / weights.sum((1, 2))

    def total(main, auxiliary):
        return mean(main, name, smoothing).mean() + 0.4 * mean(auxiliary, 'cross_entropy', smoothing).mean()

    expected, gradients = torch_gradients(total, np.float32(1), nchw(logits), nchw(auxiliary))
    loss = functools.partial(
        segmentation_loss,
        terms=((name, 1.0),),
        threshold=0.4,
        min_kept=1,
        class_weights=WEIGHTS if weighted else None,
        label_smoothing=smoothing,
        boundary_weight=3.0,
        focal_gamma=1.5,
    )
    ours, ours_gradients = quick(
        jax.value_and_grad(lambda main, auxiliary: loss(main, auxiliary, labels).total, argnums=(0, 1))
    )(logits, auxiliary)
    assert_close(ours, expected)
    for gradient, reference in zip(ours_gradients, gradients, strict=True):
        assert_close(gradient, nhwc(reference))


def by_definition(name, x, labels, alpha, beta):
    """Loss of every class of an image, of torch logits (N, K) without ignored pixels, and which occur."""
    import torch

    p = torch.softmax(x, 1)
    losses, occurs = [], []
    for k in range(CLASSES):
        true = torch.tensor(labels == k)
        occurs.append(bool(true.any()))
        if name == 'lovasz':
            errors = torch.where(true, 1 - p[:, k], p[:, k])
            chosen, before, loss = torch.zeros_like(true), 0.0, 0.0
            for i in torch.argsort(errors, descending=True, stable=True).tolist():
                chosen[i] = True
                # The Jaccard loss if exactly the chosen pixels were wrong.
                jaccard = 1 - float((true & ~chosen).sum()) / float((true | chosen).sum())
                loss = loss + errors[i] * (jaccard - before)
                before = jaccard
        else:
            hits, wrong, missed = p[true, k].sum(), p[~true, k].sum(), (1 - p[true, k]).sum()
            loss = 1 - (hits + 1) / (hits + alpha * wrong + beta * missed + 1)
        losses.append(loss)
    return losses, occurs


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', ['dice', 'tversky', 'lovasz'])
def test_losses_of_regions_equal_their_definition(name, weighted):
    torch = pytest.importorskip('torch', reason='gradients are those of torch, which is not installed')
    logits, labels = random_case(2)
    labels[1] = IGNORE
    by_class = np.array(WEIGHTS if weighted else (1.0,) * CLASSES)
    alpha, beta = (0.5, 0.5) if name == 'dice' else (0.2, 0.9)

    def total(x):
        means = []
        for each, label in zip(x.double(), labels.reshape(len(labels), -1), strict=True):
            good = label != IGNORE
            losses, occurs = by_definition(name, each[torch.tensor(good)], label[good], alpha, beta)
            weights = by_class * occurs
            summed = sum(w * loss for w, loss in zip(weights, losses, strict=True) if w)
            means.append(summed / weights.sum() if weights.any() else 0.0)
        return (sum(means) / len(means)).float()

    expected, (gradient,) = torch_gradients(
        total, np.float32(1), logits.reshape(len(labels), -1, CLASSES).astype(np.float32)
    )
    loss = functools.partial(
        segmentation_loss,
        terms=((name, 1.0),),
        tversky=(alpha, beta),
        class_weights=WEIGHTS if weighted else None,
    )
    ours, ours_gradient = quick(jax.value_and_grad(lambda x: loss(x, None, labels).total))(logits)
    assert_close(ours, expected)
    assert_close(ours_gradient, gradient.reshape(logits.shape))
    assert np.abs(ours_gradient[labels == IGNORE]).max() == 0


def test_dice_is_that_of_optax_where_all_pixels_count():
    logits, _ = random_case(3)
    labels = np.random.default_rng(3).integers(0, CLASSES, logits.shape[:3], np.uint8)
    ours = quick(functools.partial(tversky_loss, alpha=0.3, beta=0.6))(logits, labels)
    theirs = quick(functools.partial(optax.losses.dice_loss, alpha=0.3, beta=0.6))
    assert_close(ours, theirs(logits, np.eye(CLASSES)[labels]))
    # The mean over images, also where pixels are averaged over the batch.
    options = {'terms': (('tversky', 2.0),), 'tversky': (0.3, 0.6), 'per_image': False}
    loss = quick(functools.partial(segmentation_loss, **options))(logits, None, labels)
    assert_close(loss.total, 2 * ours.mean())


def test_lovasz_of_a_hard_prediction_is_the_jaccard_loss():
    _, labels = random_case(4)
    labels[labels == IGNORE] = 0
    predicted = np.where(np.random.default_rng(5).random(labels.shape) < 0.3, 1, labels)
    losses = quick(lovasz_softmax)(100 * np.eye(CLASSES, dtype=np.float32)[predicted], labels)
    for loss, true, guess in zip(losses, labels, predicted, strict=True):
        ious = [
            ((true == k) & (guess == k)).sum() / ((true == k) | (guess == k)).sum() for k in set(true.flat)
        ]
        assert_close(loss, 1 - np.mean(ious))


def test_a_batch_without_valid_pixels_or_with_certain_ones():
    """0 with gradients of 0, and finite numbers where probabilities are 0 and 1."""
    labels = np.full((2, 4, 6), IGNORE, np.uint8)
    logits = 1e4 * normal(2, 4, 6, CLASSES)

    @quick
    def run(main, auxiliary, labels):
        loss = functools.partial(
            segmentation_loss, terms=EVERY, boundary_weight=2.0, label_smoothing=0.1, focal_gamma=0.5
        )
        return jax.value_and_grad(lambda *x: loss(*x, labels).total, argnums=(0, 1))(main, auxiliary)

    total, gradients = run(logits, logits[::-1], labels)
    assert total == 0 and all((gradient == 0).all() for gradient in gradients)
    labels = logits.argmax(-1).astype(np.uint8)
    labels[:, :2] = 0
    total, gradients = run(logits, logits[::-1], labels)
    assert np.isfinite(total) and all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize('per_image', [False, True])
def test_parts_and_devices_give_the_loss_of_the_batch(per_image):
    logits, labels = random_case(6, 8, 8, 6)
    labels[2] = IGNORE
    options = {'threshold': 0.3, 'min_kept': 20, 'class_weights': WEIGHTS, 'boundary_weight': 3.0}
    every = (*EVERY, ('cross_entropy', 0.7))

    @quick
    def run(main, auxiliary, labels, totals):
        loss = functools.partial(
            segmentation_loss, terms=every, per_image=per_image, label_smoothing=0.1, totals=totals, **options
        )
        return jax.value_and_grad(lambda x: loss(x, auxiliary, labels).total)(main)

    whole, gradient = run(logits, logits[::-1], labels, None)
    mesh = make_mesh(data=2, space=4) if per_image else make_mesh(data=8)
    split = jax.NamedSharding(mesh, jax.P('data', 'space'))
    with jax.set_mesh(mesh):
        shared, its_gradient = run(*jax.device_put((logits, logits[::-1], labels), split), None)
    assert_close(shared, whole)
    assert_close(its_gradient, gradient)
    if per_image:  # nothing but the number of images is shared; see test_accumulate.py
        return
    halves = [slice(4), slice(4, None)]
    p = [quick(true_probability)(logits[half], labels[half]) for half in halves]
    totals = quick(functools.partial(batch_totals, **options))([labels[half] for half in halves], p)
    parts = [run(logits[half], logits[::-1][half], labels[half], totals) for half in halves]
    assert_close(sum(total for total, _ in parts), whole)
    assert_close(np.concatenate([g for _, g in parts]), gradient)


def test_terms_are_parsed():
    assert terms.parse(' ohem:1, dice:0.5,lovasz ') == (('ohem', 1.0), ('dice', 0.5), ('lovasz', 1.0))
    assert terms.chosen('', True) == (('ohem', 1.0),) and terms.chosen('', False)[0][0] == 'cross_entropy'
    for text, message in (
        ('dise:1', "unknown term 'dise'; did you mean 'dice'"),
        ('dice:1,dice:2', 'names dice twice'),
        *((f'dice:{number}', 'the factor of dice must be') for number in ('', 'x', '0', '-1', 'nan', 'inf')),
    ):
        with pytest.raises(ConfigError, match=message):
            terms.parse(text)
    terms.check('dice,focal', True, 0.0, 2.0)
    logits, labels = random_case(7)
    with pytest.raises(ConfigError, match="unknown loss term 'dise'; did you mean 'dice'"):
        segmentation_loss(logits, None, labels, terms=(('dise', 1.0),))
    for text, smoothing, boundary, key in (
        ('dice', 0.1, 1.0, 'label_smoothing'),
        ('dice', 0.0, 2.0, 'boundary'),
    ):
        with pytest.raises(ConfigError, match=f'loss.{key}.*acts on'):
            terms.check(text, True, smoothing, boundary)
