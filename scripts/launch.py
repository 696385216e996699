"""Starts a run of several processes. See `ann_jax/tools/launch.py`."""

import sys

from ann_jax.tools.launch import main

if __name__ == '__main__':
    sys.exit(main())
