"""Compiles a training step and inference for TPUs that are not there. See `ann_jax/tools/tpu_programs.py`."""

import sys

from ann_jax.tools.tpu_programs import main

if __name__ == '__main__':
    sys.exit(main())
