"""The backbone against a ResNet of torch's functional operators, published sizes and counts."""

import jax
import jax.numpy as jnp
import pytest
from reference import assert_close, nchw, nhwc, normal, oihw, quick, random_variables, shapes

from ann_jax.models.resnet import DEPTHS, ResNet
from ann_jax.training.state import count_parameters

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class TorchResNet:
    """A dilated ResNet by torch's functional operators, with the parameters of our module."""

    def __init__(
        self,
        depth,
        variables,
        *,
        strides,
        dilations,
        first_dilations,
        ceil_pool,
        avg_down=False,
        second_dilation=None,
    ):
        self.depth, self.variables, self.ceil_pool, self.avg_down = depth, variables, ceil_pool, avg_down
        self.second_dilation = second_dilation
        self.strides, self.dilations, self.first_dilations = strides, dilations, first_dilations

    def conv_bn(self, x, module, conv, bn, stride=1, dilation=1):
        import torch

        params, stats = (self.variables[name][module] for name in ('params', 'batch_stats'))
        weight = torch.tensor(oihw(params[conv]['kernel']))
        x = torch.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation)
        norm = stats[bn]['mean'], stats[bn]['var'], params[bn]['scale'], params[bn]['bias']
        return torch.nn.functional.batch_norm(x, *map(torch.tensor, norm))

    def block(self, x, name, stride, dilations):
        import torch

        if self.depth < 50:
            y = self.conv_bn(x, name, 'conv1', 'bn1', stride, dilations[0]).relu()
            y = self.conv_bn(y, name, 'conv2', 'bn2', 1, self.second_dilation or dilations[1])
        else:
            y = self.conv_bn(x, name, 'conv1', 'bn1').relu()
            y = self.conv_bn(y, name, 'conv2', 'bn2', stride, dilations[0]).relu()
            y = self.conv_bn(y, name, 'conv3', 'bn3')
        if 'downsample_0' in self.variables['params'][name]:
            if self.avg_down and stride == 2:
                pool = torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
                x, stride = pool(x), 1
            x = self.conv_bn(x, name, 'downsample_0', 'downsample_1', stride)
        return (x + y).relu()

    def __call__(self, image):
        import torch

        x = torch.tensor(nchw(image))
        for i in range(1, len(self.variables['params']['stem']) // 2 + 1):
            x = self.conv_bn(x, 'stem', f'conv{i}', f'bn{i}', stride=2 if i == 1 else 1).relu()
        x = torch.nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=self.ceil_pool)
        stages = []
        for stage, size in enumerate(BLOCKS[self.depth]):
            for i in range(size):
                dilation = self.dilations[stage][i] if stage == 3 else self.dilations[stage]
                first = self.first_dilations[stage] if i == 0 else dilation
                stride = self.strides[stage] if i == 0 else 1
                x = self.block(x, f'layer{stage + 1}_{i}', stride, (first, dilation))
            stages.append(nhwc(x))
        return stages


