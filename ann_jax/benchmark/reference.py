"""Inference and training step against PyTorch, with the same weights and input. Needs `pip install -e
'.[convert]'`.

The reference is mmsegmentation's ANN if it is installed, otherwise `torch_ann.TorchANN`; channels_last, eager
and, with `benchmark.reference_compile`, compiled.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from ann_jax import build
from ann_jax.benchmark.attention import parse_sizes
from ann_jax.benchmark.contest import (
    Contestant,
    Row,
    compiled,
    contest,
    count_flops,
    on_cpu,
    on_one_device,
)
from ann_jax.benchmark.torch_ann import PLANS, TorchANN
from ann_jax.errors import ConfigError, unknown
from ann_jax.models.fold import fold
from ann_jax.models.initializers import shape_variables
from ann_jax.parallel.arrays import put_weights
from ann_jax.parallel.mesh import make_mesh
from ann_jax.training.losses import segmentation_loss
from ann_jax.training.optimizers import sgd
from ann_jax.training.schedules import poly_schedule
from ann_jax.training.state import create_state
from ann_jax.training.step import make_train_step
from ann_jax.weights.inputs import IMAGENET_RGB
from ann_jax.weights.recognize import recognize
from ann_jax.weights.torch_state import from_torch

Network: Callable[..., Any]  # widths -> a torch module
try:
    from ann_jax.benchmark.mmseg_ann import MMSegANN

    Network, REFERENCE = MMSegANN, 'mmsegmentation'
except (ImportError, AssertionError):  # it asserts versions of its dependencies
    Network = functools.partial(TorchANN, ceil_pool=False, align_corners=False, conv_bias=False)
    REFERENCE = 'torch'
CLASSES = 19


def reference(config: ConfigDict, rates: Sequence[Row]) -> list[Row]:
    """Inference at `benchmark.reference_sizes`, and training steps at `benchmark.reference_step_sizes`.

    'memory (MB)' is that of the weights, plus the growth of the process, or of memory in use on the device,
    during a run.

    Raises:
        ConfigError: the reference is another network, or a size is malformed.
    """
    c = config.benchmark
    rows = []
    for kind, key, contestants in (
        ('inference', 'reference_sizes', _inference),
        ('training step', 'reference_step_sizes', _step),
    ):
        for size in parse_sizes(c[key], f'benchmark.{key}') if c[key] else ():
            found, agreement, weights = contestants(config, size)
            for row, megabytes in zip(contest(found, c.rounds, rates), weights, strict=True):
                row['contestant'] += f', {kind} {size[0]}x{size[1]}'
                if row['growth (MB)'] is not None:
                    row['memory (MB)'] = megabytes + row['growth (MB)']
                rows.append(row | {'difference': agreement})
    return rows


def place() -> str:
    """The device of PyTorch that matches ours."""
    return 'cuda' if torch.cuda.is_available() and not on_cpu() else 'cpu'


def networks(config: ConfigDict, train: bool = False) -> tuple[Any, ConfigDict, dict[str, Any]]:
    """The config's torch network with random weights; the config and variables of ours with these weights.

    Raises:
        ConfigError: the reference is another network.
    """
    if config.model.depth not in PLANS:
        raise ConfigError(unknown('model.depth of the reference', config.model.depth, PLANS))
    for key, value in (('output_stride', 8), ('decoder', 'none')):
        if config.model[key] != value:
            raise ConfigError(
                f'model.{key}={config.model[key]}: the reference is built with {value}, take that or leave '
                'reference out of benchmark.sections'
            )
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    same = 'depth', 'width', 'stem_widths', 'key_channels', 'head_channels', 'aux_channels'
    network = Network(**{key: config.model[key] for key in same})
    network = (network.train() if train else network.eval()).to(place(), memory_format=torch.channels_last)
    state = {key: value.cpu().numpy() for key, value in network.state_dict().items()}
    found = recognize(state)
    ours = config.copy_and_resolve_references()
    with ours.unlocked():
        ours.model.update({**found.model, 'dropout': 0.0})
    shapes = shape_variables(build.model(ours, CLASSES))
    return network, ours, from_torch(state, shapes, found.layout).variables


def _images(batch, size):
    """The same random images for both: (B, H, W, 3), and channels_last (B, 3, H, W)."""
    image = np.random.default_rng(0).standard_normal((batch, *size, 3), np.float32)
    return jnp.asarray(image), torch.tensor(image).permute(0, 3, 1, 2).to(place())


def segment(network: torch.nn.Module, images: np.ndarray, batch: int, config: ConfigDict) -> list[np.ndarray]:
    """(B, H, W, 3) uint8 images -> (H, W) uint8 class ids of each, `batch` images at a time."""
    mean, std = (torch.tensor(IMAGENET_RGB[key], device=place())[:, None, None] for key in ('mean', 'std'))
    ids: list[np.ndarray] = []
    with torch.inference_mode(), _autocast(config):
        for start in range(0, len(images), batch):
            levels = torch.tensor(images[start : start + batch]).to(place()).permute(0, 3, 1, 2)
            ids += [*network((levels - mean) / std).argmax(1).to(torch.uint8).cpu().numpy()]
    return ids


def _compiled(network):
    torch._inductor.config.freezing = not network.training
    return torch.compile(network)


def _megabytes(arrays):
    return sum(x.nbytes for x in arrays) / 1e6


def contestant(run: Callable[[], Any]) -> Contestant:
    """A PyTorch contestant; on GPUs, PyTorch counts its own memory."""

    def growth():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    return Contestant(run, growth=growth if place() == 'cuda' else None, wait=lambda _: _wait())


def _autocast(config):
    return torch.autocast(place(), torch.bfloat16, enabled=config.model.dtype == 'bfloat16')


def _wait():
    if place() == 'cuda':
        torch.cuda.synchronize()


def _inference(config, size):
    """Contestants that compute logits of the input's size, the largest difference, and MB of weights."""
    network, ours, variables = networks(config)
    model: Any = build.model(ours, CLASSES)
    image, tensor = _images(1, size)
    if config.model.dtype == 'bfloat16':  # faster than autocast, which rounds the weights each time
        network, tensor = network.to(torch.bfloat16), tensor.to(torch.bfloat16)
    folded = put_weights(fold(model, variables), make_mesh(jax.local_devices()[:1]))
    model = model.clone(folded=True)

    def forward(variables, image):
        logits: Any = model.apply(variables, image, full_size=True)
        return logits.main

    def run(network):
        with torch.inference_mode():
            return network(tensor)

    contestants = {f'{REFERENCE} eager': contestant(lambda: run(network))}
    if config.benchmark.reference_compile:
        faster = _compiled(network)
        contestants[f'{REFERENCE} compiled'] = contestant(lambda: run(faster))
    contestants['ann_jax'] = compiled(forward, folded, image)
    expected = run(network).float().permute(0, 2, 3, 1).cpu().numpy()
    difference = np.abs(np.asarray(contestants['ann_jax'].run()) - expected).max() / np.abs(expected).max()
    theirs = _megabytes(network.backbone.parameters()) + _megabytes(network.decode_head.parameters())
    return (
        contestants,
        float(difference),
        [theirs] * (len(contestants) - 1) + [_megabytes(jax.tree.leaves(folded))],
    )


