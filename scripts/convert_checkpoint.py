"""Converts a torch checkpoint: python scripts/convert_checkpoint.py resnet101.pth --out weights/resnet101"""

from ann_jax.tools.convert_checkpoint import main

if __name__ == '__main__':
    main()
