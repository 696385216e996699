"""Helpers of the numerical tests: relative errors, torch's layouts, golden files."""

from pathlib import Path

import jax
import numpy as np
import pytest

from ann_jax.kernels.forms import with_forms_of

GOLDENS = Path(__file__).parent / 'goldens'
BOUND = 1e-5  # relative, float32


def error(ours, reference):
    """Largest deviation, relative to the largest reference value; absolute where that is 0."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f'shape {ours.shape}, expected {reference.shape}'
    assert np.isfinite(ours).all()
    return np.abs(ours - reference).max() / (np.abs(reference).max() or 1)


def assert_close(ours, reference, bound=BOUND):
    assert error(ours, reference) <= bound


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def nchw(x):
    """(B, H, W, C) -> (B, C, H, W)."""
    return np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2))


def nhwc(x):
    """(B, C, H, W), NumPy or torch -> NumPy (B, H, W, C)."""
    return np.ascontiguousarray(np.asarray(x).transpose(0, 2, 3, 1))


def oihw(kernel):
    """(H, W, I, O) -> (O, I, H, W)."""
    return np.ascontiguousarray(np.asarray(kernel).transpose(3, 2, 0, 1))


def hwio(weight):
    """(O, I, H, W), NumPy or torch -> NumPy (H, W, I, O)."""
    return np.ascontiguousarray(np.asarray(weight).transpose(2, 3, 1, 0))


def golden(name):
    """All arrays of a golden file."""
    with np.load(GOLDENS / f'{name}.npz') as arrays:
        return dict(arrays)


def below(arrays, prefix):
    """The entries whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def torch_gradients(function, cotangent, *inputs):
    """Runs a torch function on NumPy arrays.

    Returns:
      the output and the gradients of sum(output * cotangent), as NumPy arrays.
    """
    torch = pytest.importorskip('torch', reason='the reference is torch, which is not installed')
    inputs = [torch.tensor(np.asarray(x), requires_grad=True) for x in inputs]
    output = function(*inputs)
    gradients = torch.autograd.grad(output, inputs, torch.tensor(np.asarray(cotangent)))
    return output.detach().numpy(), [x.numpy() for x in gradients]


def _fast():
    """Compiler options for programs that run once: a third of the time to compile, slower to run."""
    options = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # XLA of jax 0.12 has no such choice of emitters
        del options['xla_cpu_use_fusion_emitters']
    return options


FAST = _fast()
# The same, for processes of their own.
QUICK = ' '.join(f'--{name}={str(value).lower()}' for name, value in FAST.items())


def quick(function, **options):
    """jax.jit that compiles fast, for functions that run once."""
    return jax.jit(function, compiler_options=FAST, **options)


def shapes(function, *args):
    """Shapes of what a function returns, without computing it."""
    return jax.tree.map(lambda x: x.shape, jax.eval_shape(function, *args))


def array(x):
    """The features of a `FeatureMap`."""
    return x.array


def random_variables(module, seed, *args, **options):
    """Variables of a module in which nothing is 0 or 1: norms and zero-initialised weights matter too."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ('scale', 'var'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        std = np.sqrt(2 / np.prod(leaf.shape[:-1])) if name == 'kernel' else 0.3
        return (std * rng.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **options))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def tame(variables):
    """The same variables with small queries and keys: a steep softmax would multiply rounding errors."""

    def smaller(path, leaf):
        names = {key.key for key in path}
        return leaf * 0.1 if names & {'query', 'key'} and names & {'scale', 'bias'} else leaf

    return jax.tree_util.tree_map_with_path(smaller, variables)


def with_gradient(function, x, cotangent, platform='cpu'):
    """Output and gradient of sum(output * cotangent), in one compilation, by the forms of a platform."""

    def run(x, cotangent):
        output, pull = jax.vjp(function, x)
        return output, pull(cotangent)[0]

    return quick(with_forms_of(platform, run))(x, cotangent)
