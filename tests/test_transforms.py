"""Augment against its definition: cut the window, resize it, flip, brighten, pad."""

import math
from fractions import Fraction

import numpy as np
import pytest

from ann_jax.data.augment.mixing import Mix
from ann_jax.data.augment.transforms import Augment, Draw
from ann_jax.data.augment.warps import IDENTITY, rotated, sheared, shifted
from ann_jax.errors import ConfigError
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


def warped_by_definition(sample, draw, crop):
    """The label, the source place of every pixel, and whether rounding could choose its neighbour."""
    y, x = np.mgrid[: crop[0], : crop[1]] + 0.5
    a, b, c, d, e, f = draw.warp
    x, y = x - draw.new_width / 2, y - draw.new_height / 2
    x, y = a * x + b * y + c + draw.new_width / 2, d * x + e * y + f + draw.new_height / 2
    x = draw.left + x * draw.width / draw.new_width
    y = draw.top + y * draw.height / draw.new_height
    height, width = sample['label'].shape
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    rows, columns = (np.clip(np.floor(at).astype(int), 0, n - 1) for at, n in ((y, height), (x, width)))
    label = np.where(inside, sample['label'][rows, columns], IGNORE)
    near = np.minimum(np.abs(x - np.rint(x)), np.abs(y - np.rint(y))) < 0.04
    return label, x, y, inside, near


@pytest.mark.parametrize('degrees', [-30.0, 7.0, 120.0])
def test_a_warp_moves_image_and_label_alike(degrees):
    """On ramps, the level of every pixel is the place that it comes from."""
    rng = np.random.default_rng(13)
    y, x = np.mgrid[:60, :90]
    label = rng.integers(0, 9, (60, 90), np.uint8)
    label[10:13] = IGNORE
    sample = Sample(name='x', image=np.stack([2 * x, 3 * y, x + y], -1).astype(np.uint8), label=label)
    augment = Augment((48, 41), mean=MEAN)
    warp = shifted(sheared(rotated(IDENTITY, degrees), 0.2, 'y'), -4.0, 'x')
    for window in ((3, 20, 40, 38, 48, 41), (20, 50, 30, 40, 33, 41), (0, 0, 60, 90, 30, 40)):
        draw = Draw(*window, False, 0, warp)
        got = augment.apply(sample, draw)
        expected, at_x, at_y, inside, near = warped_by_definition(sample, draw, augment.crop)
        assert got['image'].shape == (48, 41, 3) and got['image'].dtype == got['label'].dtype == np.uint8
        assert (got['label'] == expected)[~near].all() and near.mean() < 0.3
        levels = np.stack([2 * (at_x - 0.5), 3 * (at_y - 0.5), at_x + at_y - 1], -1)
        # Half a pixel from an edge of the source, its last pixel is continued.
        inner = inside & (at_x > 1) & (at_y > 1) & (at_x < 89) & (at_y < 59)
        np.testing.assert_allclose(got['image'][inner], levels[inner], rtol=0, atol=1.1)
        beyond = ~inside & ~near
        assert (got['image'][beyond] == (10, 21, 30)).all() and (got['label'][beyond] == IGNORE).all()


def test_a_quarter_turn_is_exact_and_counterclockwise():
    sample = sample_of(np.random.default_rng(14), 32, 32)
    augment = Augment((32, 32), mean=MEAN)
    got = augment.apply(sample, Draw(0, 0, 32, 32, 32, 32, False, 0, rotated(IDENTITY, 90.0)))
    np.testing.assert_array_equal(got['label'], np.rot90(sample['label']))
    np.testing.assert_array_equal(got['image'], np.rot90(sample['image']))
    many = {**sample, 'image': np.repeat(sample['image'], 3, 2)}
    turned = Augment((32, 32), mean=3 * MEAN).apply(
        many, Draw(0, 0, 32, 32, 32, 32, False, 0, rotated(IDENTITY, 90.0))
    )
    np.testing.assert_array_equal(turned['image'], np.rot90(many['image']))


