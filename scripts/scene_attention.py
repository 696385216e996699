"""Measures what the cars of the embedded scenes attend to. See `ann_jax/tools/scene_attention.py`."""

import sys

from ann_jax.tools.scene_attention import main

if __name__ == '__main__':
    sys.exit(main())
