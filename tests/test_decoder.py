"""Output stride 4, and the decoder of DeepLabv3+, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from reference import assert_close, nchw, nhwc, normal, oihw, quick, random_variables, shapes

from ann_jax.errors import DataError
from ann_jax.models import resnet
from ann_jax.models.ann import ANN
from ann_jax.models.decoder import Decoder
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.resnet import ResNet
from ann_jax.weights.recognize import recognize
from ann_jax.weights.torch_state import from_torch, to_torch

WIDTHS = {'key_channels': 4, 'head_channels': 12, 'aux_channels': 8}
# Output stride -> stride, and dilations of the first block and of those after it, of layers 2 to 4.
LAYERS = {4: ((1, 1, 2), (1, 2, 4), (1, 4, 8)), 8: ((2, 1, 1), (1, 1, 2), (1, 2, 4))}


def torch_tensors(params):
    """Parameters by path, as torch's, with gradients."""
    import torch

    flat = traverse_util.flatten_dict(params)
    return {path: torch.tensor(oihw(x) if x.ndim == 4 else x, requires_grad=True) for path, x in flat.items()}


def torch_decoder(low, high, tensors, align_corners):
    """In training mode, from torch's functional operators."""
    import torch
    from torch.nn import functional as F

    def conv_bn(x, name):
        weight, bias = (tensors[name, 'conv', leaf] for leaf in ('kernel', 'bias'))
        x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        scale, shift = (tensors[name, 'bn', leaf] for leaf in ('scale', 'bias'))
        return F.batch_norm(x, None, None, scale, shift, training=True).relu()

    low = conv_bn(low, 'project')
    high = F.interpolate(high, low.shape[2:], mode='bilinear', align_corners=align_corners)
    return conv_bn(conv_bn(torch.cat([high, low], 1), 'refine_0'), 'refine_1')


def torch_network(output_stride, align_corners):
    """mmsegmentation's network, with the strides and dilations of `LAYERS`."""
    from ann_jax.benchmark.torch_ann import TorchANN

    network = TorchANN(5, 50, 4, (4,), align_corners=align_corners, **WIDTHS)
    for i, (stride, *dilations) in enumerate(LAYERS[output_stride], 2):
        for j, block in enumerate(getattr(network.backbone, f'layer{i}')):
            block.conv2.stride = (stride if j == 0 else 1,) * 2
            block.conv2.dilation = block.conv2.padding = (dilations[min(j, 1)],) * 2
            if block.downsample is not None:
                block.downsample[0].stride = block.conv2.stride
    return network


def torch_logits(network, image, tensors):
    """Main and auxiliary logits in training mode, as they are classified.

    Args:
        tensors: of a decoder, and of the classifier after it; {} for none.
    """
    from torch.nn import functional as F

    backbone, head = network.backbone, network.decode_head
    stage2 = backbone.layer1(backbone.pool(backbone.bn1(backbone.conv1(image)).relu()))
    stage4 = backbone.layer3(backbone.layer2(stage2))
    x = head.bottleneck(head.fusion(stage4, backbone.layer4(stage4)))
    x, auxiliary = head.context(x, x), network.auxiliary_head(stage4)
    if not tensors:
        return head.conv_seg(x), auxiliary
    decoder = {path[1:]: x for path, x in tensors.items()}
    x = torch_decoder(stage2, x, decoder, network.align_corners)
    return F.conv2d(x, tensors['classifier', 'kernel'], tensors['classifier', 'bias']), auxiliary


def same_networks(output_stride, decoder, align_corners, monkeypatch):
    """Ours with its variables, torch's, and its parameters by our paths."""
    import torch

    from ann_jax.benchmark import torch_ann

    monkeypatch.setitem(resnet.DEPTHS, 50, (True, (1, 1, 1, 2)))
    monkeypatch.setitem(torch_ann.PLANS, 50, (1, 1, 1, 2))
    torch.manual_seed(0)
    network = torch_network(output_stride, align_corners)
    backbone = ResNet(50, 4, (4,), output_stride)
    settings = {'align_corners': align_corners, 'dropout': 0.0, **WIDTHS}
    model = ANN(5, backbone, decoder=decoder, decoder_channels=10, **settings)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    target = jax.eval_shape(lambda: ANN(5, backbone, **settings).init(jax.random.key(0), IMAGE))
    conversion = from_torch(state, target, recognize(state).layout)
    variables = random_variables(model, 1, IMAGE)
    own = {name: variables['params'][name] for name in ('decoder', 'classifier') if decoder != 'none'}
    variables['params'] = conversion.variables['params'] | own
    tensors = torch_tensors(own)
    found = dict(network.named_parameters())
    used = {path[1:]: found[key] for key, path in conversion.used.items() if path[0] == 'params'}
    return model, variables, network, tensors, used | tensors


