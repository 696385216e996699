"""What may be given as images: paths, arrays of any library, Pillow images, several of these, and folders."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from ann_jax.data.decode.images import IMAGE_ENDINGS, unseen
from ann_jax.data.disk import walk
from ann_jax.errors import DataError

logger = logging.getLogger(__name__)

# Arrays may be of any library that NumPy can read, such as torch and JAX.
Picture = str | os.PathLike | np.ndarray | Image.Image | Any


def find_images(folder: str | Path) -> list[Path]:
    """The images of a folder and its subfolders, by name.

    Raises:
        DataError: there are none.
    """
    files = [Path(where, name) for where, names in walk(folder) for name in names]
    others = unseen(files)
    found = sorted(path for path in files if path.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise DataError(
            f'{folder} holds no image ({", ".join(IMAGE_ENDINGS)}){"; " if others else ""}{others}'
        )
    if others:
        logger.warning('%s: %s', folder, others)
    return found


def is_path(picture: object) -> TypeGuard[str | os.PathLike]:
    """Whether an image is given as a file."""
    return isinstance(picture, (str, os.PathLike))


def is_one(images: Any) -> bool:
    """Whether this is a single picture: no folder, no batch of arrays, no list."""
    if is_path(images):
        try:
            return not Path(images).expanduser().is_dir()
        except (OSError, ValueError):  # it is no name of a file, which reading it will tell
            return True
    return isinstance(images, Image.Image) or (_is_array(images) and len(images.shape) < 4)


def listed(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """The pictures of a folder, of a batch (B, H, W, C), or of an iterable; or the one that there is.

    Raises:
        DataError: it is none of these, or the folder holds no images.
    """
    if isinstance(images, str) and not images:
        raise DataError('an image is given as an empty path: name a file or a folder')
    if is_one(images):
        return [images]
    if is_path(images):
        return find_images(Path(images).expanduser())
    shape = images.shape if _is_array(images) else ()
    if len(shape) > 4:
        raise DataError(f'images are (H, W, bands), or (B, H, W, bands), not {tuple(shape)}')
    if isinstance(images, memoryview):  # which gives no parts of its own
        return np.asarray(images)
    if isinstance(images, bytes) or not isinstance(images, Iterable):
        raise DataError(f'an image is a path, an array or a Pillow image, not {type(images).__name__}')
    return images


def kept(picture: Any) -> Path | np.ndarray | Image.Image:
    """The picture as nobody else can change it: a camera may write its next frame over an array.

    Raises:
        DataError: it is none, or NumPy cannot read the array.
    """
    if is_path(picture):
        return Path(picture).expanduser()
    if isinstance(picture, Image.Image):
        # A file that was not read yet does not change; reading it is left to a thread.
        if getattr(picture, 'fp', None):
            return picture
        try:
            return picture.copy()
        except Exception as error:  # an assertion without a word, if its file was closed before it was read
            raise DataError(f'cannot read the image {picture}: {str(error) or "it was closed"}') from error
    if not _is_array(picture):
        raise DataError(f'an image is a path, an array or a Pillow image, not {type(picture).__name__}')
    if np.ma.is_masked(picture):
        raise DataError(
            f'an array of shape {picture.shape} has masked pixels, of which the network knows nothing: give '
            'image.filled(0)'
        )
    try:
        return np.array(picture)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: on a GPU, bfloat16, or with a gradient
        raise DataError(
            f'NumPy cannot read a {type(picture).__name__} of shape {tuple(picture.shape)}: {error}'
        ) from error


def _is_array(images: object) -> TypeGuard[Any]:
    arrays = '__array__', '__dlpack__'
    return isinstance(images, memoryview) or (
        hasattr(images, 'shape') and any(hasattr(images, name) for name in arrays)
    )
