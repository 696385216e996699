"""Shapes and dtypes in signatures: `conftest` has them checked in all tests, users pay nothing for them."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ann_jax.evaluation.metrics import confusion_matrix, scores
from ann_jax.inference.functions import multi_scale
from ann_jax.kernels.anchors import sample_anchors
from ann_jax.kernels.convolution import convolve
from ann_jax.kernels.resizing import linear_matrix, resize_bilinear
from ann_jax.models.blocks import attention_weights
from ann_jax.training.mining import kth_smallest
from ann_jax.training.pixel_losses import cross_entropy

checked = pytest.mark.skipif(not importlib.util.find_spec('beartype'), reason='needs beartype')
X = np.ones((2, 5, 6, 4), np.float32)
WRONG = {
    'rank': lambda: sample_anchors(X[0]),
    'dtype': lambda: sample_anchors(X.astype(int)),
    'kernel of other channels': lambda: convolve(X, np.ones((1, 1, 3, 8), np.float32)),
    'kernel that is not square': lambda: convolve(X, np.ones((3, 1, 4, 8), np.float32)),
    'keys of another batch': lambda: attention_weights(X, np.ones((3, 7, 4), np.float32)),
    'labels of another size': lambda: cross_entropy(X, np.zeros((2, 5, 5), np.uint8)),
    'labels that are floats': lambda: cross_entropy(X, np.zeros((2, 5, 6), np.float32)),
    'one k for two rows': lambda: kth_smallest(X, jnp.zeros(1, int)),
    'predictions of another size': lambda: confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 5),
    'matrix that is not square': lambda: scores(np.zeros((3, 4))),
    'images without a batch': lambda: multi_scale(lambda images: images, (1.0,))(X[0]),
}


@checked
@pytest.mark.parametrize('call', WRONG.values(), ids=WRONG)
@pytest.mark.parametrize('traced', [False, True])
def test_a_wrong_shape_is_refused(call, traced):
    with pytest.raises(Exception, match='Type-check error'):
        jax.eval_shape(call) if traced else call()


def test_arrays_of_numpy_and_tracers_are_taken():
    resize = lambda x: resize_bilinear(x, (9, 7), True)
    assert resize(X).shape == jax.jit(resize)(X).shape == (2, 9, 7, 4)
    assert jax.grad(lambda x: resize(x).sum())(X).shape == X.shape
    assert linear_matrix(5, 9, True).shape == (9, 5)


def test_users_are_not_checked():
    """Without the hook, functions are as they were written; what only tests need is not even imported."""
    code = (
        'import sys; from ann_jax.training import losses; from ann_jax.kernels import anchors;'
        'import ann_jax.modes.train; assert not {"beartype", "torch"} & set(sys.modules);'
        'assert not any(hasattr(f, "__wrapped__") for f in (losses.cross_entropy, anchors.sample_anchors))'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
