r"""Pre-trains a network on images that a formula draws: nothing to download, nothing to label.

    python examples/formula.py configs/camvid.py runs/formula --steps=5000
    python -m ann_jax.main --config=configs/camvid.py --config.dataset.root=/data/camvid \
        --workdir=runs/camvid --config.init.from=runs/formula --config.init.parts=but_classifier

The images hold radial contours, after SegRCDB (Shinoda et al., ICCV 2023): polygons around a centre, one in
the other, whose radii vary smoothly at random. A class is a number of corners and a roughness; size, place,
turn, colours and the number of rings tell nothing about it.
"""

import argparse
import sys

import cv2
import numpy as np

import ann_jax

CORNERS = 3, 4, 5, 6, 8, 11, 15, 20
ROUGHNESS = 0.0, 0.12, 0.25, 0.45
CLASSES = 'background', *(f'{corners} corners, {rough}' for corners in CORNERS for rough in ROUGHNESS)
COLORS = tuple((int(37 * i % 256), int(91 * i % 256), int(151 * i % 256)) for i in range(len(CLASSES)))


class Contours:
    """Images of radial contours, as many as `len` says, each a function of the seed and its index."""

    dataset = ann_jax.Dataset(name='contours', classes=CLASSES, colors=COLORS)
    problems = ()

    def __init__(self, height: int, width: int, count: int = 1 << 20, seed: int = 0, most: int = 32):
        """Images of height x width with at most `most` contours."""
        self.height, self.width, self.count, self.seed, self.most = height, width, count, seed, most

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        """Draws an image and its label, the later contours over the earlier ones."""
        rng = np.random.default_rng((self.seed, index))
        image = self._background(rng)
        label = np.zeros((self.height, self.width), np.uint8)
        for _ in range(rng.integers(1, self.most + 1)):
            self._contour(rng, image, label)
        image += rng.uniform(0, 12) * rng.standard_normal(image.shape, np.float32)
        image = np.clip(image, 0, 255).astype(np.uint8)
        return {'name': f'contours_{index:07d}', 'image': image, 'label': label}

    def _background(self, rng):
        coarse = rng.uniform(0, 255, (*rng.integers(1, 5, 2), 3)).astype(np.float32)
        return cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)

    def _contour(self, rng, image, label):
        kind = int(rng.integers(1, len(CLASSES)))
        corners, rough = CORNERS[(kind - 1) // len(ROUGHNESS)], ROUGHNESS[(kind - 1) % len(ROUGHNESS)]
        radius = np.exp(rng.uniform(np.log(6), np.log(min(self.height, self.width) / 2)))
        angles = 2 * np.pi * (np.arange(corners) / corners + rng.random())
        axes = radius * np.array([1.0, rng.uniform(0.4, 1)])
        turn = rng.uniform(0, 2 * np.pi)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        center = rng.uniform(0, (self.width, self.height))
        radii = 1 + rough * _smooth(rng, corners)
        color, other = rng.uniform(0, 255, (2, 3))
        rings = int(rng.integers(1, 8))
        for ring in range(rings):
            scale = (1 - ring / rings) * radii
            points = (
                center + (scale[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1) * axes) @ turned.T
            )
            points = np.round(points).astype(np.int32)
            if ring == 0:
                cv2.fillPoly(label, [points], kind)
            cv2.fillPoly(image, [points], tuple(color + (other - color) * ring / rings))
            cv2.polylines(image, [points], True, tuple(rng.uniform(0, 255, 3)), int(rng.integers(1, 3)))


def _smooth(rng, count):
    """Random values around a circle, from -1 to 1, in which neighbours are alike."""
    waves = np.arange(1, 5)
    phases, turns = rng.uniform(0, 2 * np.pi, 4), 2 * np.pi * np.arange(count) / count
    values = (np.sin(np.outer(turns, waves) + phases) / waves).sum(1)
    return values / max(np.abs(values).max(), 1e-6)


def main():
    """Trains the network of a config on contours, and scores it on a hundred others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='a config file, whose network and training are used')
    parser.add_argument('workdir')
    parser.add_argument('--steps', type=int, default=5000)
    given = parser.parse_args()
    try:
        config = ann_jax.load_config(given.config)
        config.train.steps = given.steps
        height, width = config.augment.crop
        ann_jax.train(
            config,
            given.workdir,
            train_source=Contours(height, width),
            eval_source=Contours(height, width, count=100, seed=1),
        )
    except (ann_jax.ConfigError, ann_jax.DataError, ann_jax.SaveError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
