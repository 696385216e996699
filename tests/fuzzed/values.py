"""Values and bytes that should not be."""

import numpy as np

TEXTS = (
    '', ' ', 'x', '0', '-1', '1e999', 'nan', 'inf', 'None', 'True', '()', '[]', '{}', '(1,', "'", '"', '\\',
    '%s', 'é', '日本語', '\u202e', '\ud800', '\0', '\n', 'a\nb', 'a' * 5000, '~', '/', '..', '/dev/null',
    '1,2', '1,2,3', '1.5,2', ',', ',,', '33,33', '-5,5', '1e3,2', '0x10', '1_000', '1+1', '[1,2]', '(3,)',
    '{"a":1}', 'b"x"', '1j', '99999999999999999999', '-0.0', '5e-324', 'true', 'FULL', 'full ', 'lambda: 1',
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, float('nan'),
    float('inf'), -float('inf'), '', 'x', 'é', '\ud800', b'x', (), [], {}, (1,), [1, 2], (1, 2, 3),
    ('a',), ((1, 2),),
    [None], [float('nan')], {'a': 1}, 1j, (True, False), np.float32(1), np.int64(3), object(), range(3),
    {1, 2},
)  # fmt: skip


def some_number(rng):
    """A number of any size and kind."""
    kind = rng.integers(4)
    if kind == 0:
        return int(rng.integers(-5, 70))
    if kind == 1:
        return float(rng.normal() * 10.0 ** rng.integers(-6, 7))
    if kind == 2:
        return int(rng.integers(-(2**62), 2**62)) * int(rng.integers(1, 9))
    return float(rng.integers(-100, 100))


def damaged(rng, data):
    """Bytes with flips, cuts, gaps, additions, or wrong numbers in the head; and what was done."""
    data, kind = (
        bytearray(data),
        ('flip', 'flips', 'cut', 'gap', 'zeros', 'more', 'head', 'swap')[rng.integers(8)],
    )
    place = int(rng.integers(len(data)))
    if kind in ('flip', 'flips'):
        for _ in range(1 if kind == 'flip' else int(rng.integers(2, 40))):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == 'cut':
        data = data[:place]
    elif kind == 'gap':
        del data[place : place + int(rng.integers(1, 200))]
    elif kind == 'zeros':
        count = min(int(rng.integers(1, 300)), len(data) - place)
        data[place : place + count] = bytes(count)
    elif kind == 'more':
        data[place:place] = rng.bytes(int(rng.integers(1, 300)))
    elif kind == 'head':
        for _ in range(int(rng.integers(1, 5))):
            data[rng.integers(min(len(data), 40))] = int(rng.choice([0, 1, 127, 128, 255]))
    else:
        half = len(data) // 2
        data = data[half:] + data[:half]
    return bytes(data), kind
