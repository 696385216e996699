"""The command: python -m ann_jax --config=configs/cityscapes.py."""

from ann_jax.main import run

if __name__ == '__main__':
    run()
