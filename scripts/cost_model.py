"""Prints what a step of training costs from one chip to 256. See `ann_jax/tools/cost_model.py`."""

import sys

from ann_jax.tools.cost_model import main

if __name__ == '__main__':
    sys.exit(main())
