"""What the directories of a TIFF say about its images, before anything is decoded."""

from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from ann_jax.errors import DataError

_SIGNATURES = b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'  # the last two are BigTIFF's
_NOT_PILLOWS = 34712, 34887, 50002  # compressions: JPEG 2000, LERC, JPEG XL
_KINDS = {1: 'u', 2: 'i', 3: 'f'}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
_SINGLE_BAND = {('u', 16), ('i', 16), ('i', 32), ('f', 32)}  # deep ones, which Pillow reads without loss


class Directory(NamedTuple):
    """One image of a TIFF."""

    number: int  # among all directories of the file, from 0
    width: int
    height: int
    samples: int
    bits: int
    kind: str  # of a sample: u, i, f, or ? for another
    photometric: int
    compression: int
    planar: bool  # whether each band is stored by itself
    alpha: bool  # whether the last sample is marked as alpha
    orientation: int  # as EXIF's
    nodata: float | None  # value of pixels without data, as GDAL writes it
    geographic: bool  # whether it says where on Earth it is
    parts: int  # strips or tiles
    expected: int  # as many as the image has by its size

    def refuse_missing(self, where: object, kind: str = 'image') -> None:
        """Refuses an image of which strips or tiles are missing, which Pillow and GDAL leave black.

        Raises:
            DataError: there are fewer than its size needs.
        """
        if self.parts < self.expected:
            raise DataError(
                f'cannot read the {kind} {where}: of {self.width}x{self.height} pixels it holds only '
                f'{self.parts} of {self.expected} strips or tiles; copy or download the file again'
            )

    def without_nodata(self, values: np.ndarray) -> np.ndarray:
        """Returns floats with NaN where there are no data; integers, which have no NaN, unchanged."""
        if self.nodata is None or values.dtype.kind != 'f':
            return values
        return np.where(values == self.nodata, np.array(np.nan, values.dtype), values)

    @property
    def dtype(self) -> np.dtype:
        """Of the values, for kinds that NumPy has."""
        return np.dtype(f'{self.kind}{self.bits // 8}')

    @property
    def for_pillow(self) -> bool:
        """Whether Pillow reads all of its bits and bands."""
        if self.compression in _NOT_PILLOWS:
            return False
        if self.samples == 1 and self.photometric != WHITE_IS_ZERO and self.bits > 8:
            return (self.kind, self.bits) in _SINGLE_BAND and not self.planar
        if self.kind != 'u' or self.bits > 8:
            return False
        if self.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            return self.samples == 1
        if self.photometric == RGB:
            return self.samples == 3 or self.samples == 4 and self.alpha
        return True  # palette, CMYK, YCbCr, CIELab


def is_tiff(data: bytes) -> bool:
    """Whether data are those of a TIFF."""
    return data[:4] in _SIGNATURES


def directories(stream: BinaryIO) -> list[Directory] | None:
    """The images of a TIFF, without reduced copies and masks; None if it is no TIFF or damaged there."""
    found = []
    try:
        header = stream.read(8)
        if not is_tiff(header):
            return None
        tags = TiffImagePlugin.ImageFileDirectory_v2(header + (stream.read(8) if b'+' in header[:4] else b''))
        seen: set[int] = set()
        while tags.next and tags.next not in seen:
            seen.add(tags.next)
            stream.seek(tags.next)
            tags.load(stream)
            if not tags.get(254, 0) & 5:  # 1: reduced, 4: a mask
                found.append(_describe(tags, len(seen) - 1))
    except Exception:  # a damaged directory can make Pillow raise anything
        return None
    return found


def _describe(tags, number):
    samples, extra = tags.get(277, 1), tags.get(338, ())
    try:
        nodata = float(str(tags.get(42113)).rstrip('\0 '))
    except ValueError:
        nodata = None
    tiled = 324 in tags
    across = -(-tags[256] // tags[322]) if tiled else 1
    high = tags[323] if tiled else min(tags.get(278, tags[257]), tags[257])  # rows of a tile or a strip
    return Directory(
        number=number,
        width=tags[256],
        height=tags[257],
        samples=samples,
        bits=max(tags.get(258, (1,))),
        kind=_KINDS.get(tags.get(339, (1,))[0], '?'),
        photometric=tags.get(262, BLACK_IS_ZERO),
        compression=tags.get(259, 1),
        planar=tags.get(284, 1) == 2,
        alpha=bool(extra) and extra[-1] in (1, 2),
        orientation=tags.get(274, 1),
        nodata=nodata,
        geographic=any(tag in tags for tag in (33550, 33922, 34264, 34735)),
        parts=len(tags.get(324) or tags.get(273, ())),
        expected=across * -(-tags[257] // high) * (samples if tags.get(284, 1) == 2 else 1),
    )
