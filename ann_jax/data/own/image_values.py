"""Tells from some images which settings they need to be read: bands, image_range and page."""

import io
import itertools
from collections.abc import Sequence

from ann_jax.data.decode import tiff
from ann_jax.data.decode.images import decode_image
from ann_jax.data.decode.levels import AUTO, Reading
from ann_jax.data.decode.reading import read_file
from ann_jax.errors import DataError

_ANY = 0.0, 1.0  # in place of the range, which is not looked for here


def choose_reading(paths: Sequence[str]) -> tuple[dict[str, str | int], Reading, list[str]]:
    """Chooses settings by which images are read; all bands count, and of several pages the first.

    Args:
        paths: of some images; those that no settings make readable are passed over.

    Returns:
        The settings, how images are read by them (but for the range), and what to say about them.
    """
    chosen = Reading()
    for path in paths:
        try:
            data = read_file(path, 'image')
        except DataError:
            continue
        for reading in _readings(data, chosen):
            try:
                decode_image(data, path, reading=reading)
            except DataError:
                continue
            chosen = reading
            break
    bands = ','.join(map(str, chosen.bands))
    settings: dict[str, str | int] = {
        'bands': bands,
        'image_range': AUTO if chosen.limits else '',
        'page': chosen.page,
    }
    notes = []
    if bands:
        notes.append(f'images have {len(chosen.bands)} bands, which are all trained on: edit `bands` to pick')
    if chosen.limits:
        notes.append('images have no natural range: edit `image_range` if you know what black and white are')
    if chosen.page:
        notes.append('files hold several images, of which the first is used: edit `page` for another')
    return settings, chosen, notes


def _readings(data, chosen):
    """Ways to read an image, from that chosen already to those that say more."""
    found = tiff.directories(io.BytesIO(data)) or [] if tiff.is_tiff(data) else []
    samples = max((each.samples for each in found), default=3)
    bands = tuple(range(1, samples + 1)) if samples > 3 else ()
    options = (chosen.page, 1), (chosen.bands, chosen.bands or bands), (chosen.limits, _ANY)
    for page, picked, limits in itertools.product(*options):
        yield Reading(limits=limits, bands=picked, page=page)
