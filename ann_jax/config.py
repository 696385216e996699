"""The defaults of every run, and the string arguments that choose among variants of a config.

A file in `configs/` starts from `defaults()`, which hold the settings the paper shares between
datasets, and changes what its dataset needs. Arguments follow the file's name after a colon:

    --config=configs/cityscapes.py:variant=apnb,runlocal
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ann_jax.data.augment import mixing
from ann_jax.data.decode.levels import AUTO, Reading, channels_of
from ann_jax.data.decode.reading import MAX_PIXELS
from ann_jax.data.frequencies import BALANCES
from ann_jax.errors import ConfigError, unknown
from ann_jax.inference import protocols
from ann_jax.inference.protocols import check_protocol
from ann_jax.models import settings as network_settings
from ann_jax.models.ann import VARIANTS
from ann_jax.ranges import RANGES, out_of_range, shown
from ann_jax.runs import history
from ann_jax.runs.profile import parse_steps
from ann_jax.training import groups, losses, optimizers, terms
from ann_jax.training.schedules import SCHEDULES
from ann_jax.weights.inputs import AUTHORS_BGR, IMAGENET_RGB, check_input
from ann_jax.weights.opening import PREFERENCES
from ann_jax.weights.start import PARTS

__all__ = ['AUTHORS_BGR', 'IMAGENET_RGB', 'defaults', 'finish', 'parse_argument']

PROTOCOLS = ('single', 'paper')
# Settings that are one of a few names or numbers; the ranges of numbers are in `ranges.py`.
CHOICES: dict[str, Collection[Any]] = {
    **{f'model.{key}': values for key, values in network_settings.CHOICES.items()},
    'model.dtype': ('float32', 'bfloat16'),
    'dataset.format': ('folder', 'tfds'),
    'loader.bad_samples': ('stop', 'skip'),
    'train.not_finite': ('stop', 'skip'),
    'augment.mix': mixing.KINDS,
    'loss.average': losses.AVERAGES,
    'loss.balance': BALANCES,
    'optim.schedule': SCHEDULES,
    'optim.decay': optimizers.DECAYS,
    'export.dtype': ('float32', 'float16', 'bfloat16'),
    'export.takes': ('levels', 'normalized'),
    'export.gives': ('logits', 'ids'),
    'init.parts': PARTS,
    'init.prefer': PREFERENCES,
    'eval.average': protocols.AVERAGES,
}


def defaults() -> ConfigDict:
    """Settings of the paper and, where it is silent, of its authors' code."""
    return ConfigDict(
        {
            'seed': 0,
            # Devices: `data` splits batches, `space` the rows of each image; -1: all that the other leaves.
            'mesh': {'data': -1, 'space': 1},
            'dataset': {
                'name': '',
                'root': '',  # folder of the dataset, as it is distributed
                'format': 'folder',  # or tfds: records that ann_jax.tools.write_tfds wrote
                'train_split': 'train',
                'eval_split': 'val',
                # Images with a class that a smaller share of the images has come more often, as in LVIS.
                'repeat_threshold': 0.0,
                'stand_in': '',  # dataset read instead when `root` is empty; '' makes that an error
                # How images are read, see docs/own_data.md.
                'image_range': '',  # values that become levels 0 and 255, such as 0,4095; or auto
                'bands': '',  # those that the network takes, from 1, such as 4,3,2; '' for RGB
                'page': 0,  # of files with several images, from 1; 0 to refuse them
                'max_pixels': MAX_PIXELS,  # larger files are refused
                # Only for name='folder', the user's own dataset: see `data/own/settings.py`.
                'classes': '',
                'images': 'images/{split}',
                'labels': 'labels/{split}',
                'lists': '',
                'image_ending': '',  # '' for any
                'label_ending': '.png',
                'label_map': '',
                'reduce_zero_label': False,  # label value 0 is ignored, and 1 is the first class
                'val_share': 0.0,  # of train_split, held out as eval_split; 0 if that has files of its own
                # Only for the embedded dataset, which is drawn on the fly.
                'scenes': {
                    'version': 3,  # 1 and 2: as early commits drew them, see `data/early_scenes.py`
                    'seed': 0,
                    'train_count': 10_000,
                    'eval_count': 100,
                    'height': 96,
                    'width': 208,
                },
            },
            'augment': {
                'crop': (769, 769),
                'scale_range': (0.5, 2.0),
                'aspect_range': (0.9, 1.1),
                'flip': True,
                'brightness': 10,
                'resize_short': 0,  # length to which the short side is resized first; 0 to leave it
                # What follows is not in the paper; see docs/training.md and `data/augment/transforms.py`.
                'jitter': (0.0, 0.0, 0.0, 0.0),  # of brightness, contrast, saturation and hue
                'jitter_share': 1.0,  # of the images; like all shares, from 0 to 1
                'blur': 0.0,  # share of images
                'blur_sigma': (0.1, 2.0),  # pixels
                'noise': 0.0,  # highest standard deviation, in levels
                'grey': 0.0,  # share of images
                'rotation': 0.0,  # degrees, both ways
                'max_class_share': 1.0,  # of a crop; crops with more of one class are drawn again
                'rare_crop': 0.0,  # share of crops that are laid around a rare class
                'rand_augment': 0,  # operations of RandAugment
                'rand_magnitude': 9,  # their strength, to 30
                'mix': 'none',  # or cutmix, classmix, copy_paste: parts of another image
                'mix_share': 0.5,  # of the images
            },
            'loader': {
                'workers': -1,  # processes that read samples; 0: the run itself; -1: as suits the machine
                'threads': 0,  # that read samples, in each process; 0: as many as suit the machine
                'bad_samples': 'stop',  # or skip: log, count and do without what cannot be read
            },
            'input': dict(AUTHORS_BGR),
            'model': {
                'depth': 101,
                'width': 64,
                'stem_widths': (64, 64, 128),
                'output_stride': 8,  # 4, 8, 16 or 32: of the image over Stage5
                'multi_grid': (1, 1, 1),
                'contract_dilation': True,
                'ceil_pool': True,
                'dilate_second_conv': True,  # of depths 10, 18 and 34; False in mmseg and sssegmentation
                'avg_down': False,  # of ResNet-D (ResNet-vd): shortcuts of stride 2 average, then project
                'variant': 'full',
                'fuse_stages': (4,),
                'sampling': 'average',
                'sizes': (1, 3, 6, 8),
                'share': 'query_key',
                'out_norm': False,
                'key_channels': 256,
                'head_channels': 512,
                'aux_channels': 512,  # 0 for no auxiliary head
                'decoder': 'none',  # or stage2: add Stage2 back, as DeepLabv3+ does
                'decoder_channels': 256,  # of its 3x3 convolutions
                'dropout': 0.05,
                'conv_bias': True,
                'align_corners': True,
                'dtype': 'float32',
                'remat': (),  # of the stages 2,3,4,5, those recomputed in the backward pass: less memory
            },
            'loss': {
                'ohem': True,
                'terms': '',  # such as ohem:1,dice:0.5; '' for what `ohem` says, see docs/training.md
                'threshold': 0.7,
                'min_kept': 100_000,
                'per_image': True,
                'aux_weight': 0.4,
                'class_weights': (),  # one per class; () for none
                'balance': 'none',  # or class weights by the median, inverse or effective frequency, counted
                'average': 'valid',  # over pixels that count; or all, ignored ones too, as mmsegmentation
                'label_smoothing': 0.0,  # of cross-entropies
                'boundary_weight': 1.0,  # of pixels near a boundary between classes; 1 for that of the others
                'boundary_width': 2,  # pixels from one that are near
                'focal_gamma': 2.0,
                'tversky': (0.3, 0.7),  # weights of false positives and of false negatives
            },
            'optim': {
                'name': 'sgd',  # or an optimizer of optax: adamw, lamb, lion, ...
                'args': '',  # of it, such as b2=0.95,nesterov=True
                'learning_rate': 0.01,  # the highest of the schedule
                'schedule': 'poly',  # cosine, one_cycle or constant
                'power': 0.9,  # of poly
                'warmup_steps': 0,  # in which the rate rises linearly, before the schedule
                'warmup_factor': 0.0,  # of its first rate, where the warm-up begins
                'momentum': 0.9,  # of sgd
                'weight_decay': 1e-4,
                'decay': 'all',  # parameters that decay; or kernels alone
                'decay_factors': '',  # on the weight decay of parts, such as backbone=0.1,classifier=0
                'factors': '',  # on the learning rate of parts, such as backbone=0.1,stem=0; 0 freezes
                'clip_norm': 0.0,  # largest norm of the gradient; 0 for any
                'ema_decay': 0.0,  # of the moving average that is evaluated and exported; 0 for none
            },
            'check': {
                'strict': False,  # warnings of --mode=check also end it with exit status 1
            },
            'predict': {
                'input': '',  # an image, a video, a folder, or a pattern such as 'a/*.jpg'
                'output': '',  # folder to write into; '' for predictions/ in the workdir
                'write': 'overlays',  # some of `modes.predict.OUTPUTS`
                'batch_size': 1,  # images of one canvas that are computed together
                'truth': '',  # folder of labels, named as the dataset's, for panels
            },
            'explain': {
                'input': '',  # an image, a folder, or a pattern such as 'a/*.jpg'
                'runs': '',  # runs that are compared, such as runs/a,runs/b; '' for the workdir
                'truth': '',  # folder of labels, named as the dataset's, for a column of predictions.png
                'output': '',  # folder to write into; '' for explain/ in the workdir
            },
            'export': {
                'output': '',  # folder to write; '' for export/ in the workdir
                'formats': 'stablehlo',  # some of stablehlo,onnx,litert
                'size': (512, 512),  # of programs whose size is fixed: LiteRT, and max or random anchors
                'dtype': 'float32',  # what programs compute in: float32, float16, or bfloat16 but for ONNX
                'takes': 'levels',  # uint8 images; or normalized: float32 that is normalised already
                'gives': 'logits',  # float32 (B, H, W, classes); or ids: uint8 (B, H, W)
            },
            'benchmark': {
                'sections': 'blocks,network',  # also step, input, loss, dilation, reference, stream
                'rounds': 7,
                'peak_size': 0,  # of the measured matrix product; 0 for 2048 on CPUs, 8192 elsewhere
                'block_sizes': '96x96',  # of the feature maps; Table 1 also has 256x128
                'backward': False,  # blocks with their gradients too
                'image_sizes': '257x257',  # Table 2 has 1024x2048
                'dtypes': 'float32',  # or float32,bfloat16
                'variants': 'baseline,nb,apnb,full',  # the others are compared with the first
                'reference_sizes': '257x257',  # inference beside PyTorch; '' for none
                'reference_step_sizes': '129x129',  # training steps beside PyTorch
                'reference_batch': 2,  # of those steps
                'reference_compile': False,  # also with torch.compile
                'stream_images': 100,  # that Segmenter.stream segments, beside PyTorch if it is installed
                'stream_sizes': '360x480',  # of these images
                'stream_batch': 8,  # that are computed together, against one by one
            },
            # Folder that keeps compiled programs from run to run; '' for none. auto: one of the user's, of at
            # most 4 GiB, beside accelerators.
            'compilation_cache': 'auto',
            'init': {
                'from': '',  # a run, a weights folder or hf://OWNER/NAME to start from; '' for random weights
                'parts': 'all',  # what is taken from it: all, backbone, or but_classifier
                'prefer': '',  # of a run: ema or weights, its last; '' for ema if it has one
            },
            'train': {
                'steps': 60_000,
                'batch_size': 16,  # over all devices
                'accumulate': 1,  # parts of a batch, computed one after the other: less memory
                'log_every': 50,
                'checkpoint_every': 1000,
                'eval_every': 5000,
                'not_finite': 'stop',  # or skip: skip steps whose loss or gradient is NaN or infinite
                'frozen_norm': '',  # parts whose normalisation keeps its statistics, such as backbone or all
                'patience': 0,  # evaluations without a better mIoU that end the training; 0: to the last step
                'deterministic': False,  # GPUs compute the same bits each time, as CPUs and TPUs do; slower
            },
            'profile': {
                'steps': '',  # FIRST:LAST: steps of training that are traced into the workdir
            },
            'eval': {
                'batch_size': 0,  # over all devices; 0 for one image per index of mesh.data
                'limit': 0,  # images evaluated; 0 for all
                'pictures': 8,
                'scales': (1.0,),
                'flip': False,  # also average over mirror images
                'crop': (),  # height and width of sliding windows; () for the whole image
                'stride': (),  # from one window to the next
                'average': 'logits',  # over scales and flips: logits (the authors) or probabilities (mmseg)
            },
        }
    )


