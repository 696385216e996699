"""Augment against its definition: cut the window, resize it, flip, brighten, pad."""

import math
from fractions import Fraction

import numpy as np
import pytest

from ann_jax.data.transforms import Augment, Draw
from ann_jax.typing import IGNORE, Sample

MEAN = (10.4, 20.6, 30.0)


def sample_of(rng, height, width):
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return Sample(name='x', image=image, label=rng.integers(0, 20, (height, width), np.uint8))


def resize_by_definition(image, height, width):
    """Bilinear with half-pixel centres and clamped edges, no antialiasing: (height, width, 3) float64."""

    def axis(array, new):
        old = array.shape[0]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (place - low).reshape(-1, 1, 1)
        return array[low] * (1 - weight) + array[high] * weight

    rows = axis(image.astype(np.float64), height)
    return axis(rows.transpose(1, 0, 2), width).transpose(1, 0, 2)


def label_by_definition(label, height, width):
    """Nearest: the source pixel that holds the centre. In fractions: floats fail centres on a border."""
    rows = [math.floor(Fraction(2 * i + 1, 2) * Fraction(label.shape[0], height)) for i in range(height)]
    columns = [math.floor(Fraction(2 * i + 1, 2) * Fraction(label.shape[1], width)) for i in range(width)]
    return label[np.ix_(rows, columns)]


def apply_by_definition(sample, draw, crop):
    """Returns (image float64 before rounding, label)."""
    window = np.s_[draw.top : draw.top + draw.height, draw.left : draw.left + draw.width]
    image = resize_by_definition(sample['image'][window], draw.new_height, draw.new_width)
    image = np.clip(image + draw.brightness, 0, 255)
    label = label_by_definition(sample['label'][window], draw.new_height, draw.new_width)
    if draw.flip:
        image, label = image[:, ::-1], label[:, ::-1]
    out_image = np.tile(np.array([10.0, 21.0, 30.0]), (*crop, 1))
    out_label = np.full(crop, 255)
    out_image[: image.shape[0], : image.shape[1]] = image
    out_label[: label.shape[0], : label.shape[1]] = label
    return out_image, out_label


def assert_as_defined(augment, sample, draw, bound):
    got = augment.apply(sample, draw)
    image, label = apply_by_definition(sample, draw, augment.crop)
    assert got['image'].dtype == got['label'].dtype == np.uint8
    assert got['image'].shape == (*augment.crop, 3)
    np.testing.assert_array_equal(got['label'], label)
    np.testing.assert_allclose(got['image'], image, rtol=0, atol=bound)


BOUND = 1.0  # grey levels: half of one by rounding, the rest OpenCV's fixed-point weights


@pytest.mark.parametrize('size', [(37, 53), (64, 48), (101, 150)])
@pytest.mark.parametrize('crop', [(33, 33), (40, 65), (129, 97)])
def test_random_draws_match_the_definition(size, crop):
    rng = np.random.default_rng(0)
    augment = Augment(crop, aspect_range=(0.9, 1.1), mean=MEAN)
    for _ in range(12):
        sample = sample_of(rng, *size)
        assert_as_defined(augment, sample, augment.draw(rng, *size), BOUND)


