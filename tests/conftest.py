import os

# Eight devices on one CPU, so that sharded programs are tested everywhere. Set before jax is imported.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
os.environ['JAX_PLATFORMS'] = 'cpu'

from absl import flags  # noqa: E402

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags
