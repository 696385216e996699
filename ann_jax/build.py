"""Builds the objects of a run from its config; the layers below take explicit arguments."""

import functools
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ann_jax.data.augment.mixing import Mix
from ann_jax.data.augment.transforms import Augment
from ann_jax.data.classes import DATASETS
from ann_jax.data.datasets import FolderSource, InRegions, Subset, named
from ann_jax.data.decode.levels import AUTO, Reading, channels_of, find_range
from ann_jax.data.frequencies import repeated
from ann_jax.data.layout import Dataset
from ann_jax.data.own.settings import own_dataset
from ann_jax.data.pipeline import Replacing
from ann_jax.data.readers import AUTO as AUTO_WORKERS
from ann_jax.data.readers import Readers, choose
from ann_jax.data.records import RecordSource
from ann_jax.data.scenes import SceneSource
from ann_jax.errors import ConfigError, DataError, unknown
from ann_jax.evaluation.evaluate import Evaluation
from ann_jax.inference.protocols import TestProtocol, make_protocol
from ann_jax.models.ann import ANN
from ann_jax.models.settings import network
from ann_jax.parallel.mesh import check_batch_size, has_accelerator, make_mesh
from ann_jax.parallel.processes import on_this_machine
from ann_jax.training import groups, losses, terms
from ann_jax.training.optimizers import arguments, make_optimizer
from ann_jax.training.schedules import make_schedule
from ann_jax.training.state import count_parameters
from ann_jax.typing import Backbone, Source
from ann_jax.weights.inputs import for_channels, normalizer

logger = logging.getLogger(__name__)

SAMPLE = 64  # training images that `dataset.image_range=auto` looks at


def source(config: ConfigDict, split: str, *, limit: int = 0, strict: bool = True) -> Source:
    """The samples of a split; only the first `limit` if that is not 0.

    A pattern in brackets chooses samples by name: train[0006*], and train[!0006*] for the others.

    Raises:
        DataError: see `FolderSource` and `RecordSource`.
        ConfigError: see `dataset` and `named`.
    """
    c = config.dataset
    train = split == c.train_split
    split, pattern = split_and_pattern(split)
    if split.endswith(']') or '[' in split:
        raise ConfigError(f'{split}: a pattern in brackets is missing or not closed, as in train[0006*]')
    stands_in = bool(c.stand_in and not c.root)
    name = c.stand_in if stands_in else c.name
    samples: Source
    if c.format == 'tfds' and not stands_in:
        samples = RecordSource(name, c.root, split, reading(config))
    elif name == 'scenes':
        # The scenes lack some splits of the dataset they stand in for, such as 'trainval'.
        samples = SceneSource(
            split=('train' if train else 'val') if stands_in else split,
            count=c.scenes.train_count if train else c.scenes.eval_count,
            height=c.scenes.height,
            width=c.scenes.width,
            seed=c.scenes.seed,
            version=c.scenes.version,
        )
    else:
        samples = FolderSource(dataset(config), c.root, split, strict=strict, reading=reading(config))
    if pattern:
        samples = named(samples, split, pattern)
    return Subset(samples, range(limit)) if 0 < limit < len(samples) else samples


def split_and_pattern(split: str) -> tuple[str, str]:
    """The name of a split, and the pattern in brackets behind it, or ''."""
    name, opened, rest = split.partition('[')
    return (name, rest[:-1]) if opened and rest.endswith(']') and rest != ']' else (split, '')


def dataset(config: ConfigDict) -> Dataset:
    """The dataset of the config: a row of the table or, with the name `folder`, the user's own.

    Raises:
        DataError: the name is unknown.
        ConfigError: a setting of the user's own dataset cannot be used.
    """
    c = config.dataset
    if c.name == 'folder':
        return own_dataset(
            name=c.name,
            classes=c.classes,
            root=c.root,
            images=c.images,
            labels=c.labels,
            lists=c.lists,
            image_ending=c.image_ending,
            label_ending=c.label_ending,
            label_map=c.label_map,
            reduce_zero_label=c.reduce_zero_label,
            splits=(split_and_pattern(c.train_split)[0], split_and_pattern(c.eval_split)[0]),
            val_share=c.val_share,
        )
    name = c.stand_in if c.stand_in and not c.root else c.name
    if name == 'scenes':
        return SceneSource(version=c.scenes.version).dataset
    if name not in DATASETS:
        raise DataError(unknown('dataset', name, (*DATASETS, 'scenes', 'folder')))
    return DATASETS[name]


def reading(config: ConfigDict) -> Reading:
    """How images are read; `auto` in the config is replaced by the range of the training images.

    Raises:
        ConfigError: a setting cannot be used.
        DataError: see `source`, and `find_range`.
    """
    c = config.dataset
    settings = {'bands': c.bands, 'page': c.page, 'max_pixels': c.max_pixels}
    if c.image_range == AUTO:
        unscaled = config.copy_and_resolve_references()
        unscaled.dataset.image_range = ''
        images: Any = source(unscaled, c.train_split)
        if hasattr(images, 'values'):
            c.image_range = find_range(_sample(images, config.loader.bad_samples == 'skip'))
            logger.info('dataset.image_range=%s, of the training images', c.image_range)
        else:  # scenes are drawn in 8 bits
            c.image_range = ''
    return Reading.parse(c.image_range, **settings)


