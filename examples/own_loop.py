"""Trains ANN on the embedded scenes in a loop of your own: python examples/own_loop.py [STEPS]."""

import sys

import numpy as np

import ann_jax

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
CROP = 97, 129


def main():
    """Trains, prints the loss, and scores the network on scenes it has not seen."""
    train, val = ann_jax.SceneSource(split='train'), ann_jax.SceneSource(split='val', count=32)
    model = ann_jax.ANN(
        train.dataset.num_classes,
        ann_jax.ResNet(depth=10, width=16, stem_widths=(16,)),
        key_channels=32,
        head_channels=64,
        aux_channels=32,
    )
    mesh = ann_jax.make_mesh()
    optimizer = ann_jax.sgd(ann_jax.poly_schedule(0.05, STEPS))
    step = ann_jax.make_step(model, optimizer, mesh)
    confusion = ann_jax.make_eval(model, mesh)

    state = ann_jax.create_state(ann_jax.initial_variables(model, seed=0), optimizer)
    batches = ann_jax.train_batches(train, ann_jax.Augment(CROP), batch_size=8, seed=0)
    for number in range(1, STEPS + 1):
        state, metrics = step(state, next(batches))
        if number % 50 == 0 or number == STEPS:
            print(f'step {number}: loss {metrics["loss"]:.3f}')
    batches.close()

    val_batches = ann_jax.eval_batches(val, batch_size=8)
    total = sum(np.asarray(confusion(state.variables, batch), np.int64) for batch, _ in val_batches)
    print(f'mIoU {100 * ann_jax.scores(total).miou:.2f} on {len(val)} images')


if __name__ == '__main__':
    main()
