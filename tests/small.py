"""A small network as a folder of weights."""

import numpy as np
from ml_collections import ConfigDict
from reference import random_variables

from ann_jax import build
from ann_jax.config import defaults
from ann_jax.data.scene_objects import CLASSES, COLORS
from ann_jax.models.settings import OPTIONAL
from ann_jax.weights import folder as weights
from ann_jax.weights.inputs import IMAGENET_RGB


def small_folder(path, seed=0, dataset=None, **images):
    """A folder of weights of a network with other sizes than `runlocal` gives; returns the weights.

    `images` are settings of the dataset that say how images were read.
    """
    model = {**defaults().model.to_dict(), 'depth': 10, 'width': 4, 'stem_widths': (4,), 'sizes': (1, 2)}
    model |= {'key_channels': 4, 'head_channels': 8, 'aux_channels': 4, 'ceil_pool': False}
    config = ConfigDict({'model': model, 'dataset': images})
    image = np.zeros((1, 33, 33, build.channels(config)), np.float32)
    classes, colors = (dataset.classes, dataset.colors) if dataset else (CLASSES, COLORS)
    variables = random_variables(build.model(config, len(classes)), seed, image)
    model = {key: value for key, value in model.items() if key not in OPTIONAL}
    saved = weights.Weights(variables, model, IMAGENET_RGB, classes, colors, images=images)
    weights.save(path, saved)
    return saved
