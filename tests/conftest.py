import importlib.util
import os

# Eight devices on one CPU, so that sharded programs are tested everywhere. Set before jax is imported.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

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
    'ann_jax.training.losses',
    'ann_jax.evaluation.metrics',
    'ann_jax.models.blocks',
    'ann_jax.inference.functions',
]
if importlib.util.find_spec('beartype'):  # of the extra `dev`; wheels are tested without it too
    install_import_hook(TYPED, 'beartype.beartype')
