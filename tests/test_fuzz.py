"""A few seeded inputs of each kind, which are used rightly or refused in one line; hundreds by `-m slow`."""

import fuzz
import numpy as np
import pytest

pytestmark = [
    pytest.mark.usefixtures('compiled_fast'),
    pytest.mark.filterwarnings('ignore'),  # of decoders and NumPy about what is odd here
]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return fuzz.Whole(tmp_path_factory.mktemp('fuzz'))


def generator(kind, whole, folder):
    if kind == 'config':
        return fuzz.settings
    if kind == 'images':
        return fuzz.images
    if kind == 'weights':
        return fuzz.weights_of(whole)
    if kind == 'arrays':
        return fuzz.arrays_for(fuzz.Segmenter(fuzz.open_network(whole.path)))
    return fuzz.checkpoints_of(fuzz.make_run(folder / 'run'))


@pytest.mark.parametrize(('kind', 'count'), [('config', 30), ('images', 50), ('weights', 20)])
def test_a_few_inputs_that_should_not_be(kind, count, whole, tmp_path, capfd):
    verdicts = fuzz.run(kind, generator(kind, whole, tmp_path), 0, count, verbose=False)
    said = capfd.readouterr().out
    assert verdicts.keys() <= {'used', 'refused'} and verdicts.total() == count, said
    assert verdicts['refused'] > count // 3, verdicts


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['config', 'images', 'weights', 'arrays', 'checkpoints'])
def test_many_inputs_that_should_not_be(kind, whole, tmp_path, capfd):
    verdicts = fuzz.run(kind, generator(kind, whole, tmp_path), 3, 120, verbose=False)
    assert verdicts.keys() <= {'used', 'refused'} and verdicts.total() == 120, capfd.readouterr().out


def test_the_judge_sees_what_is_wrong(tmp_path, monkeypatch):
    """A traceback, a hang, a wrong result, an empty message and a long one."""

    def raises(error):
        raise error

    monkeypatch.setattr(fuzz, 'LIMIT', 1)
    cases = {
        'TRACEBACK': lambda: 1 / 0,
        'HANG': lambda: fuzz.time.sleep(5),
        'WRONG': lambda: 'other pixels',
        'used': lambda: '',
        'refused': lambda: raises(fuzz.DataError('a.png is damaged: copy it again')),
        'unclear': lambda: raises(fuzz.DataError('')),
    }
    assert {name: fuzz.judge(case)[0] for name, case in cases.items()} == {name: name for name in cases}
    path = tmp_path / 'a.png'
    fuzz.Image.fromarray(np.ones((3, 4, 3), np.uint8)).save(path)
    assert fuzz.read(path, np.zeros((3, 4, 3), np.uint8)) and not fuzz.read(path)
