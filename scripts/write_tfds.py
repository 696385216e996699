"""Writes the dataset of a config to ArrayRecord files. See `ann_jax/tools/write_tfds.py`."""

import sys

from ann_jax.tools.write_tfds import main

if __name__ == '__main__':
    sys.exit(main())