def _sample(images, skip_bad):
    """Yields the values of some images, spread over a split."""
    for index in np.unique(np.linspace(0, len(images) - 1, SAMPLE).round().astype(int)).tolist():
        try:
            yield images.values(index)
        except DataError:
            if not skip_bad:
                raise


def channels(config: ConfigDict) -> int:
    """Channels of the network's input."""
    # A config may hold the settings of a network alone.
    return channels_of(config.get('dataset', {}).get('bands', ''))


def augment(config: ConfigDict, counts: np.ndarray | None = None) -> Augment:
    """The random transform of training.

    Args:
        config: of the run.
        counts: (N, K) pixels of the classes, on which rare ones depend; None: they are all alike.
    """
    c = config.augment
    mean = for_channels(config.input, channels(config))['mean']
    return Augment(
        crop=tuple(c.crop),
        scale_range=tuple(c.scale_range),
        aspect_range=tuple(c.aspect_range),
        flip=c.flip,
        brightness=c.brightness,
        mean=tuple(reversed(mean)) if config.input.bgr else mean,
        resize_short=c.resize_short or None,
        jitter=tuple(c.jitter),
        jitter_share=c.jitter_share,
        blur=c.blur,
        blur_sigma=tuple(c.blur_sigma),
        noise=c.noise,
        grey=c.grey,
        rotation=c.rotation,
        max_class_share=c.max_class_share,
        rare_crop=c.rare_crop,
        frequencies=() if counts is None else tuple((counts.sum(0) / max(counts.sum(), 1)).tolist()),
        rand_augment=c.rand_augment,
        rand_magnitude=c.rand_magnitude,
    )


def mix(config: ConfigDict, source: Any, counts: np.ndarray | None) -> Mix | None:
    """What of other samples of the source is pasted onto one; None for nothing."""
    c = config.augment
    return Mix(source, c.mix, c.mix_share, counts) if c.mix != 'none' else None


def epoch(config: ConfigDict, source: Source, counts: np.ndarray | None) -> tuple[Any, Mix | None]:
    """The samples of an epoch of training, and what of others is pasted onto them.

    Args:
        config: of the run.
        source: the images to train on.
        counts: (N, K) pixels of the classes, by which samples are repeated and pasted; None if no setting
            asks for them.
    """

    def usable(samples):
        samples = InRegions(samples)
        return Replacing(samples) if config.loader.bad_samples == 'skip' else samples

    pasted = mix(config, usable(source), counts)
    if config.dataset.repeat_threshold and counts is not None:
        indices = repeated(counts, config.dataset.repeat_threshold, config.seed)
        logger.info('an epoch has %d samples of the %d images', len(indices), len(source))
        source = Subset(source, indices.tolist())
    return usable(source), pasted


def model(config: ConfigDict, num_classes: int, backbone: Backbone | None = None) -> ANN:
    """The network, with the given backbone or else the config's ResNet."""
    return network(config.model.to_dict(), num_classes, backbone, channels(config))


def mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices, or of those given, in the shape of `config.mesh`.

    Raises:
        ConfigError: they do not fit that shape.
    """
    return make_mesh(devices, data=config.mesh.data, space=config.mesh.space)


def normalize(config: ConfigDict) -> Callable:
    """The normalisation of the backbone's input."""
    return normalizer(**for_channels(config.input, channels(config)))


def schedule(config: ConfigDict) -> optax.Schedule:
    """Step -> learning rate."""
    c = config.optim
    return make_schedule(
        c.schedule,
        c.learning_rate,
        config.train.steps,
        power=c.power,
        warmup_steps=c.warmup_steps,
        warmup_factor=c.warmup_factor,
    )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer with its schedule.

    Raises:
        ConfigError: it is unknown, or an argument cannot be used.
    """
    c = config.optim
    decay_factors = groups.parse_factors(c.decay_factors, 'optim.decay_factors')
    return make_optimizer(
        schedule(config),
        c.name,
        arguments(c.name, c.args),
        momentum=c.momentum,
        weight_decay=c.weight_decay,
        decay=c.decay,
        decay_factors=groups.of_trained(decay_factors, state_settings(config)['factors']),
    )


def state_settings(config: ConfigDict) -> dict[str, Any]:
    """What a state has beside the optimizer's, see `create_state`."""
    factors = groups.parse_factors(config.optim.factors, 'optim.factors')
    return {'factors': factors, 'ema': config.optim.ema_decay > 0}