_DEFAULTS = history.flat(defaults().to_dict())


def parse_argument(argument: str | None, **spec: Any) -> dict[str, Any]:
    """Parses 'variant=apnb,runlocal' into a value per known name; `runlocal` alone means True.

    Args:
        argument: what follows the colon of `--config=file.py:argument`.
        **spec: known names and their defaults, which also give the types. `variant`, `protocol` and
            `runlocal` are always known.

    Raises:
        ConfigError: a name or variant is unknown (suggests the nearest), or a value has another type.
    """
    values: dict[str, Any] = {'variant': 'full', 'protocol': 'single', 'runlocal': False} | spec
    for item in filter(None, (argument or '').split(',')):
        name, has_value, text = item.partition('=')
        if name not in values:
            raise ConfigError(unknown('config argument', name, values))
        kind = type(values[name])
        if kind is bool:
            if has_value and text.lower() not in ('true', 'false'):
                raise ConfigError(f'config argument {name} must be true or false, not {text!r}')
            values[name] = text.lower() != 'false'
        else:
            try:
                values[name] = kind(text)
            except ValueError as error:
                raise ConfigError(
                    f'config argument {name} must be of type {kind.__name__}, not {text!r}'
                ) from error
    if values['variant'] not in VARIANTS:
        raise ConfigError(unknown('variant', values['variant'], VARIANTS))
    if values['protocol'] not in PROTOCOLS:
        raise ConfigError(unknown('protocol', values['protocol'], PROTOCOLS))
    return values


