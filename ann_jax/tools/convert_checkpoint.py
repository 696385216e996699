"""Converts a checkpoint of torch or Paddle into a folder that training and evaluation start from.

    python -m ann_jax.tools.convert_checkpoint resnet101.pth --out weights/resnet101
    python -m ann_jax.main --config=configs/cityscapes.py --config.init.from=weights/resnet101 \
        --config.init.parts=backbone

Reads .pth, .pt, .safetensors and .pdparams; neither torch nor Paddle is needed. The network is found by the
names of its tensors: ResNets of torchvision, timm, transformers, mmsegmentation and the authors, and whole
ANNs of mmsegmentation, the authors, PaddleSeg and sssegmentation. Every tensor is used, or listed with the
reason why not. What is known about the weights is stored with them; what neither the file nor the layout says
can be given: --align-corners, --classes, --output-stride.
"""

import argparse
import sys
from pathlib import Path

from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.models.resnet import PLANS
from ann_jax.weights.converter import convert


def main(argv=None):
    """Parses the command line and converts; user errors end it with one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='.pth, .pt, .safetensors, .pdparams or hf://OWNER/NAME')
    parser.add_argument('--out', type=Path, required=True, help='folder to write; must not exist')
    parser.add_argument(
        '--part', choices=('all', 'backbone'), default='all', help='backbone leaves the heads out'
    )
    parser.add_argument(
        '--classes', help='dataset with the class names of the classifier, such as cityscapes'
    )
    parser.add_argument('--align-corners', choices=('true', 'false'), help='how the logits are resized')
    parser.add_argument('--output-stride', type=int, choices=PLANS, help='of a whole ANN')
    parser.add_argument('--prefer', choices=('ema',), help='take the moving average beside the weights')
    options = parser.parse_args(argv)
    try:
        converted = convert(
            options.source,
            options.out,
            part=options.part,
            classes=options.classes,
            align_corners=options.align_corners and options.align_corners == 'true',
            output_stride=options.output_stride,
            prefer=options.prefer,
        )
    except (ConfigError, DataError, SaveError) as error:
        sys.exit(f'error: {error}')
    print(f'{converted}; written to {options.out}')


if __name__ == '__main__':
    main()
