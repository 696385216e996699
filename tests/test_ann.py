"""The whole network against mmsegmentation's, its variants, and its first values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import (
    BOUND,
    assert_close,
    below,
    error,
    golden,
    nhwc,
    normal,
    quick,
    random_variables,
    shapes,
)

from ann_jax.kernels.resizing import resize_bilinear
from ann_jax.models.ann import ANN, VARIANTS
from ann_jax.models.initializers import initial_variables
from ann_jax.models.resnet import ResNet
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import TrainState, count_parameters
from ann_jax.training.step import make_train_step
from ann_jax.weights.recognize import recognize
from ann_jax.weights.torch_state import from_torch

# mmsegmentation's thin networks: golden file -> backbone and align_corners.
NETWORKS = {
    'mmseg_ann_thin_v1c_r50': (ResNet(50, 4, (2, 2, 4), ceil_pool=False), False),
    'mmseg_ann_thin_r101': (ResNet(101, 4, (4,), ceil_pool=False), True),
}


def evaluate(model, variables, image):
    return quick(model.apply)(variables, image)


def mmseg_network(name):
    """Model, variables, golden arrays and align_corners."""
    backbone, align_corners = NETWORKS[name]
    model = ANN(
        19,
        backbone,
        key_channels=16,
        head_channels=32,
        aux_channels=16,
        conv_bias=False,
        dropout=0.0,
        align_corners=align_corners,
    )
    arrays = golden(name)
    target = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3))))
    state = below(arrays, 'state/')
    variables = from_torch(state, target, recognize(state).layout).variables
    return model, variables, arrays, align_corners


@pytest.mark.parametrize('name', NETWORKS)
def test_network_equals_mmseg(name):
    model, variables, arrays, align_corners = mmseg_network(name)
    image = nhwc(arrays['input'])
    captures = lambda module, _: module.name == 'backbone'
    apply = functools.partial(model.apply, capture_intermediates=captures)
    logits, captured = quick(apply)(variables, image)
    stages = captured['intermediates']['backbone']['__call__'][0]
    assert_close(stages.stage4.array, nhwc(arrays['stage4']))
    assert_close(stages.stage5.array, nhwc(arrays['stage5']))
    assert_close(logits.main, nhwc(arrays['decode_logits']))
    assert_close(logits.auxiliary, nhwc(arrays['aux_logits']))
    full = quick(functools.partial(model.apply, full_size=True))(variables, image).main
    assert_close(full[:1, ..., :4], nhwc(arrays['full_logits']))


def last_digits(params, seed):
    """Every number a float32 up, down, or as it was."""
    rng = np.random.default_rng(seed)
    move = lambda x: np.nextafter(x, x + rng.integers(-1, 2, x.shape).astype(np.float32))
    return jax.tree.map(lambda x: move(np.asarray(x)), params)


def test_training_equals_mmseg():
    model, variables, arrays, align_corners = mmseg_network('mmseg_ann_thin_v1c_r50')
    tx = sgd(poly_schedule(0.05, 8), weight_decay=5e-4)
    step = quick(
        make_train_step(
            model,
            tx,
            loss=functools.partial(segmentation_loss, ohem=False, per_image=False),
            normalize=lambda image: image,
            seed=0,
        )
    )
    batch = {'image': nhwc(arrays['train/input']), 'label': arrays['train/labels']}
    # An activation lies within rounding of ReLU's kink, where the gradient's norm jumps by 3e-5. On which
    # side depends on the processor; weights moved by their last digits reach that of the reference.
    for seed in range(16):
        state = TrainState(jnp.zeros((), jnp.int32), opt_state=tx.init(variables['params']), **variables)
        if seed:
            state = state.replace(params=last_digits(state.params, seed))
        state, metrics = step(state, batch)
        assert_close(metrics['gradient_norm'], arrays['train/grad_norm_step0'], 5e-5)
        if error(metrics['gradient_norm'], arrays['train/grad_norm_step0']) <= BOUND:
            break
    else:
        pytest.fail('no draw has the gradient of the reference')
    losses = [metrics['loss']]
    for _ in range(7):
        state, metrics = step(state, batch)
        losses.append(metrics['loss'])
    assert_close(losses[:4], arrays['train/losses'][:4])
    # Steps amplify rounding: a change of the first weights by their last digit moves the last losses
    # by 2e-5 and the logits after them by 4e-3.
    assert_close(losses, arrays['train/losses'], 1e-4)
    logits = evaluate(model, state.variables, batch['image'][:1]).main
    full = resize_bilinear(logits, batch['image'].shape[1:3], align_corners)
    assert_close(full[..., :4], nhwc(arrays['train/final_eval_logits']), 1e-2)


def test_exact_arithmetic_ends_elsewhere():
    """Why the bound above is 1e-2: mmsegmentation's own final logits are 3.7e-3 from those of float64."""
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    from ann_jax.benchmark.torch_ann import TorchANN

    options = {
        'width': 4,
        'stem_widths': (2, 2, 4),
        'key_channels': 16,
        'head_channels': 32,
        'aux_channels': 16,
    }
    network = TorchANN(depth=50, ceil_pool=False, align_corners=False, conv_bias=False, **options).double()
    arrays = golden('mmseg_ann_thin_v1c_r50')
    network.load_state_dict({key: torch.tensor(value) for key, value in below(arrays, 'state/').items()})
    image, label = torch.tensor(arrays['train/input']).double(), torch.tensor(arrays['train/labels']).long()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    losses = []
    for number in range(8):
        optimizer.param_groups[0]['lr'] = 0.05 * (1 - number / 8) ** 0.9
        entropies = [
            torch.nn.functional.cross_entropy(logits, label, ignore_index=255) for logits in network(image)
        ]
        loss = entropies[0] + 0.4 * entropies[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = network.eval()(image[:1])[:, :4]
    assert_close(arrays['train/losses'], losses)
    assert 1e-3 < error(arrays['train/final_eval_logits'], logits) < 1e-2


def test_parameter_count_of_the_default_network():
    model = ANN(19, ResNet())
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3))))['params']
    inference = {name: tree for name, tree in params.items() if not name.startswith('aux_')}
    assert len(params) - len(inference) == 2
    assert round(count_parameters(inference) / 1e6, 2) == 62.96


