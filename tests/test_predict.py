"""Predictions from Python and from the command, and exported programs, on a small network."""

import functools
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from reference import assert_close, quick
from small import small_folder

import ann_jax
from ann_jax.config import defaults
from ann_jax.data.classes import DATASETS
from ann_jax.data.scenes import render
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.inference import pictures as class_pictures
from ann_jax.inference.segmenter import Segmenter
from ann_jax.models.ann import ANN
from ann_jax.models.resnet import ResNet
from ann_jax.models.settings import OF_BACKBONE
from ann_jax.modes import predict
from ann_jax.weights import folder as weights

pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module', autouse=True)
def one_network():
    """Commands that compute the same compile it once."""
    made = {}

    def make(weights, **settings):
        key = weights.path, str(settings)
        if key not in made:
            made[key] = Segmenter(weights, **settings)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, 'Segmenter', make)
        yield


def read(path):
    """The pixels of a file."""
    with Image.open(path) as image:
        return np.asarray(image)


SIZES = [(64, 128), (70, 150), (64, 130), (66, 131), (1, 1)]


@pytest.fixture(scope='module')
def seg(folder):
    return ann_jax.load(folder)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Images of several sizes, one of them damaged."""
    path = tmp_path_factory.mktemp('pictures')
    for i, size in enumerate(SIZES):
        image = render((5, i), *np.maximum(size, (64, 128)))[0][: size[0], : size[1]]
        Image.fromarray(image).save(path / f'{i}.png')
    (path / 'damaged.jpg').write_text('no image')
    return path


def expected_logits(folder, image):
    """By the trained network, without folding, canvas or device loop."""
    opened = weights.load(folder)
    c = dict(opened.model)
    model = ANN(len(opened.classes), ResNet(**{name: c.pop(name) for name in OF_BACKBONE}), **c)
    image = (np.float32(image)[None] - np.float32(opened.input['mean'])) / np.float32(opened.input['std'])
    return quick(functools.partial(model.apply, full_size=True))(opened.variables, image).main[0]


def test_three_lines(folder, seg, pictures, tmp_path):
    result = seg(pictures / '0.png')
    image = read(pictures / '0.png')
    logits = np.asarray(expected_logits(folder, image))
    np.testing.assert_array_equal(result.image, image)
    assert (result.ids == logits.argmax(-1)).mean() > 0.999 and result.ids.dtype == np.uint8
    assert_close(result.probabilities(), jax.nn.softmax(logits), 1e-4)
    assert result.classes[0] == 'sky' and result.path == pictures / '0.png'
    result.overlay(tmp_path / 'o.png')
    result.colored(tmp_path / 'c.png')
    np.testing.assert_array_equal(read(tmp_path / 'o.png'), result.overlay())
    assert read(tmp_path / 'c.png')[3, 4].tolist() == list(result.colors[result.ids[3, 4]])


def test_every_kind_of_input_gives_the_same(seg, pictures):
    path = pictures / '1.png'
    image = read(path)
    expected = seg(path).ids
    pillow = Image.fromarray(image)
    for same in (str(path), image, pillow, pillow.convert('RGBA')):
        np.testing.assert_array_equal(seg(same).ids, expected)
        np.testing.assert_array_equal(next(seg.stream(same)).ids, expected)
    for result in seg([path, image]):
        np.testing.assert_array_equal(result.ids, expected)
    grey = image[..., 0]
    np.testing.assert_array_equal(seg(grey).ids, seg(np.stack([grey] * 3, -1)).ids)


def test_pillow_images_are_read_as_their_files(seg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.arange(64 * 128).reshape(64, 128)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / 'turned.png', exif=exif)
    Image.fromarray((ramp * 8).astype(np.uint16)).save(tmp_path / '16.png')
    for path in (tmp_path / 'turned.png', tmp_path / '16.png'):
        with Image.open(path) as image:
            np.testing.assert_array_equal(seg(image).image, seg(path).image)
    assert seg(tmp_path / 'turned.png').image.shape == (128, 64, 3)
    cut = tmp_path / 'cut.png'
    cut.write_bytes((tmp_path / '16.png').read_bytes()[:100])
    with Image.open(cut) as image, pytest.raises(DataError, match='cannot read the image'):
        seg(image)
    assert seg([]) == []


def test_images_of_all_sizes_are_as_alone(folder, seg, pictures):
    results = list(seg.stream(sorted(pictures.glob('*.png'))))
    assert [result.ids.shape for result in results] == SIZES
    for result in results:
        logits = np.asarray(expected_logits(folder, result.image))
        # Where two classes are as good as equal, rounding decides.
        best = np.sort(logits, -1)
        sure = best[..., -1] - best[..., -2] > 1e-3 * np.abs(logits).max()
        np.testing.assert_array_equal(result.ids[sure], logits.argmax(-1)[sure])


def test_bad_input_is_named(seg, pictures, folder):
    with pytest.raises(DataError, match='damaged.jpg'):
        seg(pictures)
    errors = []
    assert len(list(seg.stream(sorted(pictures.iterdir()), errors))) == len(SIZES)
    assert len(errors) == 1 and 'damaged.jpg' in errors[0]
    with pytest.raises(DataError, match=r'shape \(4, 5, 3\) .*float32.* no natural range.*image_range=0,1'):
        seg(np.zeros((4, 5, 3), np.float32))
    with pytest.raises(DataError, match='holds no image'):
        seg(folder)
    for wrong in (None, b'street', 3):
        with pytest.raises(DataError, match='a path, an array or a Pillow image'):
            seg(wrong)
    with pytest.raises(ConfigError, match="'scales'.*are tuples"):
        ann_jax.load(folder, scales=1.0)
    with pytest.raises(ConfigError, match='unknown settings .*scale'):
        ann_jax.load(folder, scale=2)
    with pytest.raises(ConfigError, match='eval.crop'):
        ann_jax.load(folder, crop=(64, 64))
    with pytest.raises(AttributeError, match='lod'):
        ann_jax.lod  # noqa: B018


def test_protocols_and_dtypes_are_settings(folder, seg, pictures):
    path = pictures / '1.png'
    plain = seg(path).probabilities()
    other = ann_jax.load(
        folder, scales=(0.75, 1.0), flip=True, crop=(48, 64), stride=(32, 48), average='probabilities'
    )
    probabilities = other(path).probabilities()
    assert probabilities.shape == plain.shape and 1e-3 < np.abs(probabilities - plain).max()
    assert_close(probabilities.sum(-1), np.ones(plain.shape[:2]), 1e-4)
    half = ann_jax.load(folder, dtype='bfloat16')(path).probabilities()
    assert 1e-5 < np.abs(half - plain).mean() < 0.1


def config_for(folder, **settings):
    config = defaults()
    config.init['from'] = str(folder)
    config.predict.update(settings)
    return config


def test_the_command_writes_every_kind_and_reports_bad_files(folder, pictures, tmp_path, capsys):
    Image.fromarray(read(pictures / '0.png')).save(pictures / '0.bmp')
    try:
        config = config_for(folder, input=str(pictures), write='ids,colors,overlays,probabilities')
        assert predict.predict(config, tmp_path) == 1
    finally:
        (pictures / '0.bmp').unlink()
    printed = capsys.readouterr().out
    assert 'damaged.jpg' in printed and f'{len(SIZES) + 1} of {len(SIZES) + 2} images segmented' in printed
    out = tmp_path / 'predictions'
    assert {path.name for path in out.iterdir()} == {'ids', 'colors', 'overlays', 'probabilities'}
    assert {path.name for path in (out / 'ids').iterdir()} >= {'0_png.png', '0_bmp.png', '1.png'}
    ids = read(out / 'ids' / '1.png')
    probabilities = np.load(out / 'probabilities' / '1.npy')
    assert probabilities.shape == (*ids.shape, 17) and (probabilities.argmax(-1) == ids).mean() > 0.99


def test_processes_share_the_images(folder, pictures, tmp_path, monkeypatch, capsys):
    config = config_for(folder, input=f'{pictures}/?.png', write='ids', output=str(tmp_path / 'all'))
    assert predict.predict(config, tmp_path) == 0
    shares = []
    monkeypatch.setattr(predict, 'refuse_differences', lambda facts: shares.append(facts))
    monkeypatch.setattr(jax, 'process_count', lambda: 7)  # more than there are images
    for index in range(7):
        monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
        config = config_for(folder, input=f'{pictures}/?.png', write='ids', output=str(tmp_path / 'shared'))
        assert predict.predict(config, tmp_path) == 0
    assert len(shares) == 7 and all(each == shares[0] for each in shares)
    printed = capsys.readouterr().out
    assert printed.count('1 of 1 images segmented') == 5 and printed.count('0 of 0') == 2
    for i in range(5):
        np.testing.assert_array_equal(*(read(tmp_path / each / f'ids/{i}.png') for each in ('all', 'shared')))
    for kinds in ('submission', 'ids,areas'):
        with pytest.raises(ConfigError, match='one process writes it for all images'):
            predict.predict(config_for(folder, input=str(pictures), write=kinds), tmp_path)


def test_patterns_panels_and_nothing_to_do(folder, pictures, tmp_path):
    truth = tmp_path / 'truth'
    truth.mkdir()
    Image.fromarray(np.zeros((70, 150), np.uint8)).save(truth / '1.png')
    config = config_for(folder, input=str(pictures / '1.p*'), write='panels', truth=str(truth))
    config.dataset.name = 'camvid'
    assert predict.predict(config, tmp_path) == 0
    assert read(tmp_path / 'predictions' / 'panels' / '1.png').shape[1] == 320
    for settings, message in [
        ({'input': ''}, '--config.predict.input'),
        ({'input': str(tmp_path / 'no*')}, 'no such file, folder or pattern'),
        ({'input': str(pictures), 'write': 'masks'}, "unknown predict.write 'masks'"),
        ({'input': str(pictures), 'write': 'panels'}, 'labels in --config.predict.truth'),
    ]:
        with pytest.raises(ConfigError, match=message):
            predict.predict(config_for(folder, **{'truth': '', **settings}), tmp_path)
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links' / 'loop.png').symlink_to('loop.png')
    with pytest.raises(DataError, match='none of the 1 images could be used'):
        predict.predict(config_for(folder, input=str(tmp_path / 'links'), truth=''), tmp_path)


def test_a_truth_that_nothing_compares_with_is_told(folder, tmp_path, caplog):
    with pytest.raises(ConfigError, match='no such file'):
        predict.predict(config_for(folder, input=str(tmp_path / '*.png'), truth='labels'), tmp_path)
    assert 'predict.truth=labels has no effect: it needs panels in predict.write' in caplog.text


def test_panels_know_own_folders_and_go_on_without_a_truth(folder, pictures, tmp_path, capsys):
    colors = {'sky': (9, 9, 9), 'rest': (200, 0, 7)}
    (tmp_path / 'names.txt').write_text(''.join(f'{n} {r} {g} {b}\n' for n, (r, g, b) in colors.items()))
    truth = tmp_path / 'truth'
    truth.mkdir()
    label = Image.fromarray(np.full((70, 150, 3), colors['rest'], np.uint8))
    label.save(truth / '1_mask.png')
    Image.fromarray(np.full((64, 131), 77, np.uint8)).save(truth / '3_mask.png')
    config = config_for(folder, input=str(pictures / '[1-3].png'), write='panels,ids', truth=str(truth))
    config.dataset.update(name='folder', classes=str(tmp_path / 'names.txt'), label_ending='_mask.png')
    assert predict.predict(config, tmp_path) == 1
    printed = capsys.readouterr().out
    assert f'no label of 2.png: expected {truth}/2_mask.png' in printed and '77' in printed
    assert sorted(path.name for path in (tmp_path / 'predictions/panels').iterdir()) == ['1.png']
    assert len(list((tmp_path / 'predictions/ids').iterdir())) == 3
    panel = read(tmp_path / 'predictions/panels/1.png')
    expected = class_pictures.overlay(
        read(pictures / '1.png'), np.ones((70, 150), np.uint8), ann_jax.load(folder).colors
    )
    np.testing.assert_array_equal(panel[40:110, 154:304], expected)
    config.dataset.update(classes='sky,rest', label_map='77:rest')
    assert predict.predict(config, tmp_path) == 1
    assert '1_mask.png holds colours' in capsys.readouterr().out
    config.dataset.classes = ''
    with pytest.raises(ConfigError, match='dataset.classes'):
        predict.predict(config, tmp_path)


def test_panels_of_cityscapes_find_their_labels(folder, tmp_path):
    name = 'ulm/ulm_000000_000019'
    image, label = (
        tmp_path / f'{kind}/{name}_{ending}.png'
        for kind, ending in (('images', 'leftImg8bit'), ('truth', 'gtFine_labelIds'))
    )
    for file, array in ((image, render((5, 0), 64, 128)[0]), (label, np.full((64, 128), 26, np.uint8))):
        file.parent.mkdir(parents=True)
        Image.fromarray(array).save(file)
    config = config_for(
        folder, input=f'{tmp_path}/images/*/*.png', write='panels', truth=str(tmp_path / 'truth')
    )
    config.dataset.name = 'cityscapes'
    assert predict.predict(config, tmp_path) == 0
    panel = read(tmp_path / f'predictions/panels/{name}_leftImg8bit.png')
    expected = class_pictures.overlay(
        read(image), np.full((64, 128), 13, np.uint8), ann_jax.load(folder).colors
    )
    np.testing.assert_array_equal(panel[40:104, 132:260], expected)  # 26 is a car


def test_nothing_is_written_over_a_namesake(folder, pictures, tmp_path):
    image = Image.fromarray(read(pictures / '2.png'))
    for name in ('a b/ü.png', 'c/ü.png', 'c/ü.jpg', 'c/ü_png.png', 'c/x.png/y.png', 'c/.hidden.png'):
        file = tmp_path / 'in' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    expected = ['a b/ü.png', 'c/x.png/y.png', 'c/ü_jpg.png', 'c/ü_png.png', 'c/ü_png_2.png']
    # Below the input, where the second must not take what the first wrote, nor it again.
    for text in (f'{tmp_path}/in', f'{tmp_path}/in/**/*.*g', f'{tmp_path}/in'):
        out = tmp_path / 'in' / 'out'
        config = config_for(folder, input=text, output=str(out), write='ids')
        assert predict.predict(config, tmp_path) == 0
        written = (file.relative_to(out / 'ids').as_posix() for file in out.rglob('*.png') if file.is_file())
        assert sorted(written) == expected
    (tmp_path / 'file').touch()
    config.predict.output = str(tmp_path / 'file')
    with pytest.raises(SaveError, match=r'cannot write .*predict\.output'):
        predict.predict(config, tmp_path)


def test_a_submission_is_checked_and_zipped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, 'CITYSCAPES_SIZE', (64, 128))
    small_folder(tmp_path / 'weights', dataset=DATASETS['cityscapes'])
    test = tmp_path / 'root' / 'leftImg8bit' / 'test' / 'berlin'
    test.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(render((5, i), 64, 128)[0]).save(test / f'berlin_00000{i}_000019_leftImg8bit.png')
    config = config_for(tmp_path / 'weights', write='submission')
    config.dataset.root = str(tmp_path / 'root')
    assert predict.predict(config, tmp_path / 'run') == 0
    with zipfile.ZipFile(tmp_path / 'run' / 'predictions' / 'submission.zip') as archive:
        names = archive.namelist()
        assert names == [f'berlin_00000{i}_000019_leftImg8bit.png' for i in range(2)]
        with archive.open(names[0]) as file:
            ids = np.asarray(Image.open(file))
    known = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    assert ids.shape == (64, 128) and set(np.unique(ids)) <= known and len(np.unique(ids)) > 1
    damaged = test / 'berlin_000009_000019_leftImg8bit.png'
    damaged.write_text('no image')
    with pytest.raises(DataError, match='holds 2 pictures for 3 images: fix'):
        predict.predict(config, tmp_path / 'damaged')
    damaged.unlink()
    (test / 'berlin_000000_000019_leftImg8bit.png').rename(test / 'a_photo_of_berlin.png')
    with pytest.raises(DataError, match='city_sequence_frame'):
        predict.predict(config, tmp_path / 'named')
    with pytest.raises(ConfigError, match='needs the 19 classes of Cityscapes, not the 17 of'):
        predict.predict(config_for(folder, input=str(test), write='submission'), tmp_path / 'classes')
    monkeypatch.setattr(predict, 'CITYSCAPES_SIZE', (1024, 2048))
    with pytest.raises(DataError, match=r'is 128x64 \(L\), but the server takes 2048x1024'):
        predict.predict(config, tmp_path / 'other')
