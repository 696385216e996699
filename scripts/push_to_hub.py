"""Uploads trained weights to the Hugging Face hub. See `ann_jax/tools/push_to_hub.py`."""

import sys

from ann_jax.tools.push_to_hub import main

if __name__ == '__main__':
    sys.exit(main())
