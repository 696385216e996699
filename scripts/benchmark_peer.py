"""Inference and training step beside PyTorch: same weights, same input, contestants in turn in one run.

    python scripts/benchmark_peer.py --sizes 257 513
    python scripts/benchmark_peer.py --train --depth 50 --sizes 129 193 --batch 2

The peer is `torch_peer.TorchANN` in eager mode with channels_last, or also compiled with --compile. Prints a
table and writes JSON with --out. Takes `pip install -e '.[convert]'`.
"""

import argparse
import functools
import json
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch_peer import TorchANN

from ann_jax import build
from ann_jax.config import defaults
from ann_jax.convolution import compiler_options
from ann_jax.losses import segmentation_loss
from ann_jax.models.convert import from_torch
from ann_jax.models.deploy import InferenceNetwork, fold
from ann_jax.models.recognize import recognize
from ann_jax.ops import resize_bilinear
from ann_jax.optim import poly_schedule, sgd
from ann_jax.state import create_state
from ann_jax.train_step import make_train_step


def main():
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', nargs='+', type=int, default=[257, 513])
    parser.add_argument('--depth', type=int, choices=(50, 101), default=101)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--train', action='store_true', help='a training step in place of inference')
    parser.add_argument('--compile', action='store_true', help='torch.compile as a third contestant')
    parser.add_argument('--out', type=Path, help='JSON file')
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        contest = train_step if options.train else inference
        rows += measure(contest(options, size), size, options.rounds)
    print(f'{platform.processor() or platform.machine()}, jax {jax.__version__}, torch {torch.__version__}')
    print('| size | contestant | median (s) | lowest | highest | ratio to torch eager |')
    print('|---|---|---|---|---|---|')
    for row in rows:
        print('| {size} | {name} | {median:.3f} | {low:.3f} | {high:.3f} | {ratio:.2f} |'.format(**row))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


def networks(depth, train):
    """The torch network with random weights, our network, and its variables from those weights."""
    torch.manual_seed(0)
    peer = TorchANN(depth=depth)
    peer = (peer.train() if train else peer.eval()).to(memory_format=torch.channels_last)
    state = {key: value.numpy() for key, value in peer.state_dict().items()}
    config = defaults()
    found = recognize(state)
    # The peer has mmsegmentation's names, but the authors' pooling.
    config.model.update({**found.model, 'ceil_pool': True, 'align_corners': True, 'dropout': 0.0})
    model = build.model(config, found.num_classes)
    target = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 33, 33, 3))))
    return peer, model, from_torch(state, target, found.layout).variables


def images(batch, size):
    """The same random images for both: (B, H, W, 3) and channels_last (B, 3, H, W)."""
    image = np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)
    return image, torch.tensor(image).permute(0, 3, 1, 2)


def inference(options, size):
    """Contestants: name -> function that computes the logits of the input's size."""
    peer, model, variables = networks(options.depth, train=False)
    image, tensor = images(options.batch, size)
    params = fold(model, variables, winograd=True)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def ours(params, image):
        return resize_bilinear(InferenceNetwork(model)(params, image)[0], (size, size), True)

    def eager(network):
        with torch.inference_mode():
            return network(tensor).permute(0, 2, 3, 1).numpy()

    image = jnp.asarray(image)
    contestants = {'torch eager': lambda: eager(peer), 'ann_jax': lambda: np.asarray(ours(params, image))}
    if options.compile:
        torch._inductor.config.freezing = True
        compiled = torch.compile(peer)
        contestants['torch.compile'] = lambda: eager(compiled)
    difference = np.abs(contestants['ann_jax']() - contestants['torch eager']()).max()
    print(
        f'{size}: outputs differ by {difference / np.abs(contestants["torch eager"]()).max():.1e}', flush=True
    )
    return contestants


def train_step(options, size):
    """Contestants: name -> function that makes one SGD step, without OHEM, and returns the loss."""
    peer, model, variables = networks(options.depth, train=True)
    image, tensor = images(options.batch, size)
    label = np.random.default_rng(1).integers(0, 19, image.shape[:3])
    tx = sgd(poly_schedule(0.0, 10**6))
    step = jax.jit(
        make_train_step(
            model,
            tx,
            loss=functools.partial(segmentation_loss, ohem=False, per_image=False),
            normalize=lambda image: image,
            align_corners=True,
            seed=0,
        ),
        donate_argnums=0,
        compiler_options=compiler_options(),
    )
    state = [jax.device_put(create_state(variables, tx))]
    batch = {'image': jnp.asarray(image), 'label': jnp.asarray(label, jnp.uint8)}

    def ours():
        state[0], metrics = step(state[0], batch)
        return float(metrics['loss'])

    optimizer = torch.optim.SGD(peer.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)
    target = torch.tensor(label)

    def eager():
        main, auxiliary = peer(tensor)
        entropy = torch.nn.functional.cross_entropy
        loss = entropy(main, target) + 0.4 * entropy(auxiliary, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    print(f'{size}: losses {ours():.6f} and {eager():.6f}', flush=True)
    return {'torch eager': eager, 'ann_jax': ours}


def measure(contestants, size, rounds):
    """Runs the contestants in turn, after one round that does not count."""
    times = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    rows = []
    for name, seconds in times.items():
        # Of each round, so that what slows the machine down for a while slows both.
        ratio = np.median(np.divide(seconds, times['torch eager']))
        low, high = min(seconds), max(seconds)
        rows.append(
            {
                'size': size,
                'name': name,
                'median': float(np.median(seconds)),
                'low': low,
                'high': high,
                'ratio': float(ratio),
            }
        )
    return rows


if __name__ == '__main__':
    main()
