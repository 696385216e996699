"""The page of a run: what it shows is what the run wrote, every text is escaped, and nothing is loaded."""

import base64
import csv
import gzip
import html.parser
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from ann_jax.errors import ConfigError, DataError
from ann_jax.evaluation import page
from ann_jax.evaluation.details import read_details
from ann_jax.evaluation.gather import gather
from ann_jax.evaluation.report import Report
from ann_jax.evaluation.samples import SIDE, Samples
from ann_jax.modes import report as mode
from ann_jax.runs.events import read_scalars
from ann_jax.runs.record import Record
from ann_jax.typing import IGNORE

CLASSES = ('</script><script>alert(1)</script>', 'a & "b"', '道路', "it's <i>", 'never')
COLORS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0), (1, 2, 3))
K = len(CLASSES)
RNG = np.random.default_rng(0)


def samples():
    """Twelve images; the n-th is right in about n of 12 of its pixels."""
    for number in RNG.permutation(12).tolist():
        truth = RNG.integers(0, 4, (20, 30)).astype(np.uint8)
        prediction = np.where(RNG.random(truth.shape) < (number + 1) / 13, truth, (truth + 1) % 4)
        truth[:2] = IGNORE
        yield (
            f'city/{number}',
            RNG.integers(0, 256, (20, 30, 3), np.uint8),
            truth,
            prediction.astype(np.uint8),
        )


SAMPLES = list(samples())


def brute(truth, prediction):
    """mIoU by its definition."""
    valid = truth != IGNORE
    t, p = truth[valid], prediction[valid]
    unions = [((t == k) | (p == k)).sum() for k in range(K)]
    return np.mean([((t == k) & (p == k)).sum() / u for k, u in enumerate(unions) if u])


def confusion():
    total = np.zeros((K, K), np.int64)
    for _, _, truth, prediction in SAMPLES:
        valid = truth != IGNORE
        np.add.at(total, (truth[valid], prediction[valid]), 1)
    return total


def write_run(workdir, name='', count=3, seconds=1.5):
    record = Record(workdir)
    record.config(1, {'train': {'steps': 20, 'note': '<b>&'}, 'seed': len(name)})
    for step in range(1, 21):
        record.scalars(step, {'train/loss': 2 / step, 'train/learning_rate': 0.1, 'train/gradient_norm': 0.0})
    kept = Samples(K, count, 40)
    for sample in SAMPLES:
        kept.add(*sample)
    writer = Report(record, CLASSES, COLORS, {'flip': False, 'scales': (0.5, 1.0)}, name)
    writer.scores(20, 'val', confusion(), samples=kept, seconds=seconds)
    record.close()
    (workdir / 'log.txt').write_text(
        '2026-11-27 03:54:27,326 INFO ann_jax 0.2.0, jax 0.10.2, flax 0.12.8, python 3.11.7, <Linux>\n'
        '2026-11-27 03:54:28,101 INFO 1,234 parameters, 56 of them frozen\n'
        '2026-11-27 03:56:59,727 INFO step 10: 0.275 s per step, 0.001 s of it waiting for data; saved\n',
        encoding='utf-8',
    )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp('runs') / 'a<b'
    write_run(path)
    return path