def _step(config, size):
    """Contestants that take one SGD step without OHEM, the difference of their losses, and MB of weights."""
    network, ours, variables = networks(config, train=True)
    model = build.model(ours, CLASSES)
    batch = config.benchmark.reference_batch
    image, tensor = _images(batch, size)
    label = np.random.default_rng(1).integers(0, CLASSES, image.shape[:3])
    tx = sgd(poly_schedule(0.0, 10**6))
    step = make_train_step(
        model,
        tx,
        loss=functools.partial(segmentation_loss, ohem=False, per_image=False),
        normalize=lambda image: image,
        seed=0,
    )
    state = [jax.device_put(create_state(variables, tx))]
    arrays = {'image': image, 'label': jnp.asarray(label, jnp.uint8)}
    program = on_one_device(step, donate_argnums=0).lower(state[0], arrays).compile()
    flops = count_flops(step, program, state[0], arrays)

    def run_ours():
        state[0], metrics = program(state[0], arrays)
        return metrics['loss']

    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    target = torch.tensor(label).to(place())

    def run(network):
        entropy = torch.nn.functional.cross_entropy
        with _autocast(config):
            main, auxiliary = network(tensor)
        loss = entropy(main.float(), target) + 0.4 * entropy(auxiliary.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    contestants = {f'{REFERENCE} eager': contestant(lambda: run(network))}
    if config.benchmark.reference_compile:
        faster = _compiled(network)
        contestants[f'{REFERENCE} compiled'] = contestant(lambda: run(faster))
    contestants['ann_jax'] = Contestant(run_ours, program, flops)
    theirs = float(run(network))
    difference = abs(float(run_ours()) - theirs) / abs(theirs)
    megabytes = 2 * _megabytes(network.parameters())  # with the momentum
    return contestants, difference, [megabytes] * len(contestants)
