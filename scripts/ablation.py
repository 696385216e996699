"""Compares the variants of Table 6 on the embedded scenes. See `ann_jax/tools/ablation.py`."""

import sys

from ann_jax.tools.ablation import main

if __name__ == '__main__':
    sys.exit(main())
