"""Writes a trained ANN as a torch state dict. See `ann_jax/tools/export_checkpoint.py`."""

import sys

from ann_jax.tools.export_checkpoint import main

if __name__ == '__main__':
    sys.exit(main())
