"""Colours of datasets that have none of their own: how far apart they are, by the published formulas."""

import numpy as np
import pytest

from ann_jax.data.classes import DATASETS
from ann_jax.data.own.settings import own_dataset
from ann_jax.data.palette import distinct_colors

# sRGB (IEC 61966-2-1) to XYZ; deuteranopia of severity 1 (Machado, Oliveira, Fernandes 2009), both linear.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def lab(colors, seen=None):
    """CIE L*a*b* under D65 of sRGB colours, (N, 3)."""
    rgb = np.array(colors) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    if seen is not None:
        linear = np.clip(linear @ seen.T, 0, 1)
    ratio = linear @ XYZ.T / (0.95047, 1.0, 1.08883)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(one, other):
    """The formula as Sharma, Wu and Dalal (2005) number it, angles in radians, on arrays (..., 3)."""
    raise_7 = lambda c: np.sqrt(c**7 / (c**7 + 25.0**7))
    mean = (np.abs(one[..., 1] + 1j * one[..., 2]) + np.abs(other[..., 1] + 1j * other[..., 2])) / 2
    stretch = 1.5 - raise_7(mean) / 2
    one_c, other_c = (stretch * lab[..., 1] + 1j * lab[..., 2] for lab in (one, other))
    c1, c2 = np.abs(one_c), np.abs(other_c)
    turn = np.angle(other_c * one_c.conj())  # from one hue to the other, from -pi to pi
    d_l, d_c = other[..., 0] - one[..., 0], c2 - c1
    d_h = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2)
    mean_l, mean_c = (one[..., 0] + other[..., 0]) / 2, (c1 + c2) / 2
    hue = np.where(c1 * c2 == 0, np.angle(one_c) + np.angle(other_c), np.angle(one_c) + turn / 2)
    degrees = np.degrees(hue) % 360
    wave = lambda times, shift: np.cos(np.radians(times * degrees + shift))
    t = 1 - 0.17 * wave(1, -30) + 0.24 * wave(2, 0) + 0.32 * wave(3, 6) - 0.2 * wave(4, -63)
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    rotation = -2 * raise_7(mean_c) * np.sin(np.radians(60 * np.exp(-(((degrees - 275) / 25) ** 2))))
    parts = d_l / s_l, d_c / s_c, d_h / s_h
    return np.sqrt(sum(part**2 for part in parts) + rotation * parts[1] * parts[2])


def least(colors, seen=None):
    """The smallest difference of any two colours."""
    values = lab(colors, seen)
    first, second = np.triu_indices(len(values), 1)
    return ciede2000(values[first], values[second]).min()


@pytest.mark.parametrize(
    ('one', 'other', 'expected'),
    [  # of the table of Sharma et al.
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_formula_gives_the_published_differences(one, other, expected):
    assert ciede2000(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('name', ['ade20k', 'coco_stuff', 'pascal_context', 'pascal_context_59', 'nyud_v2'])
def test_classes_without_colours_of_their_own_differ(name):
    colors = DATASETS[name].colors
    assert least((*colors, (0, 0, 0))) >= 10  # black is what has no label
    assert least(colors, DEUTERANOPIA) >= 3


def test_the_fewer_classes_the_more_they_differ():
    for count, normal, deuteranope in ((12, 21, 13), (40, 10, 6.9), (172, 10, 3), (254, 7, 2.4)):
        colors = distinct_colors(count)
        assert len(set(colors)) == count and (least(colors), least(colors, DEUTERANOPIA)) >= (normal, 0)
        assert least(colors, DEUTERANOPIA) >= deuteranope
    assert own_dataset(name='folder', classes='a,b,c').colors == distinct_colors(3)
    assert distinct_colors(300)[254:] == distinct_colors(46)
