"""The bytes that the cost model counts are those that the compiled step exchanges."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import quick
from test_space import NORMALIZE, mesh_of, network, random_batch, weights

from ann_jax.losses import segmentation_loss
from ann_jax.optim import poly_schedule, sgd
from ann_jax.sharding import put_batch, replicated, split_batch
from ann_jax.state import create_state
from ann_jax.train_step import make_train_step

ROOT = Path(__file__).parent.parent
BYTES = {'f32': 4, 's32': 4, 'pred': 1}


def script():
    spec = importlib.util.spec_from_file_location('cost_model', ROOT / 'scripts' / 'cost_model.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exchanged(data, space, images, height):
    """(kind, bytes, shapes, operation) of every collective of a compiled step."""
    mesh, model = mesh_of(data, space), network()
    tx = sgd(poly_schedule(0.05, 10))

    def loss(main, auxiliary, labels):
        return segmentation_loss(main, auxiliary, labels, min_kept=500)

    step = make_train_step(model, tx, loss=loss, normalize=NORMALIZE, align_corners=True, seed=3, mesh=mesh)
    state = jax.device_put(create_state(weights(model), tx), replicated(mesh))
    batch = put_batch(random_batch(images, height, 33), mesh)
    program = quick(step, in_shardings=(replicated(mesh), split_batch(mesh)), out_shardings=replicated(mesh))
    rows = []
    kinds = 'all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter'
    for line in program.lower(state, batch).compile().as_text().splitlines():
        if found := re.search(rf'= (.*?) ({kinds})(?:-start)?\(', line):
            shapes = re.findall(r'(\w+)\[([\d,]*)\]', found[1])
            size = sum(
                BYTES[kind] * int(np.prod([int(n) for n in filter(None, shape.split(','))]))
                for kind, shape in shapes
            )
            rows.append(
                (found[2], size, [shape for _, shape in shapes], re.search(r'op_name="([^"]*)"', line)[1])
            )
    return rows


def test_halos_and_anchors_of_a_step():
    counts = script().count(network(), 193, 33, images=2, space=8)
    rows = exchanged(1, 8, images=2, height=193)
    assert {kind for kind, *_ in rows} == {'all-reduce', 'collective-permute'}
    permutes = [(size, name) for kind, size, _, name in rows if kind == 'collective-permute']
    # The gradient of the max pooling is cut and put together by XLA, which exchanges some rows more for it.
    halos = [size for size, name in permutes if not re.search('select_and_scatter|slice|pad$', name)]
    assert sum(halos) == counts.halos and len(halos) == counts.exchanges
    assert sum(size for size, _ in permutes) < 1.25 * counts.halos
    pooled = [
        shape for kind, _, shapes, _ in rows for shape in shapes if kind == 'all-reduce' and '110' in shape
    ]
    assert sum(4 * int(np.prod([int(n) for n in shape.split(',')])) for shape in pooled) == counts.anchors


def test_gradients_and_statistics_of_a_step():
    counts = script().count(network(), 65, 33, images=1)
    rows = exchanged(8, 1, images=8, height=65)
    assert {kind for kind, *_ in rows} == {'all-reduce'}
    rest = sum(size for _, size, *_ in rows) - counts.gradients - counts.statistics
    assert 0 <= rest <= 64  # scalars: the loss and the counts of its pixels


def test_all_reduce_over_rings_and_domains():
    model = script()
    chip = model.CHIPS[2]._replace(link=100.0, network=10.0, domain=8)
    assert model.all_reduce(800, chip, 1) == 0
    assert model.all_reduce(800, chip, 8) == pytest.approx(2 * 7 / 8 * 8, rel=1e-4)
    assert model.all_reduce(800, chip, 16) == pytest.approx(2 * 7 / 8 * 8 + 2 * 1 / 2 * 100 / 10, rel=1e-4)


def test_the_page_shows_what_the_script_prints():
    from ann_jax import build
    from ann_jax.config import defaults

    config = defaults()
    config.model.dtype = 'bfloat16'
    printed = script().tables(build.model(config, 19), 769, 769)
    assert printed in (ROOT / 'docs' / 'scaling.md').read_text()
