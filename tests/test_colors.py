"""Operations on levels against Pillow, colorsys and definitions in NumPy."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ann_jax.data.augment import colors
from ann_jax.data.augment.rand_augment import KINDS, MOST, draw_operations
from ann_jax.data.augment.warps import IDENTITY, rotated, sheared, shifted

RNG = np.random.default_rng(0)
# Smooth in parts, so that histograms are uneven, and with black and white.
IMAGE = np.clip(
    np.add.outer(np.linspace(20, 160, 40), np.linspace(-60, 110, 50))[..., None] * [1, 0.7, 0.4]
    + RNG.normal(0, 12, (40, 50, 3)),
    0,
    255,
).astype(np.uint8)
PILLOW = Image.fromarray(IMAGE)


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ('name', 'theirs'),
    [
        ('brightness', ImageEnhance.Brightness),
        ('contrast', ImageEnhance.Contrast),
        ('saturation', ImageEnhance.Color),
        ('sharpness', ImageEnhance.Sharpness),
    ],
)
def test_factors_are_those_of_pillow(name, theirs, factor):
    """Pillow cuts fractions off, and computes greys and smoothed copies in whole levels."""
    ours = colors.OPERATIONS[name](IMAGE, factor).astype(int)
    expected = np.asarray(theirs(PILLOW).enhance(factor)).astype(int)
    assert ours.shape == IMAGE.shape
    assert np.abs(ours - expected).max() <= 2
    assert factor != 1 or (ours == IMAGE).all()


def test_tables_are_those_of_pillow():
    same = lambda ours, theirs, bound: np.abs(ours.astype(int) - np.asarray(theirs)).max() <= bound
    flat = np.full_like(IMAGE, 7)
    two = np.where(IMAGE > 100, 180, 60).astype(np.uint8)
    for image in (IMAGE, flat, two):
        picture = Image.fromarray(image)
        assert same(colors.equalize(image), ImageOps.equalize(picture), 0)
        assert same(colors.autocontrast(image), ImageOps.autocontrast(picture), 1)
    for bits in (4, 6, 8):
        assert same(colors.posterize(IMAGE, bits), ImageOps.posterize(PILLOW, bits), 0)
    for threshold in (0, 100.5, 178.5, 255):
        assert same(colors.solarize(IMAGE, threshold), ImageOps.solarize(PILLOW, threshold), 0)
    assert same(colors.grey(IMAGE), PILLOW.convert('L').convert('RGB'), 1)


@pytest.mark.parametrize('shift', [-0.5, -0.13, 0.0, 0.3])
def test_hue_turns_around_the_circle(shift):
    ours = colors.hue(IMAGE, shift)
    for pixel, result in zip(IMAGE[::5, ::5].reshape(-1, 3), ours[::5, ::5].reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v))
        np.testing.assert_allclose(result, expected, atol=8)  # hue, shift and saturation in 8 bits


def test_blur_and_noise_of_any_number_of_channels():
    sigma, image = 1.3, np.random.default_rng(1).integers(0, 256, (30, 26, 130), np.uint8)
    taps = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(image.astype(float), ((4, 4), (4, 4), (0, 0)), 'reflect')
    rows = sum(tap * padded[i : i + 30] for i, tap in enumerate(taps))
    expected = sum(tap * rows[:, i : i + 26] for i, tap in enumerate(taps))
    np.testing.assert_allclose(colors.blur(image, sigma), expected, atol=1.5)
    noisy = colors.noise(np.full((200, 200, 3), 128, np.uint8), 9.0, seed=3).astype(float)
    assert abs(noisy.mean() - 128) < 0.2 and abs(noisy.std() - 9) < 0.2
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.02
    np.testing.assert_array_equal(noisy, colors.noise(np.full((200, 200, 3), 128, np.uint8), 9.0, seed=3))
    extremes = colors.noise(
        np.stack([np.zeros((50, 50)), np.full((50, 50), 255)], -1).astype(np.uint8), 30, 0
    )
    assert extremes[..., 0].max() < 200 and extremes[..., 1].min() > 50  # saturates


def test_rand_augment_draws_the_space_of_torchvision():
    """Of `_augmentation_space`: at magnitude 9 of 30, for a crop of 200 x 300."""
    rng, part = np.random.default_rng(0), 9 / MOST
    draws = [draw_operations(rng, 1, 9, (200, 300)) for _ in range(2000)]
    factors = [1 - 0.27, 1 + 0.27]
    expected = {(name, f) for name in ('brightness', 'contrast', 'saturation', 'sharpness') for f in factors}
    expected |= {('posterize', 7), ('solarize', 255 * 0.7), ('autocontrast',), ('equalize',)}
    rounded = lambda op: (op[0], *(round(x, 6) for x in op[1:]))
    assert {rounded(op) for levels, _ in draws for op in levels} == {rounded(op) for op in expected}
    signs = (-1, 1)
    warps = [rotated(IDENTITY, sign * 30 * part) for sign in signs]
    warps += [sheared(IDENTITY, sign * 0.3 * part, axis) for sign in signs for axis in 'xy']
    warps += [
        shifted(IDENTITY, sign * 150 / 331 * part * n, axis)
        for sign in signs
        for n, axis in ((300, 'x'), (200, 'y'))
    ]
    found = {tuple(np.round(warp, 6)) for levels, warp in draws if not levels and warp != IDENTITY}
    assert found == {tuple(np.round(warp, 6)) for warp in warps}
    nothing = sum(not levels and warp == IDENTITY for levels, warp in draws)
    assert abs(nothing / 2000 - 1 / len(KINDS)) < 0.02
    assert len(draw_operations(rng, 3, 0, (20, 30))[0]) <= 3