def step_settings(config: ConfigDict, loss: Callable) -> dict[str, Any]:
    """What a step does with a network and an optimizer, whichever they are, see `make_step_parts`."""
    return {
        'loss': loss,
        'normalize': normalize(config),
        'seed': config.seed,
        'skip_not_finite': config.train.not_finite == 'skip',
        'clip_norm': config.optim.clip_norm,
        'factors': state_settings(config)['factors'],
        'frozen_norm': groups.parse_names(config.train.frozen_norm),
        'ema_decay': config.optim.ema_decay,
    }


def parameter_counts(config: ConfigDict, params: Any) -> str:
    """How many parameters there are, and how many of them are frozen, in words."""
    count = count_parameters(params)
    frozen = count - count_parameters(groups.trained(params, state_settings(config)['factors']))
    return f'{count:,} parameters' + (f', {frozen:,} of them frozen' if frozen else '')


def check_frozen_norm(config: ConfigDict, batch_stats: Any) -> None:
    """Refuses parts without statistics.

    Raises:
        ConfigError: `train.frozen_norm` names one.
    """
    groups.check(groups.parse_names(config.train.frozen_norm), batch_stats, 'train.frozen_norm')


def loss(config: ConfigDict, num_classes: int) -> Callable:
    """(main logits, auxiliary logits, labels) -> `Loss`.

    Raises:
        ConfigError: there are class weights, but not one per class.
    """
    c = config.loss
    if c.class_weights and len(c.class_weights) != num_classes:
        raise ConfigError(
            f'loss.class_weights holds {len(c.class_weights)} numbers, but {config.dataset.name} has '
            f'{num_classes} classes: give one per class, or () for none'
        )
    return functools.partial(
        losses.segmentation_loss,
        terms=terms.chosen(c.terms, c.ohem),
        threshold=c.threshold,
        min_kept=c.min_kept,
        per_image=c.per_image,
        aux_weight=c.aux_weight,
        class_weights=tuple(c.class_weights) or None,
        average=c.average,
        label_smoothing=c.label_smoothing,
        boundary_weight=c.boundary_weight,
        boundary_width=c.boundary_width,
        focal_gamma=c.focal_gamma,
        tversky=tuple(c.tversky),
    )


def check_accumulation(config: ConfigDict, loss: Callable) -> None:
    """Refuses to accumulate gradients with a loss that does not know about the rest of the batch.

    Raises:
        ConfigError: it does not take `totals`.
    """
    if config.train.accumulate > 1 and 'totals' not in inspect.signature(loss).parameters:
        raise ConfigError(
            f'train.accumulate={config.train.accumulate}: the loss must take `totals`, losses.BatchTotals, '
            'so that the losses of the parts add up to that of the batch'
        )


def protocol(config: ConfigDict, model: ANN, mesh: Mesh) -> TestProtocol:
    """The test protocol: whole images or windows, at one or several scales."""
    c = config.eval
    return make_protocol(
        model,
        normalize(config),
        mesh,
        scales=tuple(c.scales),
        flip=c.flip,
        crop=tuple(c.crop),
        stride=tuple(c.stride),
        average=c.average,
    )


def readers(config: ConfigDict, *, training: bool = False) -> Readers:
    """Who reads samples: `loader.threads` and `loader.workers`, or as many as suit the machine.

    Args:
        config: of the run.
        training: for the run's own batches, for which worker processes may be chosen; whatever is read once
            would be done before they have started. All processes of the run must call this.
    """
    c = config.loader
    sharing, batch_bytes, workers = 1, 0, c.workers
    if training:
        sharing = on_this_machine()
        pixels = math.prod(config.augment.crop) * config.train.batch_size // jax.process_count()
        batch_bytes = pixels * (channels(config) + 1)
    elif workers == AUTO_WORKERS:
        workers = 0
    return choose(c.threads, workers, accelerator=has_accelerator(), sharing=sharing, batch_bytes=batch_bytes)


def evaluation(
    config: ConfigDict, mesh: Mesh, samples: Source | None = None, backbone: Backbone | None = None
) -> Evaluation:
    """The evaluation split, with all that is needed to score a network on it.

    Args:
        config: of the run.
        mesh: of the run.
        samples: in place of the config's.
        backbone: in place of the config's.

    Raises:
        DataError: the split cannot be used.
        ConfigError: the batch cannot be divided over the devices.
    """
    batch_size = config.eval.batch_size or mesh.shape['data']
    check_batch_size(batch_size, mesh, 'eval.batch_size')
    if samples is None:
        samples = source(config, config.dataset.eval_split, limit=config.eval.limit)
    read_by = readers(config)
    return Evaluation(
        samples,
        model(config, samples.dataset.num_classes, backbone),
        lambda model: protocol(config, model, mesh),
        mesh,
        batch_size=batch_size,
        pictures=config.eval.pictures,
        num_workers=read_by.workers,
        num_threads=read_by.threads,
        skip_bad=config.loader.bad_samples == 'skip',
    )
