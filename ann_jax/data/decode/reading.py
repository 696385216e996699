"""Reads files, opens pictures, and imports the libraries that only some files need.

Errors are `DataError`s with a cure.
"""

import contextlib
import importlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from types import ModuleType

from PIL import Image, ImagePalette, PngImagePlugin, UnidentifiedImageError

from ann_jax.data.decode.formats import unread
from ann_jax.errors import DataError
from ann_jax.files import refuse_special

PNG = b'\x89PNG\r\n\x1a\n'  # the first bytes of one
MAX_PIXELS = 1_000_000_000  # of an image or a label
# Modules -> what to install for them, where the name does not say.
_PACKAGES = {
    'yaml': 'pyyaml',
    # It imports the others, but does not declare them.
    'tensorflow_datasets': 'tensorflow-datasets array_record importlib_resources',
}


def read_file(path: str | os.PathLike, kind: str) -> bytes:
    """Returns the bytes of a file.

    Raises:
        DataError: it does not exist, cannot be read, or is no file but a folder, a pipe or a device.
    """
    refuse_special(path, kind)
    try:
        with open(path, 'rb') as file:
            return file.read()
    except FileNotFoundError as e:
        raise DataError(
            f'cannot read the {kind} {path}: there is no such file; check its name and folder'
        ) from e
    except PermissionError as e:
        raise DataError(f'cannot read the {kind} {path}: {e}; give yourself the right to read it') from e
    except ValueError as e:  # no name of a file has a null byte
        raise DataError(f'cannot read the {kind} {path!r}: {e}; check its name and folder') from e
    except OSError as e:
        raise DataError(f'cannot read the {kind} {path}: {e}; copy or download the file again') from e


@contextlib.contextmanager
def open_picture(
    data: bytes, where: object, kind: str, max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Opens an encoded picture with Pillow, for a `with` block that decodes it.

    Args:
        data: content of the file.
        where: names the file in errors.
        kind: 'image' or 'label', for errors.
        max_pixels: the most that is decoded.

    Raises:
        DataError: it has another format, is damaged or truncated (also if the block finds this), or has more
            than `max_pixels`.
    """
    _raise_limit_of_pillow(max_pixels)
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size, where, kind, max_pixels)
            if image.format == 'BMP' and image.mode in ('1', 'L'):
                _mend_depth(image, data[24 if data[14] == 12 else 28])
            yield image
    except DataError:
        raise
    except Image.DecompressionBombError as e:
        raise _too_large(where, kind, 'it', max_pixels) from e
    except MemoryError as e:
        raise DataError(f'the {kind} {where} does not fit into memory: cut it into tiles') from e
    except Exception as e:  # damaged files can make Pillow raise anything
        found = unread(data, identified=not isinstance(e, UnidentifiedImageError))
        if found:
            raise DataError(f'cannot read the {kind} {where}: it is {found.what}; {found.cure}') from e
        raise damaged(where, kind, e if data else 'it is empty') from e


def _mend_depth(image, bits):
    """Mends a BMP with a palette of greys, for which Pillow forgets how many bits a pixel takes."""
    if bits == (1 if image.mode == '1' else 8):
        return
    colors = [0, 255] if image.mode == '1' else range(2**bits)
    image.tile = [tile._replace(args=(f'P;{bits}'.removesuffix(';8'), *tile.args[1:])) for tile in image.tile]
    image._mode, image.palette = 'P', ImagePalette.raw('RGB', bytes(grey for grey in colors for _ in 'RGB'))


def refuse_format(data: bytes, where: object, kind: str, *, but: str) -> None:
    """Refuses a file with the signature of a format that is not read, `but` one.

    Raises:
        DataError: it has another format.
    """
    found = unread(data)
    if found and found.what != but:
        raise DataError(f'cannot read the {kind} {where}: it is {found.what}; {found.cure}')


def check_png(data: bytes, where: object, kind: str) -> None:
    """Refuses a PNG of which a byte was changed or the end is missing, which decoders accept; others pass.

    Raises:
        DataError: a checksum is wrong, or a chunk is incomplete or missing.
    """
    if not data.startswith(PNG):
        return
    view, start, name = memoryview(data), len(PNG), b''
    while name != b'IEND':
        end = start + 12 + int.from_bytes(view[start : start + 4])
        if end > len(data) or start + 12 > len(data):
            raise damaged(where, kind, 'its end is missing')
        name = bytes(view[start + 4 : start + 8])
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise damaged(where, kind, f'the checksum of its part {name.decode("latin-1")!r} is wrong')
        start = end


def _raise_limit_of_pillow(max_pixels):
    """Pillow warns above its own limit, and refuses twice as many pixels: one number for all threads."""
    # Of colour profiles and other data about a picture, Pillow refuses a megabyte, which programs write.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels


def check_size(width: int, height: int, where: object, kind: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses pictures that would exhaust the memory, before they are decoded.

    Raises:
        DataError: it has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise _too_large(where, kind, f'{width}x{height}', max_pixels)


def _too_large(where, kind, size, max_pixels):
    return DataError(
        f'the {kind} {where} is too large: {size} is more than {max_pixels:,} pixels; cut it into tiles, or '
        'set --config.dataset.max_pixels'
    )


def damaged(where: object, kind: str, error: object) -> DataError:
    """The error for a damaged file."""
    # Pillow names the buffer it was given, which means nothing to the user.
    reason = re.sub(r' <_io\.BytesIO[^>]*>', '', str(error)) or type(error).__name__
    return DataError(f'cannot read the {kind} {where}: {reason}; copy or download the file again')


def optional(module: str, where: object) -> ModuleType:
    """Imports a module that only some datasets need.

    Raises:
        DataError: it is not installed.
    """
    try:
        found = importlib.import_module(module)
        # It logs a failed import and carries on without its contents.
        if module == 'tensorflow_datasets' and not hasattr(found, 'core'):
            raise ImportError('one of its dependencies is missing, see above')
        return found
    except ImportError as e:
        name = module.split('.')[0]
        package = _PACKAGES.get(name, name.replace('_', '-'))
        raise DataError(f'{where} needs {module} ({e}): pip install {package}') from e
