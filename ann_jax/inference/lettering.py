"""Text in pictures, in any script that a font of this machine has, and legends of classes."""

import functools
import logging
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIZE = 13  # of the letters, in pixels
LINE = 20  # height of a line
_MARGIN = 4
_WIDEST = 240  # pixels of a column
_NARROWEST = 320  # pixels of a legend, so that there is room for a name
# Files by name, which Pillow finds in the folders of the system: Linux, Windows, macOS.
_FONTS = (
    'DejaVuSans.ttf', 'NotoSans-Regular.ttf', 'NotoSansCJK-Regular.ttc', 'wqy-zenhei.ttc', 'segoeui.ttf',
    'msyh.ttc', 'malgun.ttf', 'YuGothM.ttc', 'Nirmala.ttf', 'PingFang.ttc', 'Arial Unicode.ttf',
)  # fmt: skip


def line(text: str, width: int, height: int = LINE) -> np.ndarray:
    """Text in black on white as (height, width, 3) uint8; an ellipsis ends what is too long."""
    picture = Image.new('RGB', (width, height), 'white')
    _write(ImageDraw.Draw(picture), (_MARGIN, 0), text, width - 2 * _MARGIN, height)
    return np.asarray(picture)


def legend(ids: Sequence[int], classes: Sequence[str], colors: Sequence[Color], width: int) -> np.ndarray:
    """Colours and names of classes, in columns.

    Args:
        ids: the classes to show.
        classes: names of all classes, in any script; a class whose name no font has is shown by its number.
        colors: RGB of all classes.
        width: of the legend, in pixels; at least 320 are taken.

    Returns:
        (height, max(width, 320), 3) uint8.
    """
    width = max(width, _NARROWEST)
    known = [classes[i] if i < len(classes) else '' for i in ids]
    _tell(''.join(dict.fromkeys(c for name in known for c in name if _font(c) is None)))
    names = [name if name and _font(name) else f'class {i}' for i, name in zip(ids, known, strict=True)]
    swatch = LINE + _MARGIN
    longest = max([_length(name) for name in names], default=0)
    column = min(swatch + longest + 4 * _MARGIN, _WIDEST, width)
    columns = max(1, width // column)
    picture = Image.new('RGB', (width, LINE * -(-len(ids) // columns) + _MARGIN), 'white')
    draw = ImageDraw.Draw(picture)
    for number, (i, name) in enumerate(zip(ids, names, strict=True)):
        x, y = number % columns * column + _MARGIN, number // columns * LINE
        color = tuple(colors[i]) if i < len(colors) else (0, 0, 0)
        draw.rectangle((x, y + 3, x + LINE - 4, y + LINE - 4), color, 'black')
        _write(draw, (x + swatch, y), name, column - swatch - _MARGIN, LINE)
    return np.asarray(picture)


@functools.cache
def _tell(characters):
    """Says once what to do about characters that no font has."""
    if characters:
        shown = characters if len(characters) <= 8 else f'{characters[:8]}...'
        logger.warning(
            'no font on this machine has %s: legends show numbers for such names; install one, such as '
            'fonts-noto-core and fonts-noto-cjk (Debian, Ubuntu) or google-noto-sans-cjk-fonts (Fedora)',
            shown,
        )


def _write(draw, place, text, room, height):
    text = ' '.join(text.split())
    if _font(text) is None:
        text = ''.join(c if _font(c) else '?' for c in text)
    if _length(text) > room:
        while text and _length(text + '...') > room:
            text = text[:-1]
        text += '...'
    font = _font(text) or _fonts()[0]
    draw.text((place[0], place[1] + height // 2), text, 'black', font, anchor='lm')


def _length(text):
    return int((_font(text) or _fonts()[0]).getlength(text)) + 1


@functools.cache
def _font(text: str) -> Font | None:
    """The first font that has all characters of a text."""
    characters = set(text) - {' '}
    for font in _fonts():
        if all(_has(font, character) for character in characters):
            return font
    return _matched(characters)


@functools.cache
def _fonts() -> list[Font]:
    """Pillow's own, which has Latin letters and looks the same everywhere, and those of the system."""
    found: list[Font] = [ImageFont.load_default(SIZE)]
    for name in _FONTS:
        try:
            found.append(ImageFont.truetype(name, SIZE))
        except OSError:
            continue
    return found


def _matched(characters):
    """A font of all the characters that fontconfig knows, where there is fontconfig."""
    if not shutil.which('fc-match'):
        return None
    codes = ' '.join(f'{ord(character):x}' for character in sorted(characters))
    command = ['fc-match', '--format=%{file}', f':charset={codes}']
    try:
        file = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        font = ImageFont.truetype(file, SIZE)
    except (OSError, subprocess.SubprocessError):
        return None
    return font if all(_has(font, character) for character in characters) else None


@functools.cache
def _has(font, character):
    """Whether a font has a character: otherwise it draws what it draws for a number that is no character."""
    if not isinstance(font, ImageFont.FreeTypeFont):  # of a Pillow without FreeType
        return ord(character) < 128
    look = lambda text: (font.getbbox(text), bytes(font.getmask(text)))
    return look(character) != look('\U0010fffe')
