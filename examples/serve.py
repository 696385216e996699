"""Serves a trained network: an image in, a PNG of class ids or an overlay out.

    pip install 'ann_jax[serve]'
    python examples/serve.py runs/camvid
    curl --data-binary @street.jpg localhost:8000/overlay > out.png    # or /ids

Requests that wait while the device works are computed together.
"""

import argparse
import asyncio
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import ann_jax


def check(data, max_pixels):
    """ValueError if bytes are no image that Pillow opens, or a large one; nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError('this is no image that Pillow reads') from None
    except Exception as error:  # damaged files can make Pillow raise anything
        raise ValueError(f'cannot use the image: {error}') from error
    if width * height > max_pixels:
        raise ValueError(f'{width} x {height} is more than {max_pixels} pixels')


def segment_files(segmenter, paths, batch_size):
    """For each file its result, or a ValueError that says why it cannot be used.

    Files are read as in prediction: by the bands and the range of the network, and damaged ones are refused.
    """
    errors: list[str] = []
    stream = segmenter.stream(paths, errors=errors, batch_size=batch_size)
    results = {result.path: result for result in stream}
    problems = iter(errors)  # in the order of the files
    plain = lambda text, path: text.replace(f'the image {path}', str(path)).replace(str(path), 'the image')
    return [results.get(path) or ValueError(plain(next(problems), path)) for path in paths]


def encode(result, kind):
    """The overlay or the ids as a PNG."""
    file = io.BytesIO()
    Image.fromarray(result.overlay() if kind == '/overlay' else result.ids).save(file, 'png')
    return file.getvalue()


def make_app(segmenter, *, batch_size=8, max_bytes=1 << 24, max_pixels=1 << 23, max_waiting=64):
    """An ASGI application; more than `max_waiting` requests at a time are told to come again."""
    queue: asyncio.Queue = asyncio.Queue()
    waiting = 0

    async def work():
        while True:
            jobs = [await queue.get()]
            while len(jobs) < batch_size and not queue.empty():
                jobs.append(queue.get_nowait())
            paths = [path for path, _ in jobs]
            run = asyncio.to_thread(segment_files, segmenter, paths, batch_size)
            results = (await asyncio.gather(run, return_exceptions=True))[0]
            if isinstance(results, BaseException):
                results = [RuntimeError(f'the network failed: {results!r}')] * len(jobs)
            for (_, future), result in zip(jobs, results, strict=True):
                if not future.done():  # its client is still there
                    future.set_result(result)

    async def segment(request):
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > max_bytes:
                return PlainTextResponse(f'more than {max_bytes} bytes', 413)
        nonlocal waiting
        if waiting >= max_waiting:
            return PlainTextResponse('busy, try again', 503, {'Retry-After': '1'})
        waiting += 1
        try:
            await asyncio.to_thread(check, bytes(data), max_pixels)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / 'image'
                await asyncio.to_thread(path.write_bytes, data)
                future = asyncio.get_running_loop().create_future()
                queue.put_nowait((path, future))
                if isinstance(result := await future, Exception):
                    raise result
                png = await asyncio.to_thread(encode, result, request.url.path)
        except ValueError as error:
            return PlainTextResponse(str(error), 400)
        finally:
            waiting -= 1
        return Response(png, media_type='image/png')

    @contextlib.asynccontextmanager
    async def working(_):
        task = asyncio.create_task(work())
        yield
        task.cancel()

    routes = [Route(path, segment, methods=['POST']) for path in ('/ids', '/overlay')]
    return Starlette(routes=routes, lifespan=working)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('weights', help='a run, a folder of weights, or hf://OWNER/NAME')
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--host', default='127.0.0.1')
    parser.add_argument('--batch_size', type=int, default=8)
    options = parser.parse_args()
    if options.batch_size < 1:
        parser.error(f'--batch_size={options.batch_size}: must be at least 1')
    try:
        segmenter = ann_jax.load(options.weights)
    except (ann_jax.ConfigError, ann_jax.DataError) as error:
        sys.exit(f'error: {error}')
    uvicorn.run(make_app(segmenter, batch_size=options.batch_size), host=options.host, port=options.port)
