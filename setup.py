"""Installs the `ann_jax` package; the commands are in README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup

version = re.search(r"__version__ = '(.+)'", Path('ann_jax/__init__.py').read_text())[1]

setup(
    name='ann_jax',
    version=version,
    description='Asymmetric Non-local Neural Networks for semantic segmentation in JAX',
    long_description=Path('README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['ann_jax', 'ann_jax.*']),
    package_data={'ann_jax': ['py.typed']},
    license='Apache-2.0',
    python_requires='>=3.11',
    install_requires=[
        'absl-py>=2.1',
        'flax>=0.12.8',
        'grain>=0.2.18',
        'jax>=0.10.2',
        'ml_collections>=1.1',
        'numpy>=2.0',
        'opencv-python-headless>=4.10',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pillow>=10.3',
        'tensorboardX>=2.6.2',
        'tqdm>=4.66',
    ],
    extras_require={
        # The last two are imported by tensorflow-datasets, which does not declare them everywhere.
        'datasets': [
            'h5py>=3.10',
            'scipy>=1.11',
            'tensorflow-datasets>=4.9.9',
            'array_record>=0.6',
            'importlib_resources>=6',
        ],
        'dev': [
            'ann_jax[datasets]',
            'flatbuffers>=24',
            'pytest>=8',
            'pytest-xdist>=3.6',
            'ruff>=0.8',
            'safetensors>=0.5',
            'tensorboard>=2.18',
        ],
        'export': ['flatbuffers>=24', 'jax2onnx>=0.17', 'onnxruntime>=1.20'],
        # To write state dicts, and for what is compared with PyTorch; reading them takes neither.
        'convert': ['safetensors>=0.5', 'torch>=2.6'],
        # Ruff formats the signatures.
        'docs': ['mkdocs>=1.6', 'mkdocs-material>=9.7', 'mkdocstrings-python>=2.0', 'ruff>=0.8'],
    },
)