def test_crop_shows_what_resizing_the_whole_image_first_would():
    """On ramps a grey level is a place: every pixel sees the place it has in the resized whole image."""
    y, x = np.mgrid[:120, :200]
    image = np.stack([x, 2 * y, x + y // 2], -1).clip(0, 255).astype(np.uint8)
    sample = Sample(name='x', image=image, label=np.zeros((120, 200), np.uint8))
    augment = Augment((45, 50), flip=False, brightness=0, aspect_range=(0.8, 1.2), mean=MEAN)
    rng = np.random.default_rng(1)
    for _ in range(50):
        draw = augment.draw(rng, 120, 200)
        whole_h, whole_w = (
            round(n * new / old)
            for n, new, old in ((120, draw.new_height, draw.height), (200, draw.new_width, draw.width))
        )
        whole = resize_by_definition(image, whole_h, whole_w)
        top, left = (
            round(draw.top * draw.new_height / draw.height),
            round(draw.left * draw.new_width / draw.width),
        )
        crop = whole[top : top + draw.new_height, left : left + draw.new_width]
        got = augment.apply(sample, draw)['image'][: crop.shape[0], : crop.shape[1]]
        # Half a pixel of either image, at 2 levels a pixel, and rounding; inside of the window's border.
        np.testing.assert_allclose(got[2:-2, 2:-2], crop[2:-2, 2:-2], rtol=0, atol=3.2)


@pytest.mark.parametrize(
    'draw',
    [
        Draw(0, 0, 37, 53, 33, 33, False, 0),
        Draw(2, 9, 33, 33, 33, 33, True, 0),
        Draw(0, 0, 37, 53, 20, 20, True, 10),  # smaller than the crop both ways: padded
        Draw(5, 0, 24, 53, 33, 20, True, -10),  # one way
        Draw(0, 0, 37, 53, 1, 1, False, 0),
        Draw(20, 36, 17, 17, 33, 33, False, 0),  # the last corner
        Draw(36, 52, 1, 1, 33, 33, False, 3),
    ],
)
def test_chosen_draws_match_the_definition(draw):
    augment = Augment((33, 33), mean=MEAN)
    assert_as_defined(augment, sample_of(np.random.default_rng(2), 37, 53), draw, BOUND)


def test_unscaled_crop_is_a_copy_of_the_source():
    sample = sample_of(np.random.default_rng(3), 50, 60)
    got = Augment((20, 30), mean=MEAN).apply(sample, Draw(7, 11, 20, 30, 20, 30, False, 0))
    np.testing.assert_array_equal(got['image'], sample['image'][7:27, 11:41])
    np.testing.assert_array_equal(got['label'], sample['label'][7:27, 11:41])


def test_padding_is_the_mean_and_ignored():
    sample = sample_of(np.random.default_rng(4), 10, 12)
    got = Augment((30, 31), mean=MEAN).apply(sample, Draw(0, 0, 10, 12, 10, 12, True, 10))
    padded = np.ones((30, 31), bool)
    padded[:10, :12] = False
    assert (got['image'][padded] == (10, 21, 30)).all()
    assert (got['label'][padded] == IGNORE).all()
    assert (got['label'][~padded] != IGNORE).all()


def test_brightness_stops_at_black_and_white():
    image = np.array([[[0, 5, 250]]], np.uint8)
    sample = Sample(name='x', image=image, label=np.zeros((1, 1), np.uint8))
    augment = Augment((1, 1), mean=MEAN)
    assert augment.apply(sample, Draw(0, 0, 1, 1, 1, 1, False, 10))['image'].tolist() == [[[10, 15, 255]]]
    assert augment.apply(sample, Draw(0, 0, 1, 1, 1, 1, False, -10))['image'].tolist() == [[[0, 0, 240]]]


def test_source_arrays_are_left_alone():
    rng = np.random.default_rng(5)
    sample = sample_of(rng, 20, 20)
    before = sample['image'].copy(), sample['label'].copy()
    augment = Augment((20, 20), scale_range=(1, 1), mean=MEAN)
    got = augment.apply(sample, Draw(0, 0, 20, 20, 20, 20, True, 7))
    got['image'][:], got['label'][:] = 0, 0
    np.testing.assert_array_equal(sample['image'], before[0])
    np.testing.assert_array_equal(sample['label'], before[1])


def test_label_is_never_interpolated():
    rng = np.random.default_rng(6)
    sample = sample_of(rng, 40, 40)
    sample['label'] = rng.choice(np.array([0, 200, IGNORE], np.uint8), (40, 40))
    augment = Augment((64, 64), mean=MEAN)
    for _ in range(20):
        assert set(np.unique(augment.apply(sample, augment.draw(rng, 40, 40))['label'])) <= {0, 200, IGNORE}


def test_draws_cover_their_ranges_evenly():
    rng = np.random.default_rng(7)
    augment = Augment((500, 600), aspect_range=(0.9, 1.1))
    draws = [augment.draw(rng, 2000, 2000) for _ in range(4000)]
    assert all((d.new_height, d.new_width) == (500, 600) for d in draws)
    scale = np.array([500 / d.height for d in draws])
    aspect = np.array([600 / d.width for d in draws]) / scale
    top = np.array([d.top / (2000 - d.height) for d in draws])
    left = np.array([d.left / (2000 - d.width) for d in draws])
    bright = np.array([d.brightness for d in draws])
    for values, low, high in ((scale, 0.5, 2), (aspect, 0.9, 1.1), (top, 0, 1), (left, 0, 1)):
        counts, _ = np.histogram(values, bins=10, range=(low - 4e-3, high + 4e-3))
        assert counts.sum() == 4000
        assert counts.min() > 280, counts  # 400 expected, deviation 19
    assert sorted(set(bright)) == list(range(-10, 11))
    assert 0.45 < np.mean([d.flip for d in draws]) < 0.55


def test_small_images_keep_the_scale_and_are_padded():
    rng = np.random.default_rng(12)
    augment = Augment((500, 600))
    draws = [augment.draw(rng, 200, 250) for _ in range(500)]
    scales = np.array([d.new_height / d.height for d in draws])
    assert all((d.top, d.left, d.height, d.width) == (0, 0, 200, 250) for d in draws)
    assert scales.min() < 0.52 and scales.max() > 1.98
    np.testing.assert_allclose([d.new_width / d.width for d in draws], scales, atol=0.005)


def test_every_offset_occurs_and_no_other():
    rng = np.random.default_rng(8)
    augment = Augment((10, 10), scale_range=(1, 1))
    draws = [augment.draw(rng, 13, 11) for _ in range(300)]
    assert {(d.top, d.left) for d in draws} == {(y, x) for y in range(4) for x in range(2)}


def test_switches():
    rng = np.random.default_rng(9)
    augment = Augment((10, 10), scale_range=(1, 1), flip=False, brightness=0)
    assert all(augment.draw(rng, 10, 10) == Draw(0, 0, 10, 10, 10, 10, False, 0) for _ in range(20))


def test_resize_short_comes_before_the_scale():
    rng = np.random.default_rng(10)
    augment = Augment((33, 33), scale_range=(1, 1), resize_short=520)
    assert augment.draw(rng, 260, 300)[2:6] == (16, 16, 33, 33)  # twice as large
    assert augment.draw(rng, 1300, 1040)[2:6] == (66, 66, 33, 33)
    augment = Augment((520, 520), scale_range=(0.5, 2), resize_short=520)
    scales = [d.new_height / d.height for d in (augment.draw(rng, 260, 300) for _ in range(500))]
    assert 1 <= min(scales) < 1.1 and 3.8 < max(scales) <= 4


def test_same_generator_same_draw():
    augment = Augment((33, 33))
    a, b = (augment.draw(np.random.default_rng(11), 80, 90) for _ in range(2))
    assert a == b