def finish(
    config: ConfigDict, argument: dict[str, Any], paper_test: dict[str, Any] | None = None
) -> ConfigDict:
    """Applies the arguments and locks the config; `runlocal` shrinks the run to a minute on a laptop.

    Args:
        config: of a dataset.
        argument: the result of `parse_argument`.
        paper_test: settings of `eval` for protocol=paper; None for the defaults, a single scale.
    """
    config.model.variant = argument['variant']
    if argument['protocol'] == 'paper':
        config.eval.update(paper_test or {})
    if argument['runlocal']:
        config.dataset.stand_in = 'scenes'
        config.dataset.scenes.update(train_count=64, eval_count=4, height=96, width=192)
        config.augment.update(crop=(65, 65), resize_short=0)
        config.model.update(
            depth=10,
            width=8,
            stem_widths=tuple(n // 8 for n in config.model.stem_widths),
            key_channels=16,
            head_channels=32,
            aux_channels=16,
            decoder_channels=16,
            dtype='float32',  # the others are slow on CPUs
        )
        config.loss.min_kept = 1000
        # The embedded scenes that stand in for missing data have their own classes.
        config.loss.class_weights = ()
        config.train.update(steps=10, batch_size=2, log_every=2, checkpoint_every=5, eval_every=10)
        config.optim.warmup_steps = min(config.optim.warmup_steps, 2)
        config.eval.update(batch_size=0, limit=4, pictures=2)
        if config.eval.crop:
            config.eval.update(crop=(65, 65), stride=(43, 43))
    return config.lock()  # from here on a misspelt key is an error


def validate(config: ConfigDict) -> None:
    """Refuses values that would otherwise fail late or silently, before any file is opened.

    Raises:
        ConfigError: values cannot be used; one line each, with the key, the value and what it must be.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f'config={shown(config)}: must be a ConfigDict, such as ann_jax.load_config("configs/folder.py")'
        )
    settings = history.flat(config.to_dict())
    if lines := [line for key, default in _DEFAULTS.items() if (line := _refusal(key, default, settings))]:
        raise ConfigError('\n'.join(lines))
    c = config.eval
    check_protocol(scales=c.scales, flip=c.flip, crop=c.crop, stride=c.stride, average=c.average)
    _check_optim(config)
    if config.mesh.data == config.mesh.space == -1:
        raise ConfigError('mesh.data=-1 and mesh.space=-1: one of them takes what the other leaves')
    parse_steps(config.profile.steps)
    c = config.loss
    terms.check(c.terms, c.ohem, c.label_smoothing, c.boundary_weight)
    c = config.dataset
    for key in ('root', 'lists'):
        if '://' in c[key]:
            raise ConfigError(
                f'dataset.{key}={c[key]}: datasets are read from a file system: mount the bucket, for '
                'example with gcsfuse or mount-s3, and name the mounted folder'
            )
    Reading.parse(c.image_range if c.image_range != AUTO else '', c.bands, c.page, c.max_pixels)
    check_input(config.input, channels_of(c.bands))
    _check_colors(config.augment, channels_of(c.bands))
    if config.dataset.name == 'scenes' and config.dataset.format != 'tfds':
        for key in ('root', 'bands', 'image_range', 'page'):
            if value := config.dataset[key]:
                raise ConfigError(
                    f'dataset.{key}={shown(value)}: the embedded scenes read no files: use '
                    '--config=configs/folder.py for your own'
                )
    if config.dataset.name != 'folder':
        for key in ('images', 'labels', 'label_ending'):
            if (value := config.dataset[key]) != _DEFAULTS[f'dataset.{key}']:
                raise ConfigError(f'dataset.{key}={shown(value)}: only --config=configs/folder.py takes it')
        for key in ('classes', 'label_map', 'reduce_zero_label', 'lists', 'image_ending', 'val_share'):
            if value := config.dataset[key]:
                raise ConfigError(
                    f'dataset.{key}={shown(value)}: must be empty without --config=configs/folder.py'
                )


def _check_colors(augment, channels):
    """Refuses operations on colours for images without them."""
    for key in ('jitter', 'grey', 'rand_augment'):
        if np.any(augment[key]) and channels != 3:
            raise ConfigError(
                f'augment.{key}={shown(augment[key])} is for RGB, and dataset.bands makes {channels} bands: '
                'leave it off; blur, noise, rotation and the choice of crops suit any'
            )


def _check_optim(config):
    c = config.optim
    optimizers.arguments(c.name, c.args)
    for key in ('factors', 'decay_factors'):
        groups.parse_factors(c[key], f'optim.{key}')


def _refusal(key, default, settings):
    """Why a setting cannot be used, in one line; '' if it can."""
    if key not in settings:
        return f'the config has no {key}: start from ann_jax.config.defaults()'
    value = settings[key]
    if key in RANGES and (line := out_of_range(key, value)):
        return line
    if key in CHOICES:
        good = any(type(value) is type(choice) and value == choice for choice in CHOICES[key])
        rule = f'one of {", ".join(str(choice) or "empty" for choice in CHOICES[key])}'
    else:
        good, rule = key in RANGES or isinstance(value, type(default)), f'of type {type(default).__name__}'
    return '' if good else f'{key}={shown(value)}: must be {rule}'


def adopt(config: ConfigDict, **sections: Mapping[str, Any]) -> list[str]:
    """Takes over settings that weights determine; returns the changes, each as 'key: given -> taken'."""
    lines = []
    for section, values in sections.items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        given = {key: value for key, value in config[section].to_dict().items() if key in values}
        lines += differences(given, values, f'{section}.')
        config[section].update(values)
    return lines


def differences(saved: dict[str, Any], given: dict[str, Any], prefix: str = '') -> list[str]:
    """Differences between two configs, each as 'key: saved -> given'."""
    lines = []
    for key in sorted(saved.keys() | given.keys()):
        old, new = saved.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f'{prefix}{key}.')
        # The saved config has been through JSON, which has no tuples.
        elif (list(old) if isinstance(old, tuple) else old) != (list(new) if isinstance(new, tuple) else new):
            lines.append(f'{prefix}{key}: {old} -> {new}')
    return lines
