"""Pictures and files that a run leaves."""

import json
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ann_jax.errors import SaveError
from ann_jax.evaluation.report import Report
from ann_jax.inference import pictures
from ann_jax.modes.evaluation_name import name_evaluation
from ann_jax.runs.record import Record
from ann_jax.typing import IGNORE
from configs import scenes

COLORS = ((255, 0, 0), (0, 200, 0), (9, 9, 9))


def test_colorize_and_overlay_by_definition():
    label = np.array([[0, 1], [2, IGNORE]], np.uint8)
    image = np.full((2, 2, 3), 100, np.uint8)
    colored = pictures.colorize(label, COLORS)
    assert colored.dtype == np.uint8
    assert colored.tolist() == [[[255, 0, 0], [0, 200, 0]], [[9, 9, 9], [0, 0, 0]]]
    blended = pictures.overlay(image, label, COLORS, opacity=0.5)
    assert blended[0, 0].tolist() == [178, 50, 50]
    assert blended[1, 1].tolist() == [100, 100, 100]  # an ignored pixel shows the image


def test_panel_is_image_truth_prediction_errors_and_legend():
    image = np.full((4, 6, 3), 50, np.uint8)
    truth, prediction = np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    prediction[0], truth[1] = 1, IGNORE
    panel = pictures.panel(image, truth, prediction, COLORS, ('sky', 'road', 'car'), 'a.png', gap=2)
    assert panel.shape[1] == 320  # room for text
    above, below = panel[40:44], panel[64:68]  # after a title and a line of captions; after another line
    np.testing.assert_array_equal(above[:, :6], image)
    np.testing.assert_array_equal(above[:, 8:14], pictures.overlay(image, truth, COLORS))
    np.testing.assert_array_equal(below[:, :6], pictures.overlay(image, prediction, COLORS))
    errors = below[:, 8:14]
    assert (errors[0] == pictures.WRONG).all() and not errors[1].any()
    assert (errors[2:] == 96 + 50 // 2).all()
    assert (above[:, 6:8] == 255).all() and (above[:, 14:] == 255).all()
    legend = panel[68:]
    shown = [(legend == color).all(-1).any() for color in COLORS]
    assert shown == [True, True, False] and (panel[:20] != 255).any()  # the title


def test_scores_are_written_and_an_absent_class_is_null(tmp_path):
    record = Record(tmp_path)
    report = Report(record, ('sky', 'road', 'car'), COLORS, {'flip': False})
    scores = report.scores(7, 'val', np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    report.picture(7, 'city/one', *(np.zeros((4, 4, 3), np.uint8), *np.zeros((2, 4, 4), np.uint8)))
    record.close()
    record = json.loads((tmp_path / 'metrics.json').read_text())
    assert record['step'] == 7 and record['split'] == 'val' and record['protocol'] == {'flip': False}
    assert record['iou'] == {'sky': 3 / 4, 'road': 4 / 5, 'car': None}
    assert record['miou'] == scores.miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert record['pixel_accuracy'] == 7 / 8
    assert not list(tmp_path.glob('*.partial'))
    with Image.open(tmp_path / 'pictures' / 'city_one.png') as picture:
        assert picture.size == (320, 92)
    assert 'car' in report.table(scores)


@pytest.mark.parametrize(
    ('settings', 'name'),
    [
        ({}, ''),
        ({'eval.flip': True, 'eval.scales': (0.5, 1.0)}, 'scales=0.5,1.0 flip=True'),
        ({'dataset.eval_split': 'test'}, 'test'),
        ({'eval.limit': 0}, 'limit=0'),
        ({'model.dtype': 'bfloat16', 'eval.batch_size': 7}, 'dtype=bfloat16'),
        ({'dataset.name': 'camvid'}, 'name=camvid'),
        ({'dataset.label_map': '0:1'}, 'label_map=0:1'),
        ({'dataset.labels': 'other/{split}'}, 'labels=other/{split}'),
        ({'dataset.scenes.seed': 7, 'dataset.scenes.train_count': 9}, 'scenes.seed=7'),
    ],
)
def test_an_evaluation_that_differs_from_the_training_has_a_name(settings, name, tmp_path):
    config = scenes.get_config('runlocal')
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    config.update_from_flattened_dict(settings)
    assert name_evaluation(config, tmp_path, tmp_path) == name
    here, there = (name_evaluation(config, tmp_path, tmp_path / each / 'resnet') for each in 'ab')
    assert re.fullmatch(f'{name} from=resnet-......'.strip(), here) and here != there
    for text in ('{}', 'null', '[]'):  # no run
        (tmp_path / 'config.json').write_text(text)
        assert name_evaluation(config, tmp_path, Path('weights/resnet')) == ''
    assert name_evaluation(config, tmp_path / 'absent', Path('weights/resnet')) == ''


def test_scores_of_a_source_of_ones_own_are_those_of_no_other(tmp_path):
    config = scenes.get_config('runlocal')
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    assert name_evaluation(config, tmp_path, tmp_path, 'stripes x 8') == 'source=stripes x 8'
    (tmp_path / 'metrics.json').write_text(json.dumps({'protocol': {'source': 'stripes x 8'}}))
    assert name_evaluation(config, tmp_path, tmp_path, 'stripes x 8') == ''
    assert name_evaluation(config, tmp_path, tmp_path) == 'source=config'


def test_evaluations_of_other_data_of_one_name_lie_apart(tmp_path):
    config = scenes.get_config('runlocal')
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    names = set()
    for root in ('/a/camvid', '/b/camvid'):
        config.dataset.root = root
        names.add(name_evaluation(config, tmp_path, tmp_path))
    assert len(names) == 2 and all(name.startswith('root=camvid-') for name in names)


def test_a_root_may_be_written_otherwise(tmp_path, monkeypatch):
    """The same folder from here, from the home, with a slash at its end: its scores are those of the run."""
    (tmp_path / 'data/mine').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    config = scenes.get_config('runlocal')
    config.dataset.root = 'data/mine'
    (tmp_path / 'config.json').write_text(json.dumps(config.to_dict()))
    for root in ('data/mine', 'data/mine/', '~/data/mine', str(tmp_path / 'data/mine')):
        config.dataset.root = root
        assert name_evaluation(config, tmp_path, tmp_path) == ''
    config.dataset.root = 'data'
    assert name_evaluation(config, tmp_path, tmp_path).startswith('root=data-')


def test_scores_of_other_weights_without_a_run_lie_apart(tmp_path):
    config = scenes.get_config('runlocal')
    (tmp_path / 'metrics.json').write_text(json.dumps({'protocol': {'weights': 'weights/a'}}))
    assert name_evaluation(config, tmp_path, Path('weights/a')) == ''
    assert name_evaluation(config, tmp_path, Path('weights/b')).startswith('from=b-')


def test_named_scores_lie_beside_those_of_the_training(tmp_path):
    record, confusion = Record(tmp_path), np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    for name in ('', 'test scales=0.5,1.0 crop=3/4'):
        report = Report(record, ('sky', 'road', 'car'), COLORS, {'name': name}, name)
        report.scores(7, 'val', confusion)
        report.picture(7, 'one', *(np.zeros((4, 4, 3), np.uint8), *np.zeros((2, 4, 4), np.uint8)))
    record.close()
    files = {
        path.name: json.loads(path.read_text())['protocol']['name'] for path in tmp_path.glob('metrics*')
    }
    assert files == {'metrics.json': '', 'metrics-test_scales=0.5,1.0_crop=3_4.json': name}
    assert len(list((tmp_path / 'pictures').iterdir())) == 2
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert {'val/miou', 'val__test_scales_0.5_1.0_crop_3/4_/miou'} <= set(events.Tags()['scalars'])


def test_a_full_disk_is_an_error_at_once(tmp_path):
    record = Record(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
        with pytest.raises(SaveError, match='cannot write .*Free space'):
            for step in range(1000):
                record.scalars(step, {'loss': 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    record.close()


def test_curves_of_a_resumed_run_replace_those_after_its_first_step(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    for first, last, value in ((1, 4, 1.0), (3, 5, 2.0)):
        record = Record(tmp_path, first_step=first)
        for step in range(first, last + 1):
            record.scalars(step, {'train/loss': value})
        record.close()
        time.sleep(1.1)  # the name of an event file holds its second
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    got = [(event.step, event.value) for event in events.Scalars('train/loss')]
    assert got == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_pictures_of_odd_names_make_no_noise(tmp_path, caplog):
    caplog.set_level('INFO')
    record = Record(tmp_path)
    record.picture(1, "a<i>0&'q'", np.zeros((4, 4, 3), np.uint8))
    record.close()
    assert not caplog.records and (tmp_path / 'pictures' / "a<i>0&'q'.png").is_file()