class Page(html.parser.HTMLParser):
    """The elements of a page, and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.tables, self.cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == 'table':
            self.tables.append([])
        if tag == 'tr':
            self.tables[-1].append([])
        if tag in ('td', 'th'):
            self.tables[-1][-1].append('')
            self.cell = True

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] not in ('script', 'style'):
            self.text.append(data)
            if self.cell:
                self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ('td', 'th')


@pytest.fixture(scope='module')
def written(workdir):
    pytest.importorskip('bokeh', reason='draws the plots')
    file = mode.report(str(workdir))
    assert file == workdir / 'report.html'
    text = file.read_text(encoding='utf-8')
    return text, Page(text)


def test_nothing_is_loaded_and_every_text_is_escaped(written):
    text, parsed = written
    links = [value for _, attrs in parsed.elements for key, value in attrs.items() if key in ('src', 'href')]
    assert links and all(link.startswith('data:image/') for link in links)
    assert {'link', 'iframe', 'object', 'base', 'i', 'b<'}.isdisjoint(tag for tag, _ in parsed.elements)
    assert not re.search(r'@import|url\((?!data:)', re.sub(r'<script.*?</script>', '', text, flags=re.DOTALL))
    policy = next(attrs['content'] for tag, attrs in parsed.elements if 'http-equiv' in attrs)
    assert policy.startswith("default-src 'none'; img-src data: blob:;") and 'http' not in policy
    assert (
        'script>alert(1)' not in text.replace('&lt;', '').replace('u003c', '') or '<script>alert' not in text
    )
    assert '<script>alert' not in text
    assert CLASSES[0] in ''.join(parsed.text) and '<b>&' in ''.join(parsed.text)


def test_classes_are_sorted_with_their_pixels(written):
    matrix = confusion()
    hits = np.diag(matrix)
    iou = hits / np.maximum(matrix.sum(0) + matrix.sum(1) - hits, 1)
    order = sorted(range(K), key=lambda i: -1 if CLASSES[i] == 'never' else iou[i], reverse=True)
    rows = next(table for table in written[1].tables if table[0][0] == 'class')[1:]
    assert [row[0] for row in rows] == [CLASSES[i] for i in order]
    assert [row[1] for row in rows[:-1]] == [f'{100 * iou[i]:.2f}' for i in order[:-1]]
    assert rows[-1][1] == '' and [row[-2] for row in rows] == [f'{matrix[i].sum():,}' for i in order]
    scores = written[1].tables[0][1]
    assert scores[:6] == ['a<b', 'of the training', 'val', '40', '20', f'{100 * iou[:4].mean():.2f}']
    assert scores[-1] == 'flip=False, scales=0.5, 1.0'


def decoded(link):
    with Image.open(io.BytesIO(base64.b64decode(link.partition(',')[2]))) as image:
        return np.asarray(image.convert('RGBA'))


def test_worst_and_best_images_with_their_layers(written):
    ranked = sorted(SAMPLES, key=lambda sample: brute(*sample[2:]))
    names = [re.match(r'city/\d+', data)[0] for data in written[1].text if re.match(r'city/\d+$', data)]
    assert names == [sample[0] for sample in (*ranked[:3], *ranked[:-4:-1])]
    images = [attrs for tag, attrs in written[1].elements if tag == 'img'][:4]
    _, _, truth, prediction = ranked[0]
    layers = {attrs['data-layer']: decoded(attrs['src']) for attrs in images[1:]}
    colors = np.array((*COLORS, *[(0, 0, 0)] * 251))
    for name, ids in (('truth', truth), ('prediction', prediction)):
        shown = ids != IGNORE
        np.testing.assert_array_equal(layers[name][..., :3][shown], colors[ids][shown])
        assert (layers[name][..., 3] > 0).tolist() == shown.tolist()
    assert (layers['errors'][truth == IGNORE] == (0, 0, 0, 255)).all()
    wrong = (layers['errors'][..., :3] == page.WRONG).all(-1)
    np.testing.assert_array_equal(wrong, (truth != prediction) & (truth != IGNORE))


def test_plots_hold_the_matrix_and_the_curves(written):
    found = re.search(r"docs_json = '(.*?)';\n", written[0], re.DOTALL)[1]
    text = found.replace('\\\\', '\\').replace('&lt;', '<').replace('&gt;', '>').replace('&#x27;', "'")
    assert '道路' in text or '\\u9053\\u8def' in text
    arrays = re.findall(
        r'"array":\{"type":"bytes","data":"([^"]+)"\},"shape":\[5,5\],"dtype":"float64"', text
    )
    (data,) = (base64.b64decode(each) for each in arrays)
    data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
    counts = np.frombuffer(data).reshape(K, K)
    np.testing.assert_array_equal(counts, confusion())
    parts = ''.join(written[1].text)
    assert '1,234 parameters, 56 of them frozen' in parts
    assert '0.275 s per step' in parts and '40 images in 1.5 s' in parts and '2026-11-27 03:54:27' in parts


def test_runs_side_by_side(workdir, tmp_path, capsys):
    pytest.importorskip('bokeh', reason='draws the plots')
    write_run(tmp_path / 'one')
    write_run(tmp_path / 'two', name='flip=True')
    (tmp_path / 'empty').mkdir()
    file = mode.report(f'{tmp_path}/*')
    assert file == tmp_path / 'report.html' and '2 runs' in capsys.readouterr().out
    parsed = Page(file.read_text(encoding='utf-8'))
    scores = parsed.tables[0]
    assert [row[:2] for row in scores[1:]] == [['one', 'of the training'], ['two', 'flip=True']]
    differing = next(table for table in parsed.tables if table[0] == ['', 'one', 'two'])
    assert differing[1:] == [['seed', '0', '9']]
    assert len([1 for tag, attrs in parsed.elements if attrs.get('class') == 'sample']) == 12
    for text, kind in ((f'{tmp_path}/no*', ConfigError), ('', ConfigError), (f'{tmp_path}/empty', DataError)):
        with pytest.raises(kind):
            mode.report(text)


def test_runs_of_one_name_are_told_apart(tmp_path):
    pytest.importorskip('bokeh', reason='draws the plots')
    folders = [tmp_path / first / 'seed0' for first in ('plain', 'dice')]
    for folder in folders:
        write_run(folder)
    file = mode.report(','.join(map(str, [*folders, folders[0]])))
    assert file == tmp_path / 'report.html'
    scores = Page(file.read_text(encoding='utf-8')).tables[0]
    assert [row[0] for row in scores[1:]] == ['plain/seed0', 'dice/seed0']
    write_run(folders[0] / 'more')
    assert mode._top([folders[0], folders[0] / 'more']) == tmp_path / 'plain'  # a run has a page of its own


def test_facts_are_those_of_a_long_log_too(tmp_path):
    write_run(tmp_path)
    log = (tmp_path / 'log.txt').read_text(encoding='utf-8')
    more = '2026-11-28 08:00:00,000 WARNING step 9: a.png in place of a bad sample\n' * 600
    (tmp_path / 'log.txt').write_text(log + more, encoding='utf-8')
    run = gather(tmp_path)
    assert 'versions' in run.facts and len(run.log) == 500


def test_a_run_without_details_and_a_machine_without_bokeh(tmp_path, monkeypatch):
    pytest.importorskip('bokeh', reason='draws the plots')
    write_run(tmp_path)
    for file in (tmp_path / 'evaluation').iterdir():
        file.unlink()
    (tmp_path / 'evaluation' / 'details.json').write_text('{"classes": 3', encoding='utf-8')
    assert mode.report_of_run(tmp_path) == f'report: {tmp_path / "report.html"}'
    parsed = Page((tmp_path / 'report.html').read_text(encoding='utf-8'))
    rows = next(table for table in parsed.tables if table[0][0] == 'class')
    assert len(rows) == K + 1 and not [1 for tag, _ in parsed.elements if tag == 'img']
    monkeypatch.setattr(page.importlib.util, 'find_spec', lambda name: None)
    line = mode.report_of_run(tmp_path)
    assert "pip install 'ann_jax[report]'" in line and '--mode=report' in line and '\n' not in line
    with pytest.raises(ConfigError, match='takes Bokeh'):
        mode.report(str(tmp_path))


def test_what_is_damaged_is_told(tmp_path, caplog):
    write_run(tmp_path)
    for name, told in (('metrics.json', 'metrics.json'), ('evaluation/confusion.csv', 'evaluation')):
        file = tmp_path / name
        before = file.read_bytes()
        assert gather(tmp_path).scored[0].details.classes and not caplog.records
        file.write_bytes(before[: len(before) // 2])
        gather(tmp_path)
        assert (
            caplog.messages[0].startswith(f'{tmp_path / told} cannot be read (') and len(caplog.messages) == 1
        )
        file.write_bytes(before)
        caplog.clear()


def test_details_are_those_of_the_images(workdir):
    folder = workdir / 'evaluation'
    with open(folder / 'confusion.csv', encoding='utf-8', newline='') as file:
        heads, *rows = csv.reader(file)
    assert tuple(heads[1:]) == CLASSES == tuple(row[0] for row in rows)
    np.testing.assert_array_equal([row[1:] for row in rows], confusion().astype(str))
    with open(folder / 'images.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    for row, (name, _, truth, prediction) in zip(rows, SAMPLES, strict=True):
        valid = truth != IGNORE
        assert row['name'] == name and int(row['pixels']) == valid.sum()
        assert float(row['miou']) == pytest.approx(brute(truth, prediction))
        assert float(row['pixel_accuracy']) == pytest.approx((truth == prediction)[valid].mean())
    details = read_details(folder)
    ranked = sorted(SAMPLES, key=lambda sample: brute(*sample[2:]))
    np.testing.assert_array_equal(details.samples['worst'][0].truth, ranked[0][2])
    np.testing.assert_array_equal(details.samples['best'][0].prediction, ranked[-1][3])
    record = json.loads((folder / 'details.json').read_text(encoding='utf-8'))
    assert {'ann_jax', 'jax', 'flax', 'python'} == set(record['about']['versions'])


def test_large_images_are_kept_small_and_fewer_replace_more(tmp_path):
    kept = Samples(K, 4, 2)
    kept.add('large', *(np.zeros((700, 2 * SIDE, *rest), np.uint8) for rest in ((4,), (), ())))
    kept.add('unlabelled', *(np.full((9, 9, *rest), IGNORE, np.uint8) for rest in ((3,), (), ())))
    assert [score.name for score in kept.scores] == ['large']
    assert kept.worst()[0].image.shape == (350, SIDE, 3) and not kept.best()
    namesakes = Samples(K, 1, 2)
    for prediction in (0, 1):
        image, truth = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8)
        namesakes.add('same', image, truth, truth + np.uint8(prediction))
    assert [each.score.miou for each in (*namesakes.worst(), *namesakes.best())] == [0, 1]
    write_run(tmp_path, count=5)
    write_run(tmp_path, count=1)
    assert len(list((tmp_path / 'evaluation').glob('*.jpg'))) == 2


def test_curves_are_those_that_tensorboard_reads(tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    for first, last, value in ((1, 5, 1.0), (3, 4, 2.0)):
        record = Record(tmp_path, first_step=first)
        for step in range(first, last + 1):
            record.scalars(step, {'train/loss': value, 'val/iou/道路': step})
        record.picture(first, 'city/a', np.zeros((300, 3000, 3), np.uint8))
        record.close()
        time.sleep(1.1)  # the name of an event file holds its second
    (file, *_) = sorted((tmp_path / 'tensorboard').iterdir(), reverse=True)
    curves = read_scalars(tmp_path / 'tensorboard')
    events = accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert set(curves) == set(events.Tags()['scalars'])
    for name, points in curves.items():
        assert list(points.items()) == [(event.step, event.value) for event in events.Scalars(name)]
    (tag,) = events.Tags()['images']
    with Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)) as picture:
        assert picture.format == 'JPEG' and picture.size == (1024, 102)
    data = file.read_bytes()
    for damaged in (data[:-7], data[:40] + bytes(60) + data[100:], data[:30] + b'\xff' * 40):
        file.write_bytes(damaged)  # a process was killed, or a disk is bad: what comes before counts
        assert read_scalars(tmp_path / 'tensorboard')['train/loss'][1] == 1.0


@pytest.mark.slow
def test_a_browser_shows_it_without_a_request(workdir, written):
    """Needs playwright, and a Chromium of the system."""
    sync_api = pytest.importorskip('playwright.sync_api', reason='drives a browser')
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        pytest.skip('there is no Chromium')
    requests, problems = [], []
    with sync_api.sync_playwright() as play:
        shown = play.chromium.launch(executable_path=browser, args=['--no-sandbox']).new_page()
        shown.on('request', lambda request: requests.append(request.url))
        shown.on('pageerror', lambda error: problems.append(str(error)))
        shown.on('console', lambda said: said.type in ('error', 'warning') and problems.append(said.text))
        shown.goto((workdir / 'report.html').as_uri())
        matrix = shown.locator('.bk-Figure').last
        matrix.wait_for()
        matrix.scroll_into_view_if_needed()
        box = matrix.bounding_box()
        for step in (0, 3):  # a mouse that comes, and moves
            shown.mouse.move(box['x'] + 0.3 * box['width'] + step, box['y'] + 0.15 * box['height'])
            shown.wait_for_timeout(300)
        shown.get_by_text('truth:').wait_for()
        told = shown.locator('.bk-Tooltip').last.evaluate('each => each.shadowRoot.textContent')
        assert CLASSES[0] in told and f'{confusion()[0, 0]:,}' in told
        sample = shown.locator('.sample').first
        sample.locator('input').fill('80')
        clip = lambda name: sample.locator(f'[data-layer={name}]').evaluate('each => each.style.clipPath')
        assert (clip('truth'), clip('prediction')) == ('inset(0px 20% 0px 0px)', 'inset(0px 0px 0px 80%)')
        shown.select_option('#right', 'errors')
        assert sample.locator('[data-layer=errors]').is_visible()
        assert not sample.locator('[data-layer=prediction]').is_visible()
    assert not problems and all(url.startswith(('file:', 'data:', 'blob:')) for url in requests)