def test_what_is_off_takes_no_random_number():
    """Runs from before the further operations go on with the same draws."""
    label = np.zeros((80, 90), np.uint8)
    old = Augment((33, 33)).draw(np.random.default_rng(15), 80, 90, label)
    new = Augment((33, 33), jitter=(0.4, 0.3, 0.2, 0.1), blur=1.0, noise=4.0, grey=1.0, rotation=10.0)
    draw = new.draw(np.random.default_rng(15), 80, 90, label)
    assert old[:8] == draw[:8] and old.warp is None and old.colors == ()
    assert sorted(op[0] for op in draw.colors[:4]) == ['brightness', 'contrast', 'hue', 'saturation']
    assert [op[0] for op in draw.colors[4:]] == ['grey', 'blur', 'noise'] and draw.warp


def test_jitter_is_even_and_in_random_order():
    rng = np.random.default_rng(16)
    augment = Augment((33, 33), jitter=(0.4, 0.0, 1.0, 0.1), jitter_share=0.8)
    draws = [augment.draw(rng, 40, 40).colors for _ in range(2000)]
    drawn = [dict(colors) for colors in draws if colors]
    assert 0.77 < len(drawn) / 2000 < 0.83
    assert 0.45 < np.mean([colors[0][0] < colors[1][0] for colors in draws if colors]) < 0.55
    for kind, low, high in (('brightness', 0.6, 1.4), ('saturation', 0, 2), ('hue', -0.1, 0.1)):
        counts, _ = np.histogram([each[kind] for each in drawn], bins=8, range=(low, high))
        assert counts.sum() == len(drawn) and counts.min() > 140, counts  # 200 expected, deviation 13


def test_crops_filled_by_a_class_are_drawn_again():
    """As mmseg's RandomCrop: up to ten times, until no class has the share; ignored pixels do not count."""
    label = np.zeros((40, 200), np.uint8)
    label[:, 150:] = 1
    label[:, 190:] = IGNORE
    share = lambda draw: np.bincount(label[:, draw.left : draw.left + draw.width].ravel(), minlength=256)[
        :255
    ]
    draws = {}
    for limit in (1.0, 0.75):
        rng = np.random.default_rng(17)
        augment = Augment((40, 40), scale_range=(1, 1), max_class_share=limit)
        counts = np.array([share(augment.draw(rng, 40, 200, label)) for _ in range(600)])
        draws[limit] = (counts.max(1) < 0.75 * counts.sum(1)).mean()
    # 21 of the 161 places have a class below 3/4.
    places = [np.bincount(label[:, x : x + 40].ravel(), minlength=256)[:255] for x in range(161)]
    good = np.mean([counts.max() < 0.75 * counts.sum() for counts in places])
    assert abs(draws[1.0] - good) < 0.05
    assert abs(draws[0.75] - (1 - (1 - good) ** 11)) < 0.07


def test_crops_around_rare_classes():
    label = np.zeros((90, 120), np.uint8)
    label[10:12, 100:103], label[80, 5], label[:, 60:70] = 1, 2, IGNORE
    augment = Augment((20, 30), scale_range=(1, 1), rare_crop=1.0, frequencies=(0.9, 0.02, 0.01))
    rng = np.random.default_rng(18)
    draws = [augment.draw(rng, 90, 120, label) for _ in range(600)]
    seen = [set(np.unique(label[d.top : d.top + 20, d.left : d.left + 30]).tolist()) for d in draws]
    # Inverse to the frequencies: 0.7 %, 33 % and 66 %.
    assert 0.26 < np.mean([1 in each for each in seen]) < 0.4
    assert 0.59 < np.mean([2 in each for each in seen]) < 0.73
    assert all(0 <= d.top <= 70 and 0 <= d.left <= 90 for d in draws)
    # The pixel lies anywhere in the crop.
    tops = {10 + 1 - d.top for d, each in zip(draws, seen, strict=True) if 1 in each}
    assert len(tops) > 10
    even = Augment((20, 30), scale_range=(1, 1), rare_crop=1.0)
    seen = [
        label[d.top : d.top + 20, d.left : d.left + 30]
        for d in (even.draw(rng, 90, 120, label) for _ in range(300))
    ]
    assert 0.25 < np.mean([(each == 2).any() for each in seen]) < 0.45
    nothing = np.full((90, 120), IGNORE, np.uint8)
    assert augment.draw(rng, 90, 120, nothing).height == 20


