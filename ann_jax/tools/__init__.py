"""Commands beside `ann_jax.main`: each is a module with a `main`."""
