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

import numpy as np
import uvicorn
from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import ann_jax


def decode(data, max_pixels):
    """Bytes of a file -> (H, W, 3) uint8, upright; ValueError if it is no image, or a large one."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f'{image.width} x {image.height} is more than {max_pixels} pixels')
            return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    except UnidentifiedImageError:
        raise ValueError('this is no image that Pillow reads') from None
    except Exception as error:  # decoders raise anything
        raise ValueError(f'cannot use the image: {error}') from error


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
            images = [image for image, _ in jobs]
            run = lambda images=images: list(segmenter.stream(images, batch_size=batch_size))
            results = (await asyncio.gather(asyncio.to_thread(run), return_exceptions=True))[0]
            for i, (_, future) in enumerate(jobs):
                if not future.done():  # its client is still there
                    future.set_result(results if isinstance(results, BaseException) else results[i])

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
            image = await asyncio.to_thread(decode, bytes(data), max_pixels)
            future = asyncio.get_running_loop().create_future()
            queue.put_nowait((image, future))
            if isinstance(result := await future, BaseException):
                raise RuntimeError('the network failed') from result
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
    uvicorn.run(
        make_app(ann_jax.load(options.weights), batch_size=options.batch_size),
        host=options.host,
        port=options.port,
    )
