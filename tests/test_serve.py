"""examples/serve.py: batches of requests, and uploads that are refused."""

import importlib.util
import io
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ann_jax

uvicorn = pytest.importorskip('uvicorn', reason='of the extra serve')
pytest.importorskip('starlette', reason='of the extra serve')
pytestmark = pytest.mark.usefixtures('compiled_fast')


@pytest.fixture(scope='module')
def serve():
    file = Path(__file__).parent.parent / 'examples' / 'serve.py'
    spec = importlib.util.spec_from_file_location('serve', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(image, exif=None):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'png', exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['absent'], 'error: absent holds no checkpoint'), (['absent', '--batch_size=0'], 'must be at least 1')],
)
def test_what_cannot_be_served_ends_with_one_line(arguments, message, tmp_path):
    file = Path(__file__).parent.parent / 'examples' / 'serve.py'
    done = subprocess.run(
        [sys.executable, file, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode and message in done.stderr.splitlines()[-1]


def test_requests_are_batched_and_bad_ones_are_refused(serve, folder):
    segmenter = ann_jax.load(folder)
    batches, stream = [], segmenter.stream
    segmenter.stream = lambda images, **options: batches.append(len(images)) or stream(images, **options)
    app = serve.make_app(segmenter, batch_size=4, max_bytes=60_000, max_pixels=100 * 100)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='error'))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]

        def post(data, path='ids'):
            request = urllib.request.Request(f'http://127.0.0.1:{port}/{path}', data)
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return answer.status, np.asarray(Image.open(io.BytesIO(answer.read())))
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(9)]
        with ThreadPoolExecutor(9) as pool:
            answers = list(pool.map(post, map(png, images)))
        assert max(batches) > 1 and sum(batches) == 9
        for image, (status, ids) in zip(images, answers, strict=True):
            assert status == 200
            np.testing.assert_array_equal(ids, segmenter(image).ids)
        np.testing.assert_array_equal(post(png(images[0]), 'overlay')[1], segmenter(images[0]).overlay())
        turned = Image.Exif()
        turned[274] = 6  # orientation: to be shown turned by 90 degrees, clockwise
        ids = post(png(np.rot90(images[2]), turned))[1]
        np.testing.assert_array_equal(ids, segmenter(images[2]).ids)
        assert post(b'no image')[0] == 400 and post(b'')[0] == 400
        assert post(png(images[0])[:-2000])[0] == 400
        status, text = post(png(np.zeros((101, 100, 3), np.uint8)))
        assert status == 400 and '100 x 101 is more than 10000 pixels' in text
        # Read as in prediction: deep images keep their levels, what would be a wrong picture is refused.
        grey = images[3][..., 0]
        np.testing.assert_array_equal(post(png(grey.astype(np.uint16) * 257))[1], segmenter(grey).ids)
        jpeg, animation = io.BytesIO(), io.BytesIO()
        frames = list(map(Image.fromarray, images[:2]))
        frames[0].resize((96, 96)).save(jpeg, 'jpeg')
        frames[0].save(animation, 'gif', save_all=True, append_images=frames[1:])
        cut = jpeg.getvalue()[: len(jpeg.getvalue()) // 2] + b'\xff\xd9'
        for data, word in ((cut, 'the image is damaged'), (animation.getvalue(), 'the image holds 2 images')):
            status, text = post(data)
            assert status == 400 and text.startswith(word), text
        assert post(bytes(60_001)) == (413, 'more than 60000 bytes')
        assert post(png(images[0]), 'others')[0] == 404
        assert post(png(images[1]))[0] == 200  # still there
    finally:
        server.should_exit = True
        thread.join(20)
