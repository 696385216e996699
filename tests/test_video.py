"""Videos in --mode=predict, compared with their frames as PyAV decodes them."""

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
    config.predict.input = str(tmp_path / 'cut.mp4')
    assert predict(config, tmp_path) == 1
    printed = capsys.readouterr().out
    frames = len([*(tmp_path / 'out/ids/cut').iterdir()])
    assert 0 < frames < 20 and f'cut.mp4 ends after {frames} of 20 frames: it is cut off' in printed
    assert '1 of 1 videos segmented; 1 problems, see above' in printed
