"""Installs the `ann_jax` package; the commands are in README.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

version = re.search(r"__version__ = '(.+)'", Path('ann_jax/__init__.py').read_text(encoding='utf-8'))[1]
# What an sdist holds beside the package: what building does not take, but testing and changing it does.
MORE = (
    '.ci/*',
    '.github/**/*',
    '.mkdocs.yml',
    '.mypy.ini',
    '.pytest.ini',
    '.ruff.toml',
    '*.md',
    '*.cff',
    'docs/**/*',
    'examples/**/*',
    'scripts/*',
    'tests/**/*',
)


class Sdist(sdist):
    """Adds `MORE`, for which there is no MANIFEST.in."""

    def make_distribution(self):
        """Writes the files that were found, and those."""
        found = (path for pattern in MORE for path in Path().glob(pattern))
        self.filelist.extend(sorted(str(p) for p in found if p.is_file() and '__pycache__' not in p.parts))
        super().make_distribution()


setup(
    name='ann_jax',
    version=version,
    description='Asymmetric Non-local Neural Networks for semantic segmentation in JAX',
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    # A wheel has the configs in the package, where `ann_jax.command` finds them.
    packages=[*find_packages(include=['ann_jax', 'ann_jax.*']), 'ann_jax.configs'],
    package_dir={'ann_jax.configs': 'configs'},
    package_data={'ann_jax': ['py.typed', 'evaluation/*.jinja', 'inference/*.html']},
    entry_points={'console_scripts': ['ann-jax = ann_jax.main:run']},
    cmdclass={'sdist': Sdist},
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    project_urls={'Paper': 'https://arxiv.org/abs/1908.07678'},
    python_requires='>=3.11',
    install_requires=[
        'absl-py>=2.1',
        'flax>=0.12.8',
        'grain>=0.2.18',
        'jax>=0.10.2',
        'jaxtyping>=0.3',
        'ml_collections>=1.1',
        'numpy>=2.0',
        'opencv-python-headless>=4.10',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.11.36',
        'pillow>=10.3',
        'tensorboardX>=2.6.2',
        'tqdm>=4.66',
    ],
    extras_require={
        # Draws polygons and runs of pixels of COCO and CVAT.
        'annotations': ['pycocotools>=2.0.8'],
        # The last two are imported by tensorflow-datasets, which does not declare them everywhere.
        'datasets': [
            'h5py>=3.10',
            'scipy>=1.11',
            'tensorflow-datasets>=4.9.9',
            'array_record>=0.6',
            'importlib_resources>=6',
        ],
        'dev': [
            'ann_jax[annotations,datasets,export,gcs,report,s3,serve,tiff,video]',
            'beartype>=0.19',
            'build>=1.2',
            'huggingface_hub>=1.0',
            'mypy>=1.13',
            'pytest>=8',
            'pytest-xdist>=3.6',
            'ruff>=0.8',
            'safetensors>=0.5',
            'tensorboard>=2.18',
        ],
        # Runs and weights in buckets of Google Cloud Storage, gs://BUCKET/NAME, and of Amazon S3.
        'gcs': ['gcsfs>=2025.2', 'google-cloud-storage>=2.18'],
        's3': ['s3fs>=2025.2'],
        'export': ['flatbuffers>=24', 'onnx>=1.17', 'onnxruntime>=1.20'],
        # The converter keeps typing_extensions below 4.13, and so pydantic of the demo below 2.12.
        'litert': ['ai-edge-litert>=2.3', 'litert-converter>=0.5'],
        # The page about a run, and the plot of an ablation.
        'report': ['bokeh>=3.9', 'jinja2>=3', 'matplotlib>=3.8'],
        # The page of examples/demo.py.
        'demo': ['gradio>=5.10'],
        # examples/serve.py.
        'serve': ['starlette>=0.40', 'uvicorn>=0.30'],
        # Images that Pillow does not read.
        'tiff': ['rasterio>=1.3'],
        'heic': ['pillow-heif>=0.16'],
        # Videos in --mode=predict.
        'video': ['av>=13'],
        # To open weights on the hub, hf://OWNER/NAME, and to write them there.
        'hub': ['huggingface_hub>=1.0'],
        # To write .pth, and for what is compared with PyTorch; reading it takes nothing.
        'convert': ['torch>=2.6'],
        # Ruff formats the signatures.
        'docs': ['mkdocs>=1.6', 'mkdocs-material>=9.7', 'mkdocstrings-python>=2.0', 'ruff>=0.8'],
    },
)
