"""Output stride 4 and the decoder: whole networks against torch, on canvases, folded, and refused layouts."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from reference import assert_close, nchw, nhwc, normal, oihw, quick, random_variables

from ann_jax.models import resnet
from ann_jax.models.ann import ANN
from ann_jax.models.resnet import ResNet
from ann_jax.weights.recognize import recognize
from ann_jax.weights.torch_state import from_torch

WIDTHS = {'key_channels': 4, 'head_channels': 12, 'aux_channels': 8}
# Output stride -> stride, and dilations of the first block and of those after it, of layers 2 to 4.
LAYERS = {4: ((1, 1, 2), (1, 2, 4), (1, 4, 8)), 8: ((2, 1, 1), (1, 1, 2), (1, 2, 4))}


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
    """Main and auxiliary logits as they are classified, with the decoder that has these tensors, if any."""
    import torch
    from torch.nn import functional as F

    def conv_bn(x, name):
        weight, bias, scale, shift = (
            tensors['decoder', name, *leaf]
            for leaf in (('conv', 'kernel'), ('conv', 'bias'), ('bn', 'scale'), ('bn', 'bias'))
        )
        x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, None, None, scale, shift, training=True).relu()

    backbone, head = network.backbone, network.decode_head
    stage2 = backbone.layer1(backbone.pool(backbone.bn1(backbone.conv1(image)).relu()))
    stage4 = backbone.layer3(backbone.layer2(stage2))
    x = head.bottleneck(head.fusion(stage4, backbone.layer4(stage4)))
    x = head.context(x, x)
    if not tensors:
        return head.conv_seg(x), network.auxiliary_head(stage4)
    low = conv_bn(stage2, 'project')
    x = F.interpolate(x, low.shape[2:], mode='bilinear', align_corners=network.align_corners)
    x = conv_bn(conv_bn(torch.cat([x, low], 1), 'refine_0'), 'refine_1')
    main = F.conv2d(x, tensors['classifier', 'kernel'], tensors['classifier', 'bias'])
    return main, network.auxiliary_head(stage4)


@pytest.mark.parametrize(
    ('output_stride', 'decoder', 'size', 'align_corners'),
    [(4, 'none', (65, 42), True), (8, 'stage2', (65, 42), False), (4, 'stage2', (34, 49), True)],
)
def test_logits_and_gradients_equal_torchs(output_stride, decoder, size, align_corners, monkeypatch):
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    from ann_jax.benchmark import torch_ann

    monkeypatch.setitem(resnet.DEPTHS, 50, (True, (1, 1, 1, 2)))
    monkeypatch.setitem(torch_ann.PLANS, 50, (1, 1, 1, 2))
    torch.manual_seed(0)
    network = torch_network(output_stride, align_corners)
    model = ANN(
        5,
        ResNet(50, 4, (4,), output_stride),
        decoder=decoder,
        decoder_channels=10,
        align_corners=align_corners,
        dropout=0.0,
        **WIDTHS,
    )
    image = normal(2, *size, 3)
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    plain = model.clone(decoder='none')
    target = jax.eval_shape(lambda: plain.init(jax.random.key(0), image))
    conversion = from_torch(state, target, recognize(state).layout)
    variables = random_variables(model, 1, image)
    own = {
        path: x
        for path, x in traverse_util.flatten_dict(variables['params']).items()
        if decoder != 'none' and path[0] in ('decoder', 'classifier')
    }
    converted = traverse_util.flatten_dict(conversion.variables['params']) | own
    variables['params'] = traverse_util.unflatten_dict(converted)
    tensors = {
        path: torch.tensor(oihw(x) if x.ndim == 4 else x, requires_grad=True) for path, x in own.items()
    }

    logits = torch_logits(network, torch.tensor(nchw(image)), tensors)
    cotangents = [normal(*nhwc(x.detach()).shape, seed=i) for i, x in enumerate(logits)]
    sum((x * torch.tensor(nchw(y))).sum() for x, y in zip(logits, cotangents, strict=True)).backward()
    gradients = {path: x.grad for path, x in tensors.items()}
    parameters = dict(network.named_parameters())
    for key, (collection, *path) in conversion.used.items():
        if collection == 'params' and tuple(path) not in own:
            gradients[tuple(path)] = parameters[key].grad

    def run(params):
        changed = variables | {'params': params}
        logits, _ = model.apply(changed, image, train=True, mutable=['batch_stats'])
        return sum((x * y).sum() for x, y in zip(logits, cotangents, strict=True)), logits

    ours, our_logits = quick(jax.grad(run, has_aux=True))(variables['params'])
    for x, reference in zip(our_logits, logits, strict=True):
        assert_close(x, nhwc(reference.detach()))
    ours = traverse_util.flatten_dict(ours)
    assert ours.keys() == gradients.keys()
    largest = max(float(x.abs().max()) for x in gradients.values())
    for path, x in gradients.items():
        reference = x.permute(2, 3, 1, 0) if x.ndim == 4 else x
        # Beside the largest; if an activation lies within rounding of ReLU's kink, they differ by more.
        np.testing.assert_allclose(ours[path], reference, rtol=0, atol=1e-3 * largest, err_msg=str(path))
