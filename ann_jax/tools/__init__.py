"""Commands beside the main one, such as `python -m ann_jax.tools.launch`; `scripts/` holds shells of them."""
