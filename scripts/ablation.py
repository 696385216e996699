"""Repeats the ablation studies of the paper on any config. See `ann_jax/tools/ablation.py`."""

from ann_jax.tools.ablation import main

if __name__ == '__main__':
    main()
