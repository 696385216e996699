"""Forms are chosen when a program is lowered: what each platform gets, from a process that has CPUs alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir
from reference import assert_close, normal, quick, random_variables

from ann_jax.kernels import forms
from ann_jax.kernels.convolution import convolve
from ann_jax.kernels.forms import by_platform, computed_once, with_forms_of
from ann_jax.models.ann import ANN
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import fold
from ann_jax.models.resnet import ResNet
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import create_state
from ann_jax.training.step import make_train_step

PLATFORMS = 'cpu', 'cuda', 'rocm', 'tpu'


def network(**options):
    # Wide enough for the forms of CPUs: Winograd's products from 128 channels.
    return ANN(3, ResNet(10, 32, (8,)), key_channels=8, head_channels=128, aux_channels=8, **options)


@functools.cache
def inference():
    """The folded network as a function of an image, of any size."""
    model = network()
    variables = fold(model, random_variables(model, 0, normal(1, 33, 33, 3)))
    folded = model.clone(folded=True)
    return lambda image, size=None: folded.apply(variables, FeatureMap.of(image, size)).main.array


def step():
    """A step of training, and shapes of its arguments."""
    model, tx = network(), sgd(poly_schedule(0.1, 10))
    loss = functools.partial(segmentation_loss, min_kept=100)
    train = make_train_step(model, tx, loss=loss, normalize=lambda x: x / 255.0, seed=0)
    variables = random_variables(model, 0, normal(1, 33, 33, 3))
    batch = {'image': np.zeros((2, 65, 65, 3), np.uint8), 'label': np.zeros((2, 65, 65), np.uint8)}
    return train, jax.eval_shape(lambda: create_state(variables, tx)), batch


def lowered(function, platform, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def count(text):
    names = 'optimization_barrier', 'dot_general', 'convolution', 'select_and_scatter', 'gather'
    return {name: len(re.findall(rf'stablehlo\.{name}\b', text)) for name in names}


def test_inference_on_accelerators_has_nothing_of_cpus():
    image = normal(1, 129, 129, 3)
    found = {platform: count(lowered(inference(), platform, image)) for platform in PLATFORMS}
    assert found['cuda'] == found['rocm']
    # cuDNN adds bias, shortcut and ReLU to 1x1 convolutions as well.
    assert found['cuda']['convolution'] > found['tpu']['convolution'] + 5
    products = lambda counted: counted['dot_general'] + counted['convolution']
    assert products(found['cuda']) == products(found['tpu'])
    assert found['tpu']['optimization_barrier'] == found['cuda']['optimization_barrier'] == 0
    # Each of Winograd's convolutions is 16 products.
    assert found['cpu']['optimization_barrier'] > 20
    assert found['cpu']['dot_general'] >= found['tpu']['dot_general'] + 3 * 16


def test_a_step_is_lowered_for_devices_that_are_not_there():
    train, *args = step()
    found = {platform: lowered(train, platform, *args) for platform in PLATFORMS}
    # TPUs have operations for the max pooling, and gathers are slow there.
    operations = ('optimization_barrier', 'select_and_scatter', 'gather')
    barriers, windows, gathers = ({key: count(found[key])[name] for key in PLATFORMS} for name in operations)
    assert barriers['tpu'] == 0 and windows['tpu'] == 1 and windows['cpu'] == windows['cuda'] == 0
    assert gathers['tpu'] < gathers['cuda'] == gathers['cpu']
    # GPUs read the input of each normalisation twice in its gradient.
    assert 2 < barriers['cuda'] == barriers['rocm'] < 100 < barriers['cpu']
    # The gradient of a dilated kernel by XLA alone has strides, see `convolution`.
    strides = r'stride = \[(?:2|4), (?:2|4)\].{,80}rhs_dilate = \[1, 1\]'
    assert len(re.findall(strides, found['tpu'])) > len(re.findall(strides, found['cuda']))


def operations(operation, inside=False):
    """(name, whether it lies in a case) of an operation and all in it."""
    yield operation.operation.name, inside
    inside = inside or operation.operation.name == 'stablehlo.case'
    for region in operation.regions:
        for block in region:
            for child in block:
                yield from operations(child, inside)


@pytest.mark.parametrize('symbolic', [False, True])
def test_a_program_for_three_platforms_holds_each_ones_form(symbolic):
    function = inference()
    arguments = [jax.ShapeDtypeStruct((1, 129, 129, 3), jnp.float32)]
    if symbolic:
        shape = jax.export.symbolic_shape('b, 16*h, 16*w, 3')
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((shape[0], 2), jnp.int32)]
    program = jax.export.export(jax.jit(function), platforms=('cpu', 'cuda', 'tpu'))(*arguments)
    with mlir.make_ir_context():
        found = list(operations(mlir.ir.Module.parse(program.mlir_module()).operation))
    assert ('stablehlo.optimization_barrier', True) in found
    assert ('stablehlo.optimization_barrier', False) not in found
    products = sum(name == 'stablehlo.dot_general' for name, _ in found)
    if not symbolic:  # Winograd's tiles take sizes that are known
        assert products > 3 * 16
        image = normal(1, 129, 129, 3)
        assert_close(program.call(image), quick(function)(image))


def test_forms_are_picked_for_exporters():
    function = lambda x: by_platform(x, cpu=lambda x: x + 1, gpu=lambda x: x + 2, default=lambda x: x + 3)
    assert [float(jax.jit(function)(0.0))] == [1]
    for platform, expected in (('cpu', 1), ('cuda', 2), ('rocm', 2), ('tpu', 3), ('any', 3)):
        picked = with_forms_of(platform, function)
        assert float(picked(0.0)) == expected
        assert 'platform_index' not in str(jax.make_jaxpr(picked)(0.0))
    with pytest.raises(ValueError, match="'gpu': must be one of cpu, cuda"):
        with_forms_of('gpu', function)


def test_what_is_picked_is_not_kept_for_later():
    """jax keeps traces: those of a pick must not serve what is traced without one, nor the reverse."""
    x, kernel = normal(1, 32, 32, 128), normal(3, 3, 128, 128, seed=1)
    gradient = jax.grad(lambda x, k: (convolve(x, k) ** 2).sum(), (0, 1))
    for pick in (None, 'any', None, 'any'):
        function = with_forms_of(pick, gradient) if pick else gradient
        text = jax.jit(function).lower(x, kernel).as_text()
        assert (count(text)['optimization_barrier'] > 0) == (pick is None)


def test_computed_once_is_the_identity():
    x = normal(3, 4)
    y, pull = jax.vjp(computed_once, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pull(2 * x)[0], 2 * x)
    np.testing.assert_array_equal(jax.vmap(computed_once)(x), x)


def test_a_form_of_the_same_shapes_is_traced_once():
    traced = []

    def form(dilation, x):
        traced.append(dilation)
        return x * dilation

    use = lambda x, d: by_platform(x, cpu=forms.with_static(form, d), default=jnp.negative)
    jax.jit(lambda x: use(use(use(x, 2), 2), 3))(normal(3))
    assert traced == [2, 3]