IMAGE = jnp.zeros((1, 33, 33, 3))


def compare_gradients(ours, tensors):
    """Beside the largest; if an activation lies within rounding of ReLU's kink, they differ by some 1e-4."""
    ours = traverse_util.flatten_dict(ours)
    assert ours.keys() == tensors.keys()
    largest = max(float(x.grad.abs().max()) for x in tensors.values())
    for path, x in tensors.items():
        expected = x.grad.permute(2, 3, 1, 0) if x.ndim == 4 else x.grad
        np.testing.assert_allclose(ours[path], expected, rtol=0, atol=1e-3 * largest, err_msg=str(path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('output_stride', 'decoder', 'size', 'align_corners'),
    [(4, 'none', (65, 42), True), (8, 'stage2', (65, 42), False), (4, 'stage2', (34, 49), True)],
)
def test_logits_and_gradients_of_a_network_equal_torchs(
    output_stride, decoder, size, align_corners, monkeypatch
):
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    model, variables, network, tensors, used = same_networks(
        output_stride, decoder, align_corners, monkeypatch
    )
    image = normal(2, *size, 3)
    logits = torch_logits(network, torch.tensor(nchw(image)), tensors)
    cotangents = [normal(*nhwc(x.detach()).shape, seed=i) for i, x in enumerate(logits)]
    sum((x * torch.tensor(nchw(y))).sum() for x, y in zip(logits, cotangents, strict=True)).backward()

    def run(params):
        changed = variables | {'params': params}
        logits, _ = model.apply(changed, image, train=True, mutable=['batch_stats'])
        return sum((x * y).sum() for x, y in zip(logits, cotangents, strict=True)), logits

    ours, our_logits = quick(jax.grad(run, has_aux=True))(variables['params'])
    for x, expected in zip(our_logits, logits, strict=True):
        assert_close(x, nhwc(expected.detach()))
    compare_gradients(ours, used)


def test_the_decoder_and_its_gradients_equal_torchs():
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    low, high, cotangent = normal(2, 9, 12, 6), normal(2, 5, 6, 7), normal(2, 9, 12, 10)
    model = Decoder(10)
    variables = random_variables(model, 0, *map(FeatureMap.of, (low, high)), False)
    tensors = torch_tensors(variables['params'])
    inputs = [torch.tensor(nchw(x), requires_grad=True) for x in (low, high)]
    expected = torch_decoder(*inputs, tensors, True)
    (expected * torch.tensor(nchw(cotangent))).sum().backward()

    def run(params, *maps):
        given = variables | {'params': params}
        y, _ = model.apply(given, *map(FeatureMap.of, maps), True, mutable=['batch_stats'])
        return (y.array * cotangent).sum(), y.array

    differentiate = jax.grad(run, (0, 1, 2), has_aux=True)
    (of_params, *of_inputs), y = quick(differentiate)(variables['params'], low, high)
    assert_close(y, nhwc(expected.detach()))
    compare_gradients(of_params, tensors)
    for x, reference in zip(of_inputs, inputs, strict=True):
        assert_close(x, nhwc(reference.grad), 1e-3)


def test_a_map_of_the_same_size_is_not_resized():
    low, high = (FeatureMap.of(normal(1, 4, 5, n)) for n in (6, 7))
    module = Decoder(10)
    variables = random_variables(module, 0, low, high, False)
    jaxpr = jax.make_jaxpr(lambda: module.apply(variables, low, high, False).array)()
    assert 'gather' not in str(jaxpr)


def test_the_decoder_of_a_network_has_no_place_in_a_layout():
    model = ANN(5, ResNet(10, 8, (8,)), decoder='stage2', **WIDTHS)
    params = shapes(lambda: model.init(jax.random.key(0), IMAGE))['params']
    assert params['decoder']['project']['conv']['kernel'] == (1, 1, 8, 48)  # of Stage2
    assert params['decoder']['refine_0']['conv']['kernel'] == (3, 3, 12 + 48, 256)
    assert params['classifier']['kernel'] == (1, 1, 256, 5)
    with pytest.raises(DataError, match=r'no layout has a place for model.decoder=stage2: --mode=export'):
        to_torch({}, 'mmsegmentation', {'decoder': 'stage2'})