# The dilations are spelled out, not computed: one for each of the first three stages, one for each
# block of the last; then that of the first 3x3 convolution of each stage.
STANDARD = {'strides': (1, 2, 1, 1), 'dilations': (1, 1, 2, (4, 4, 4)), 'first_dilations': (1, 1, 1, 2)}
CASES = [
    (50, {}, STANDARD),
    (
        50,
        {'multi_grid': (1, 2, 4), 'contract_dilation': False, 'stem_widths': (4,), 'ceil_pool': False},
        {**STANDARD, 'dilations': (1, 1, 2, (4, 8, 16)), 'first_dilations': (1, 1, 2, 4)},
    ),
    (18, {'multi_grid': (1, 2, 4)}, {**STANDARD, 'dilations': (1, 1, 2, (4, 8))}),
    (
        18,
        {'multi_grid': (2, 4, 8)},
        {**STANDARD, 'dilations': (1, 1, 2, (8, 16)), 'first_dilations': (1, 1, 1, 4)},
    ),
    (
        18,
        {'output_stride': 4},
        {'strides': (1, 1, 1, 1), 'dilations': (1, 2, 4, (8, 8)), 'first_dilations': (1, 1, 2, 4)},
    ),
    (
        18,
        {'output_stride': 16, 'contract_dilation': False},
        {'strides': (1, 2, 2, 1), 'dilations': (1, 1, 1, (2, 2)), 'first_dilations': (1, 1, 1, 2)},
    ),
    (
        18,
        {'output_stride': 32},
        {'strides': (1, 2, 2, 2), 'dilations': (1, 1, 1, (1, 1)), 'first_dilations': (1, 1, 1, 1)},
    ),
    (50, {'avg_down': True, 'ceil_pool': False}, STANDARD),
    (
        18,
        {'multi_grid': (1, 2), 'dilate_second_conv': False},
        {**STANDARD, 'dilations': (1, 1, 2, (4, 8)), 'second_dilation': 1},
    ),
    (50, {'dilate_second_conv': False}, STANDARD),
    (
        18,
        {'avg_down': True, 'output_stride': 32},
        {'strides': (1, 2, 2, 2), 'dilations': (1, 1, 1, (1, 1)), 'first_dilations': (1, 1, 1, 1)},
    ),
]


@pytest.mark.parametrize(('depth', 'options', 'plan'), CASES)
def test_stages_equal_torch(depth, options, plan):
    pytest.importorskip('torch')
    model = ResNet(depth, 4, **{'stem_widths': (2, 2, 4), **options})
    # An even size on one side, so that rounding up in the pooling shows.
    image = normal(1, 64, 81, 3)
    variables = random_variables(model, 0, image, False)
    pooling = {'ceil_pool': options.get('ceil_pool', True), 'avg_down': options.get('avg_down', False)}
    reference = TorchResNet(depth, variables, **pooling, **plan)
    stages = quick(lambda variables: model.apply(variables, image, False))(variables)
    for ours, torchs in zip(stages, reference(image), strict=True):
        assert_close(ours.array, torchs)


@pytest.mark.parametrize(
    ('depth', 'output_stride'),
    [*((depth, 8) for depth in DEPTHS), (50, 4), (18, 16), (50, 16), (18, 32), (50, 32)],
)
def test_shapes(depth, output_stride):
    model = ResNet(depth, 4, (2, 2, 4), output_stride)
    channels = 16 if depth >= 50 else 4
    stages = shapes(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 65, 97, 3)), False)[0])
    assert tuple(stage.array for stage in stages) == tuple(
        (2, 64 // stride + 1, 96 // stride + 1, channels * 2**i)
        for i, stride in enumerate(min(n, output_stride) for n in (4, 8, 16, 32))
    )


@pytest.mark.parametrize(
    ('size', 'ceil_pool', 'expected'),
    [(1024, True, 129), (1024, False, 128), (769, True, 97), (769, False, 97)],
)
def test_sizes_of_the_papers_crops(size, ceil_pool, expected):
    model = ResNet(10, 4, (4,), ceil_pool=ceil_pool)
    stages = shapes(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, size, size, 3)), False)[0]
    )
    assert stages.stage5.array == (1, expected, expected, 32)


# torchvision's networks without their last layer.
COUNTS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


@pytest.mark.parametrize(('depth', 'count'), COUNTS.items())
def test_parameter_counts(depth, count):
    model = ResNet(depth, stem_widths=(64,))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)), False))
    assert count_parameters(variables['params']) == count


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'depth': 20}, '20.*10, 18, 34, 50, 101, 152'),
        ({'output_stride': 2}, r'output.stride.*\b2\b'),
        ({'stem_widths': (32, 64)}, r'one or three numbers, not \(32, 64\)'),
    ],
)
def test_unknown_options(options, message):
    model = ResNet(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3)), False))