def small(variant='full', dtype=jnp.float32, **options):
    options = {'key_channels': 4, 'head_channels': 12, 'aux_channels': 8, 'sizes': (1, 3), **options}
    return ANN(5, ResNet(10, 8, (4, 4, 8), dtype=dtype), variant, dtype=dtype, **options)


# Children besides the bottleneck, the classifier and the auxiliary head.
CHILDREN = {
    'baseline': set(),
    'nb': {'context'},
    'apnb': {'context'},
    'common': {'fusion'},
    'fnb': {'fusion'},
}
CHILDREN |= {'afnb': {'fusion'}} | dict.fromkeys(('common_nb', 'fnb_nb', 'full'), {'fusion', 'context'})


@pytest.mark.parametrize('fuse_stages', [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_runs(variant, fuse_stages):
    model = small(variant, fuse_stages=fuse_stages)
    run = lambda image: model.init_with_output(jax.random.key(0), image)
    logits, variables = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32))
    assert logits.main.shape == logits.auxiliary.shape == (2, 9, 13, 5)
    common = {'backbone', 'bottleneck', 'classifier', 'aux_bottleneck', 'aux_classifier'}
    assert set(variables['params']) == common | CHILDREN[variant]
    if 'fusion' in CHILDREN[variant]:
        low_maps = [name for name in variables['params']['fusion'] if name != 'project']
        assert len(low_maps) == len(fuse_stages)


def test_standard_blocks_are_the_asymmetric_ones_without_sampling():
    image = normal(1, 65, 49, 3)
    variables = random_variables(small('fnb_nb'), 0, image)
    standard = evaluate(small('fnb_nb'), variables, image)
    assert_close(evaluate(small('full', sampling='all'), variables, image).main, standard.main)
    assert error(evaluate(small('full'), variables, image).main, standard.main) > 1e-3


def test_bfloat16_gives_float32_logits_close_to_the_exact_ones():
    image = normal(1, 65, 49, 3)
    model = small(dtype=jnp.bfloat16, fuse_stages=(2, 3, 4))
    variables = random_variables(model, 0, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits = evaluate(model, variables, image)
    exact = evaluate(small(fuse_stages=(2, 3, 4)), variables, image)
    for ours, reference in zip(logits, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert 1e-5 < error(ours, reference) < 5e-2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'variant': 'ann'}, "unknown variant 'ann'.*known: baseline, .*full"),
        ({'fuse_stages': (4, 5)}, r'fuse_stages must be some of 2, 3 and 4, not \(4, 5\)'),
        ({'share': 'all'}, "unknown share 'all'"),
        ({'sampling': 'median'}, "unknown sampling 'median'"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        shapes(lambda: small(**options).init(jax.random.key(0), jnp.zeros((1, 33, 33, 3))))


def test_initial_variables_have_the_declared_distributions():
    model = small(fuse_stages=(3, 4))
    ours = traverse_util.flatten_dict(initial_variables(model, 0))
    declared = quick(lambda: model.init(jax.random.key(0, impl='rbg'), jnp.zeros((1, 33, 33, 3))))()
    declared = traverse_util.flatten_dict(declared)
    assert ours.keys() == declared.keys()
    for path, reference in declared.items():
        leaf, reference = np.asarray(ours[path]), np.asarray(reference)
        assert (leaf.shape, leaf.dtype) == (reference.shape, reference.dtype), path
        if reference.std() == 0:
            np.testing.assert_array_equal(leaf, reference, str(path))
            continue
        # Five standard errors of a difference between two samples of this size.
        bound = 5 / np.sqrt(leaf.size)
        assert abs(leaf.std() / reference.std() - 1) < bound, path
        assert abs(leaf.mean() - reference.mean()) < 2**0.5 * bound * reference.std(), path


def test_initial_variables_depend_on_the_seed_alone():
    first, again, other = (initial_variables(small(), seed)['params'] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = lambda params: params['backbone']['stem']['conv1']['kernel']
    assert error(kernel(other), kernel(first)) > 0.1
