"""A few seeded inputs of each kind, which are used rightly or refused in one line; hundreds by `-m slow`."""

import time

import fuzz
import numpy as np
import pytest
from fuzzed import images
from PIL import Image

from ann_jax.errors import DataError

pytestmark = [
    pytest.mark.usefixtures('compiled_fast'),
    pytest.mark.filterwarnings('ignore'),  # of decoders and NumPy about what is odd here
]


def judged(kind, place, seed, count):
    """The verdicts about inputs of a kind."""
    ((_, generate),) = fuzz.generators([kind], place)
    return fuzz.run(kind, generate, seed, count, verbose=False)


@pytest.mark.parametrize(('kind', 'count'), [('config', 30), ('images', 50), ('weights', 20)])
def test_a_few_inputs_that_should_not_be(kind, count, tmp_path, capfd):
    verdicts = judged(kind, tmp_path, 0, count)
    said = capfd.readouterr().out
    assert verdicts.keys() <= {'used', 'refused'} and verdicts.total() == count, said
    assert verdicts['refused'] > count // 3, verdicts


@pytest.mark.slow
@pytest.mark.parametrize('kind', fuzz.KINDS)
def test_many_inputs_that_should_not_be(kind, tmp_path, capfd):
    verdicts = judged(kind, tmp_path, 3, 120)
    assert verdicts.keys() <= {'used', 'refused'} and verdicts.total() == 120, capfd.readouterr().out


def test_the_judge_sees_what_is_wrong(tmp_path, monkeypatch):
    """A traceback, a hang, a wrong result, an empty message and a long one."""

    def raises(error):
        raise error

    def works():
        while True:
            pass

    monkeypatch.setattr(fuzz, 'SECONDS_OF_CPU', 1)
    assert fuzz.judge(works)[0] == 'HANG'
    monkeypatch.setattr(fuzz, 'SECONDS', 1)
    cases = {
        'TRACEBACK': lambda: 1 / 0,
        'HANG': lambda: time.sleep(5),
        'WRONG': lambda: 'other pixels',
        'used': lambda: '',
        'refused': lambda: raises(DataError('a.png is damaged: copy it again')),
        'unclear': lambda: raises(DataError('')),
    }
    assert {name: fuzz.judge(case)[0] for name, case in cases.items()} == {name: name for name in cases}
    path = tmp_path / 'a.png'
    Image.fromarray(np.ones((3, 4, 3), np.uint8)).save(path)
    assert images.read(path, np.zeros((3, 4, 3), np.uint8)) and not images.read(path)
