"""Videos in --mode=predict, compared with their frames as PyAV decodes them."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from test_predict import config_for

import ann_jax
from ann_jax.errors import ConfigError, DataError
from ann_jax.inference import pictures
from ann_jax.modes.predict import predict

av = pytest.importorskip('av', reason='of the extra video')
pytestmark = pytest.mark.usefixtures('compiled_fast')


def write(path, frames, **options):
    with av.open(str(path), 'w', options=options) as file:
        stream = file.add_stream('mpeg4', 10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        file.mux(stream.encode(None))


def read(path):
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format='rgb24') for frame in file.decode(video=0)], file.streams.video[
            0
        ].average_rate


def test_a_video_becomes_a_video_and_ids(folder, tmp_path, capsys):
    # A pattern that wanders: frames differ, and codecs hardly blur it.
    y, x = np.mgrid[:48, :64]
    given = [np.stack([4 * x, 5 * y, np.full_like(x, 25 * i)], -1).astype(np.uint8) for i in range(7)]
    write(tmp_path / 'drive.mp4', given)
    frames, _ = read(tmp_path / 'drive.mp4')
    write(tmp_path / 'drive.mkv', given[:1])  # of the same name
    config = config_for(folder, input=str(tmp_path / 'drive.m*'), write='overlays,ids', batch_size=2)
    config.predict.output = str(tmp_path / 'out')
    assert predict(config, tmp_path) == 0
    printed = capsys.readouterr().out
    assert '7 frames segmented, ' in printed and '1 frame segmented, ' in printed
    assert len(read(tmp_path / 'out' / 'overlays' / 'drive_mkv.mp4')[0]) == 1
    overlays, rate = read(tmp_path / 'out' / 'overlays' / 'drive_mp4.mp4')
    assert len(overlays) == len(frames) == 7 and rate == 10
    segmenter = ann_jax.load(folder)
    for i, (frame, overlay) in enumerate(zip(frames, overlays, strict=True), 1):
        with Image.open(tmp_path / 'out' / 'ids' / 'drive_mp4' / f'{i:06}.png') as image:
            ids = np.asarray(image)
        np.testing.assert_array_equal(ids, segmenter(frame).ids)
        expected = pictures.overlay(frame, ids, segmenter.colors)
        assert np.abs(np.float32(overlay) - expected).mean() < 12  # H.264 halves the resolution of colours

    (tmp_path / 'damaged.mp4').write_bytes((tmp_path / 'drive.mp4').read_bytes()[:600])
    config.predict.input = str(tmp_path / 'd*.m*')  # the rest is segmented
    assert predict(config, tmp_path) == 1
    printed = capsys.readouterr().out
    assert 'cannot read the video' in printed and 'damaged.mp4' in printed
    assert '2 of 3 videos segmented; 1 problems, see above' in printed
    config.predict.input = str(tmp_path / 'damaged.mp4')
    with pytest.raises(DataError, match=r'cannot read the video .*damaged.mp4'):
        predict(config, tmp_path)
    assert not (tmp_path / 'out' / 'overlays' / 'damaged.mp4').exists()
    config.predict.write = 'probabilities'
    with pytest.raises(ConfigError, match='predict.write=probabilities: of a video, overlays, colors'):
        predict(config, tmp_path)


def test_a_video_that_is_cut_off_is_told(folder, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    write(tmp_path / 'whole.mp4', [*noise], movflags='faststart')  # its frames are counted at its beginning
    content = (tmp_path / 'whole.mp4').read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(content[: len(content) * 6 // 10])
    config = config_for(folder, input=str(tmp_path / 'whole.mp4'), write='ids', batch_size=1)
    config.predict.output = str(tmp_path / 'out')
    assert predict(config, tmp_path) == 0
    assert 'of a longer video before' not in capsys.readouterr().out
    config.predict.input = str(tmp_path / 'cut.mp4')
    assert predict(config, tmp_path) == 1
    printed = capsys.readouterr().out
    frames = len([*(tmp_path / 'out/ids/cut').iterdir()])
    assert 0 < frames < 20 and f'cut.mp4 ends after {frames} of 20 frames: it is cut off' in printed
    assert '1 of 1 videos segmented; 1 problems, see above' in printed
    for name in ('000020', '000021'):  # as if a longer one of that name had been segmented before
        (tmp_path / f'out/ids/whole/{name}.png').touch()
    (tmp_path / 'cut.mp4').rename(tmp_path / 'whole.mp4')
    config.predict.input = str(tmp_path / 'whole.mp4')
    assert predict(config, tmp_path) == 1
    told = f'whole holds {21 - frames} more, of a longer video before: remove those after {frames:06}.png'
    assert told in capsys.readouterr().out


def test_a_video_of_several_sizes_or_without_pictures_is_refused(folder, tmp_path, capsys):
    for name, shape in (('a', (48, 64, 3)), ('b', (32, 48, 3))):
        write(tmp_path / f'{name}.ts', [np.full(shape, 99, np.uint8)] * 3)
    parts = [(tmp_path / f'{name}.ts').read_bytes() for name in 'ab']
    (tmp_path / 'joined.mkv').write_bytes(b''.join(parts))
    config = config_for(folder, input=str(tmp_path / 'joined.mkv'), write='overlays,ids', batch_size=1)
    config.predict.output = str(tmp_path / 'out')
    with pytest.raises(DataError, match=r'frame \d of .*joined.mkv is 48x32, those before 64x48: convert'):
        predict(config, tmp_path)
    assert not (tmp_path / 'out' / 'overlays' / 'joined.mp4').exists()
    config.predict.write = 'ids'
    assert predict(config, tmp_path) == 0
    assert len([*(tmp_path / 'out/ids/joined').iterdir()]) == 6

    with av.open(str(tmp_path / 'sound.mp4'), 'w') as file:
        stream = file.add_stream('aac', rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        sound.rate = 44100
        file.mux(stream.encode(sound))
        file.mux(stream.encode(None))
    config.predict.input = str(tmp_path / 'sound.mp4')
    with pytest.raises(DataError, match=r'sound.mp4: it holds no pictures'):
        predict(config, tmp_path)


@pytest.mark.parametrize('degrees', [0, 90])
def test_pixels_keep_their_shape_and_uneven_times_are_told(folder, tmp_path, capsys, degrees):
    with av.open(str(tmp_path / 'a.mov'), 'w') as file:
        stream = file.add_stream('mpeg4', 10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        stream.sample_aspect_ratio = Fraction(3, 2)
        if degrees:
            stream.set_display_rotation(degrees)
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format='rgb24')
            frame.pts, frame.time_base = i, Fraction(1, 10)
            for packet in stream.encode(frame):
                file.mux(packet)
        file.mux(stream.encode(None))
    config = config_for(folder, input=str(tmp_path / 'a.mov'), write='overlays', batch_size=1)
    config.predict.output = str(tmp_path / 'out')
    assert predict(config, tmp_path) == 0
    assert 'constant frame rate' not in capsys.readouterr().out
    with av.open(str(tmp_path / 'out/overlays/a.mp4')) as file:
        stream = file.streams.video[0]
        shown = (stream.width, stream.height, stream.sample_aspect_ratio)
    assert shown == ((48, 64, Fraction(2, 3)) if degrees else (64, 48, Fraction(3, 2)))

    # Its header says 100 frames per second, its frames lie a second apart.
    with av.open(str(tmp_path / 'slow.mkv'), 'w') as file:
        stream = file.add_stream('mpeg4', 100)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format='rgb24')
            frame.pts, frame.time_base = 100 * i, Fraction(1, 100)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    config.predict.input = str(tmp_path / 'slow.mkv')
    assert predict(config, tmp_path) == 0
    told = 'slow.mkv lasts 3.0 s, but what was written plays 0.0 s, at 100 frames per second: convert it'
    assert told in capsys.readouterr().out