class Pair:
    """Two samples: of class 0 and 1 in rows, and of classes 2 to 5 in columns."""

    def __init__(self, size=(40, 60)):
        y, x = np.mgrid[: size[0], : size[1]]
        self.labels = (y // 10 % 2).astype(np.uint8), (2 + x // 15).astype(np.uint8)
        self.labels[1][0] = IGNORE

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.repeat(self.labels[index][..., None] * 20, 3, 2)
        return Sample(name=str(index), image=image, label=self.labels[index])


@pytest.mark.parametrize('kind', ['cutmix', 'classmix', 'copy_paste'])
def test_what_is_pasted(kind):
    source, augment = Pair(), Augment((40, 60), scale_range=(1, 1), flip=False, brightness=0)
    counts = np.array([np.bincount(label.ravel(), minlength=256)[:6] for label in source.labels])
    counts[:, 2] = [0, 1]  # rare
    mix, rng = Mix(source, kind, 0.8, counts), np.random.default_rng(19)
    shares, chosen = [], np.zeros(6)
    for _ in range(400):
        first = augment.apply(source[0], augment.draw(rng, 40, 60))
        mixed = mix.apply(first, augment, rng)
        label, image, other = mixed['label'], mixed['image'], source.labels[1]
        mask = label != source.labels[0]
        np.testing.assert_array_equal(image[mask], np.repeat(other[mask][:, None] * 20, 3, 1))
        np.testing.assert_array_equal(image[~mask], source[0]['image'][~mask])
        classes = set(label[mask].tolist())
        chosen[sorted(classes - {IGNORE})] += 1
        shares.append(mask.mean())
        if kind == 'cutmix' and mask.any():
            y, x = np.nonzero(mask)
            assert mask[y.min() : y.max() + 1, x.min() : x.max() + 1].all()
            np.testing.assert_array_equal(label[mask], other[mask])
        elif kind == 'classmix' and classes:
            assert IGNORE not in classes
            assert mask.sum() == sum((other == k).sum() for k in classes) and len(classes) in (1, 2)
        elif kind == 'copy_paste':
            assert len(classes) <= 1
    changed = np.mean(np.array(shares) > 0)
    if kind == 'copy_paste':
        assert chosen[2] > 0.75 * 400 and chosen[:2].sum() == 0
    else:  # half of the time, the sample itself is the other one
        assert 0.3 < changed < 0.5


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'crop': 33}, r'augment.crop=33: must be two whole numbers'),
        ({'crop': (33, 0)}, r'augment.crop=\(33, 0\)'),
        (
            {'scale_range': (-1, -0.5)},
            'augment.scale_range=.*: must be two numbers from 0.1 to 10',
        ),
        ({'grey': 5}, 'augment.grey=5: must be a number from 0 to 1'),
        ({'resize_short': -3}, 'augment.resize_short=-3'),
        ({'jitter': (0, 0, 0, 5.0)}, 'augment.jitter'),
        ({'mean': (-1, 0, 0)}, 'input.mean'),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Augment(**{'crop': (33, 33), **settings})


def test_padding_needs_a_level_for_each_channel():
    sample = {'name': '', 'image': np.zeros((40, 40, 4), np.uint8), 'label': np.zeros((40, 40), np.uint8)}
    augment = Augment((33, 33))  # whether an image is padded is drawn
    with pytest.raises(ConfigError, match='the images have 4 channels: give a level for each'):
        augment.apply(sample, Draw(0, 0, 33, 33, 33, 33, False, 0))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (('mixup', 0.5), "unknown augment.mix 'mixup'; did you mean 'cutmix'"),
        (('cutmix', 5), 'augment.mix_share=5'),
        (('copy_paste', 0.5), 'needs counts'),
        (('copy_paste', 0.5, np.ones((3, 6), int)), r'2 rows, not all 0; its shape is \(3, 6\)'),
        (('copy_paste', 0.5, np.zeros((2, 6), int)), '2 rows, not all 0'),
    ],
)
def test_a_mix_of_another_kind_is_refused(settings, message):
    """Any other kind was cutmix."""
    with pytest.raises(ConfigError, match=message):
        Mix(Pair(), *settings)
