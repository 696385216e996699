import importlib.util
import os

# Eight devices on one CPU, so that sharded programs are tested everywhere. Set before jax is imported.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

import pytest  # noqa: E402
from absl import flags  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags

# Modules whose calls are checked against the shapes and dtypes in their signatures, in every test. Not the
# kernels that others call most, which would slow tracing down.
TYPED = [
    'ann_jax.kernels.anchors',
    'ann_jax.kernels.convolution',
    'ann_jax.kernels.pooling',
    'ann_jax.kernels.resizing',
    'ann_jax.training.boundaries',
    'ann_jax.training.losses',
    'ann_jax.training.mining',
    'ann_jax.training.pixel_losses',
    'ann_jax.training.region_losses',
    'ann_jax.evaluation.metrics',
    'ann_jax.models.blocks',
    'ann_jax.inference.functions',
]
if importlib.util.find_spec('beartype'):  # of the extra `dev`; wheels are tested without it too
    install_import_hook(TYPED, 'beartype.beartype')


@pytest.fixture(scope='module')
def compiled_fast():
    """Programs of a mesh, which run once here, need not run fast."""
    import jax
    from reference import FAST

    from ann_jax.parallel import programs

    options = programs.compiler_options(jax.devices()[0]) | FAST
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, 'compiler_options', lambda device: options)
        yield


@pytest.fixture(scope='session')
def environment(tmp_path_factory):
    """Of commands: one device as on a laptop; programs that several tests run are compiled once, and fast."""
    from reference import QUICK

    return os.environ | {
        'XLA_FLAGS': QUICK,
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The weights of a small network."""
    from small import small_folder

    path = tmp_path_factory.mktemp('weights') / 'small'
    small_folder(path)
    return path
