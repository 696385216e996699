r"""Makes the witnesses: small runs of earlier commits, and numbers that every later commit gets from them.

    commit_X/           a run as commit X wrote it, without log, pictures and curves
    commit_X.npz        a batch, and what commit X computed from it and the run's checkpoint
    weights_29e8a0d/    the folder of weights that commit 29e8a0d exported of its run
    paths.txt           names and shapes of all variables of the networks below, as commit 29e8a0d has them

In clones of this repository at the two commits, with HERE this folder:

    SMALL="--config.model.depth=10 --config.model.width=3 --config.model.stem_widths=(4,4,8)
        --config.model.key_channels=4 --config.model.head_channels=8 --config.model.aux_channels=8
        --config.model.dropout=0.2
        --config.train.steps=800 --config.train.checkpoint_every=400 --config.train.eval_every=400"
    RUN="python -m ann_jax.main --config=configs/scenes.py:runlocal $SMALL"

    cd CLONE_OF_29e8a0d
    ONE="$RUN --config.optim.learning_rate=0.02 --config.optim.weight_decay=0.001
        --config.loss.threshold=0.05 --config.loss.min_kept=2000
        --config.loss.class_weights=(1.,1.,1.,1.,1.,1.,1.,1.,1.,1.,1.,1.,1.,4.,4.,4.,4.)
        --workdir=HERE/commit_29e8a0d"
    $ONE
    rm -r HERE/commit_29e8a0d/checkpoints/800
    $ONE --mode=evaluate
    $ONE --mode=export --config.export.formats= --config.export.output=HERE/weights_29e8a0d
    rm HERE/weights_29e8a0d/{README.md,config.json} HERE/commit_29e8a0d/{log.txt,lock}

    cd CLONE_OF_f5baaa6
    OTHER="$RUN --config.model.fuse_stages=(3,4) --config.model.sampling=random --config.model.share=none
        --config.model.ceil_pool=False --config.model.align_corners=False
        --config.loss.threshold=0.06 --config.loss.per_image=False
        --config.optim.decay=kernels --config.optim.weight_decay=0.005
        --workdir=HERE/commit_f5baaa6"
    $OTHER
    rm -r HERE/commit_f5baaa6/checkpoints/800
    $OTHER --mode=evaluate

    rm -r HERE/commit_*/{pictures,tensorboard}
    python HERE/make.py CLONE_OF_29e8a0d HERE/commit_29e8a0d
    python HERE/make.py CLONE_OF_f5baaa6 HERE/commit_f5baaa6
    python HERE/make.py CLONE_OF_29e8a0d

The checkpoint kept is that of step 400, because after the last one the learning rate is 0. By then W_o, which
starts at 0, is large enough for the logits to depend on queries and keys.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

HERE = Path(__file__).parent
# Settings beside the defaults; together they have every kind of block.
NETWORKS = {
    'full': {
        'variant': 'full',
        'fuse_stages': (3, 4),
        'share': 'none',
        'out_norm': True,
        'stem_widths': (4, 4, 8),
    },
    'common': {'variant': 'common', 'fuse_stages': (3, 4), 'conv_bias': False, 'stem_widths': (8,)},
}
SMALL = {'depth': 50, 'width': 4, 'key_channels': 4, 'head_channels': 8, 'aux_channels': 6}


def batch(num_classes: int) -> dict[str, np.ndarray]:
    """Two random images, and labels of which one in ten is 255."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 65, 49, 3), np.uint8)
    label = rng.integers(0, num_classes, (2, 65, 49), np.uint8)
    return {'image': image, 'label': np.where(rng.random(label.shape) < 0.1, np.uint8(255), label)}


def numbers(workdir: Path) -> dict[str, np.ndarray]:
    """The batch, logits of it in evaluation, and one step of training on it from the run's checkpoint."""
    from ann_jax.checkpoint import Checkpoints
    from ann_jax.sharding import make_mesh, replicated
    from ann_jax.state import abstract_state
    from ann_jax.train_step import make_train_step

    from ann_jax import build

    config = ConfigDict(json.loads((workdir / 'config.json').read_text()))
    num_classes = build.source(config, config.dataset.train_split).dataset.num_classes
    model, tx, normalize = build.model(config, num_classes), build.optimizer(config), build.normalize(config)
    checkpoints = Checkpoints(workdir / 'checkpoints')
    state = checkpoints.restore(checkpoints.latest, abstract_state(model, tx, replicated(make_mesh())))
    checkpoints.close()

    data = batch(num_classes)
    logits = jax.jit(lambda variables, image: model.apply(variables, normalize(image)))(
        state.variables, data['image']
    )
    step = make_train_step(
        model,
        tx,
        loss=build.loss(config, num_classes),
        normalize=normalize,
        align_corners=config.model.align_corners,
        seed=config.seed,
    )
    after, metrics = jax.jit(step)(state, data)
    difference = lambda new, old: jax.tree.map(lambda x, y: x - y, new, old)
    return data | {
        'logits': logits.main,
        'auxiliary': logits.auxiliary,
        **metrics,
        'parameters': magnitude(after.params),
        'parameters_moved': magnitude(difference(after.params, state.params)),
        'statistics_moved': magnitude(difference(after.batch_stats, state.batch_stats)),
    }


def magnitude(tree) -> np.float64:
    """Sum of the absolute values of all arrays."""
    return sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))


def paths() -> str:
    """A line per variable of the networks: which of them, path and shape, sorted."""
    from ann_jax import build
    from ann_jax.config import defaults

    lines = []
    for name, settings in NETWORKS.items():
        config = ConfigDict({'model': defaults().model.to_dict() | SMALL | settings})
        model = build.model(config, 5)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            lines.append(f'{name} {jax.tree_util.keystr(path, simple=True, separator="/")} {leaf.shape}\n')
    return ''.join(sorted(lines))


def main():
    parser = argparse.ArgumentParser(description='Writes WORKDIR.npz, or without a workdir paths.txt.')
    parser.add_argument('checkout', type=Path, help='the repository at the commit that computes')
    parser.add_argument('workdir', type=Path, nargs='?', help='a run of that commit')
    args = parser.parse_args()
    checkout = args.checkout.resolve()
    sys.path.insert(0, str(checkout))
    import ann_jax

    assert Path(ann_jax.__file__).is_relative_to(checkout), f'{ann_jax.__file__} is not of {checkout}'
    if args.workdir is None:
        (HERE / 'paths.txt').write_text(paths())
    else:
        workdir = args.workdir.resolve()
        np.savez_compressed(workdir.with_suffix('.npz'), **numbers(workdir))


if __name__ == '__main__':
    main()
