"""Checks and times this package on an accelerator. See `ann_jax/tools/accelerator_check.py`."""

import sys

from ann_jax.tools.accelerator_check import main

if __name__ == '__main__':
    sys.exit(main())
