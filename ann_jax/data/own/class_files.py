"""Reads the names and colours of classes: from a list, a number, or a file as annotation tools write them."""

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ann_jax.data.decode.reading import optional
from ann_jax.data.disk import text_of
from ann_jax.data.layout import INVALID
from ann_jax.errors import ConfigError
from ann_jax.typing import IGNORE

Color = tuple[int, int, int]

# Headings of tables and keys of JSON, in order of preference.
_NAMES = (
    'name title class_name label_name category_name object_name readable category class label object'.split()
)
_SURE = {*_NAMES} - {'title', 'readable', 'object'}  # hardly classes themselves
_COLORS = 'color colour color_rgb rgb color_hex hex color_hex_code'.split()
_VALUES = (
    'pixel_value value mask_value gray_value grey_value gray grey id index idx number code class_id label_id '
    'class_index category_id train_id trainid class label'
).split()
_PLURALS = {'classes': 'class', 'categories': 'category', 'indices': 'index'}
_CONTAINERS = 'classes categories labels tools names id2label label_classes objects'.split()


class _Class(NamedTuple):
    name: str
    color: Color | None = None
    value: int | None = None  # in labels


class Classes(NamedTuple):
    """Classes of labels.

    Attributes:
        names: of the classes.
        colors: of each, as in labels that are painted in colours; () if they are not known.
        label_map: value in labels -> class index or IGNORE; None if values are class indices.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_map: dict[int, int] | None


def parse_classes(text: str, root: str) -> Classes:
    """Returns the classes that a setting describes.

    Args:
        text: names separated by commas; or their number; or a file (in the current folder or below `root`):
            text with a class per line, which may have red, green and blue or #RRGGBB, and the value of the
            class in labels, with or without headings; or JSON or YAML.
        root: folder of the dataset.

    Raises:
        ConfigError: there is no such file, or it is not understood; there are no classes or too many; a name,
            colour or value appears twice; or only some classes have colours or values.
        DataError: the file cannot be read, or is no text.
    """
    wrong = lambda why: ConfigError(
        f'dataset.classes={text!r}: {why}; give names separated by commas, their number, or a text file '
        'with a name per line'
    )
    paths = [os.path.expanduser(path) for path in (text, os.path.join(root, text))]
    path = next((path for path in paths if os.path.isfile(path)), None)
    if path:
        found = _from_file(path, wrong)
    elif (count := text.strip()).isdecimal():
        if len(count) > 3 or int(count) > INVALID:  # any number, which must not fill the memory
            raise wrong(f'there are {count} classes, of at most {INVALID}')
        found = [_Class(f'class {i}') for i in range(int(count))]
    elif re.search(r'[/\\]|\.[A-Za-z]\w{1,4}$', text.strip()):
        raise wrong('there is no such file')
    else:
        found = [_Class(name.strip()) for name in text.split(',') if name.strip()]
    files = [each.name for each in found if re.search(r'\.(png|jpe?g|tiff?|bmp|gif)$', each.name, re.I)]
    if files:
        raise wrong(f'{files[0]!r} is the name of a picture')
    if found and found[0].name == '__ignore__':  # LabelMe's name of value 255
        found = found[1:]
    names, colors, values = zip(*found, strict=True) if found else ((), (), ())
    if not 0 < len(names) <= INVALID:
        raise wrong(f'there are {len(names)} classes, of at most {INVALID}')
    for kind, column in (('colour', colors), ('value', values)):
        if None in column and any(each is not None for each in column):
            raise wrong(f'{names[column.index(None)]!r} has no {kind}')
    for kind, column in (('class', names), ('colour', colors), ('value', values)):
        twice = [each for each in column if each not in (None, 'ignore') and column.count(each) > 1]
        if twice:
            raise wrong(f'the {kind} {twice[0]} appears twice')
    label_map = None
    if None not in values and values != tuple(range(len(values))):
        label_map = {IGNORE: IGNORE} | {value: i for i, value in enumerate(values)}
    return Classes(names, () if None in colors else colors, label_map)


def _from_file(path, wrong):
    text = text_of(path, 'class file')
    ending = os.path.splitext(path)[1].lower()
    try:
        if ending in ('.yaml', '.yml'):
            return _from_tree(optional('yaml', path).safe_load(text))
        if ending == '.json' or text.lstrip().startswith(('{', '[{', '["')):
            return _from_tree(json.loads(text))
    except Exception as error:  # YAML has errors of its own
        raise wrong(f'it is not understood: {" ".join(str(error).split())}') from error
    lines = [line.strip() for line in text.splitlines()]
    headings, *rest = [line for line in lines if line] or ['']
    table = _table(headings, rest)
    if table:
        lines = lines[lines.index(headings) + 1 :]
    lines = [line for line in lines if line and (not line.startswith('#') or _hex(line.split()[0]))]
    lines = [line for line in lines if not line.startswith('//')]
    if table and (table[0] or len(table[1]) == 1):
        return [_from_row(line, table[0], table[1], wrong) for line in lines]
    if len(lines) == 1 and ',' in lines[0] and not re.search(r'\d\s*,\s*\d', lines[0]):  # as in code
        names = [name.strip(' "\'') for name in lines[0].strip('[]()').split(',')]
        return [_Class(name) for name in names if name]
    lines = [re.sub(_ITK_SNAP, r'\1 \3 \2', line) for line in lines]
    if all(re.match(r'[-*] ', line) for line in lines):  # bullets
        lines = [line[2:] for line in lines]
    if all(re.search(r'\s(?=\w*\d)[0-9a-fA-F]{6}$', line) for line in lines):  # colours without #
        lines = [re.sub(r'(\w+)$', r'#\1', line) for line in lines]
    found = [_from_words(line) for line in lines]
    # FreeSurfer and 3D Slicer, whose lines begin with a value, write 0 for alpha too.
    indexed = all(re.match(r'\d+\s+[^\d\s]', line) for line in lines)
    alpha = r'\s*[\s,;]\s*(0|255)$' if indexed else r'\s*[\s,;]\s*255$'
    if all(re.search(r'\d(\s*[\s,;]\s*\d+){2}' + alpha, line) for line in lines):
        opaque = [_from_words(re.sub(alpha, '', line)) for line in lines]
        apart = {re.sub(r'^\d+\s+', '', each.name) for each in opaque}
        # Else the first number is of the name.
        if len(apart) == len(lines) and all(each.color for each in opaque):
            found = opaque
    found = _values_or_names(found)
    for line, each in zip(lines, found, strict=True):
        unread = r'[{}<>="]|^\[|\]$|^\d+([\s,;]+\d+)+$|^#[0-9a-fA-F]{6}$|(\s\d*\.\d+){2}|[\s,;|:]0\.\d'
        if not each.name or re.search(unread, each.name):
            raise wrong(f'the line {line!r} is not understood')
    return found


# --- Tables with headings: a separator, and the column of what


def _table(line, rest):
    """(separator, headings) if a line, which may be a comment, holds headings of the rest."""
    text = line.lstrip('# ')
    if not text:  # of a file that is empty, or begins with an empty comment
        return None
    separator = next((s for s in ('\t', ';', ',', '|', ':') if s in text), None)
    words = [re.sub(r'\W+', '_', word.strip(' "\'').casefold()) for word in text.split(separator)]
    known = {*_NAMES, *_COLORS, *_VALUES, 'r', 'g', 'b', 'red', 'green', 'blue'}
    words = [_PLURALS.get(word, word if word in known else word.removesuffix('s')) for word in words]
    if len(words) == 1:
        return (None, words) if words[0] in known and words[0] not in ('r', 'g', 'b') else None
    if set(words) & set(_NAMES) and len(set(words) & known) > 1:
        return separator, words
    # One known heading, and others of what is not used here, such as a frequency.
    table = [line.split(separator) for line in rest]
    same = all(len(cells) == len(words) and cells[0].casefold() != words[0] for cells in table)
    named = words[0] in _SURE and not any(re.fullmatch(r'[\d_]*', word) for word in words)
    return (separator, words) if named and same and rest else None


def _from_row(line, separator, headings, wrong):
    if len(headings) == 1:
        return _Class(line.strip(' "\'').replace('""', '"'))
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    while len(cells) > len(headings) and not cells[-1]:
        cells.pop()
    if len(cells) > len(headings):
        raise wrong(f'the line {line!r} has {len(cells)} columns, but there are {len(headings)} headings')
    row = dict(zip(headings, cells, strict=False))
    red, green, blue = (next((row[key] for key in keys if key in row), '') for keys in _RGB)
    if red and green and blue:
        row['color'] = f'{red},{green},{blue}'
    found = _from_mapping(row)
    if found is None:
        raise wrong(f'the line {line!r} has no name')
    if found.color is None and any(row.get(key) for key in _COLORS):
        raise wrong(f'the colour in the line {line!r} is not understood: write numbers from 0 to 255')
    return found


_RGB = (('r', 'red'), ('g', 'green'), ('b', 'blue'))
# Value, red, green, blue, three numbers of its display, and the name.
_ITK_SNAP = r'^(\d+)\s+(\d+\s+\d+\s+\d+)\s+[\d.]+\s+[01]\s+[01]\s+"(.*)"$'


def _from_mapping(row: Mapping[str, Any]) -> _Class | None:
    """A class by the names of its properties."""
    key = next((key for key in _NAMES if isinstance(row.get(key), str) and row[key].strip()), None)
    if key is None:
        return None
    color = next((_color(row[k]) for k in _COLORS if row.get(k)), None)
    # With a title, as Supervisely writes it, goes the number of a record in its database.
    keys = [k for k in _VALUES if k != key and key != 'title']
    value = next((int(row[k]) for k in keys if re.fullmatch(r'\d{1,5}', str(row.get(k, '')).strip())), None)
    return _Class(row[key].strip(), color, value)


# --- JSON and YAML


def _from_tree(tree: Any) -> list[_Class]:
    if isinstance(tree, Mapping):
        inside = next((tree[key] for key in _CONTAINERS if isinstance(tree.get(key), (list, dict))), None)
        if inside is not None:
            classes, colors = _from_tree(inside), tree.get('palette') or tree.get('colors')
            if isinstance(colors, list) and len(colors) == len(classes):  # as mmsegmentation keeps them
                return [each._replace(color=_color(c)) for each, c in zip(classes, colors, strict=True)]
            return classes
        stuff = next((tree[key] for key in tree if str(key).lower().endswith('_classes')), None)
        if isinstance(stuff, list):
            return _from_tree(stuff)
        if len(tree) == 1 and isinstance(deeper := next(iter(tree.values())), Mapping):
            if not {*map(str, deeper)} & {*_COLORS, *_VALUES}:
                return _from_tree(deeper)
        return [_from_item(key, value) for key, value in tree.items()]
    if not isinstance(tree, list):
        raise ValueError('it holds no list of classes')
    if all(isinstance(item, str) for item in tree):
        return [_Class(item) for item in tree]
    found = [_from_mapping(item) if isinstance(item, Mapping) else None for item in tree]
    if None in found:
        raise ValueError(f'{str(tree[found.index(None)])[:60]} has no name')
    return [each for each in found if each]


def _from_item(key, value):
    """{'road': [128, 64, 128]}, {'road': 3}, {3: 'road'} or {'road': {'color': ...}}."""
    if isinstance(value, Mapping):
        return _from_mapping({'name': str(key), **value}) or _Class(str(key))
    if str(key).isdecimal() and isinstance(value, str):
        return _Class(value, None, int(key))
    if isinstance(value, int) and not isinstance(value, bool):
        return _Class(str(key), None, value)
    color = _color(value)
    if color is None:
        raise ValueError(f'{key}: {str(value)[:60]} is neither a name, a value nor a colour')
    return _Class(str(key), color)


# --- Lines without headings


def _from_words(line):
    """'road 128 64 128', '128 64 128 road', 'road #804080' or 'road:128,64,128::'; value and name as one."""
    if match := re.fullmatch(r'([^:]+):((?:\d+,\d+,\d+)?):[^:]*:[^:]*', line):  # CVAT
        return _Class(match[1].strip(), _color(match[2]) if match[2] else None)
    words = re.sub(r'[,;|\t()\[\]:"]+', ' ', line).split()
    for place, rest in ((-1, words[:-1]), (0, words[1:])):
        if rest and (color := _hex(words[place])):
            return _Class(' '.join(rest).strip('"\''), color)
    first = sum(1 for _ in itertools.takewhile(str.isdecimal, words)) - 3  # 1 if a value precedes the colour
    splits = [(words[-3:], words[:-3])]
    if first >= 0:
        splits.append((words[first : first + 3], words[:first] + words[first + 3 :]))
    for numbers, rest in splits:
        if any(re.search(r'\D', word) for word in rest) and all(word.isdecimal() for word in numbers):
            if len(numbers) == 3 and (color := _color(numbers)):
                return _Class(' '.join(rest).strip('"\''), color)
    return _Class(line.strip(' ,;"\''))


def _values_or_names(found):
    """Splits the value from the name, before or after it, if every line has one and the names stay apart."""
    between = r'(?:[\s,;:|.)=]|->)+'
    for pattern in (
        rf'(?P<value>\d+){between}(?P<name>.*\D.*)',
        rf'(?P<name>.*\D.*?)(?!(?<=\d)\.\d){between}(?P<value>\d+)',  # 0.3 is no value
    ):
        matches = [re.fullmatch(pattern, each.name) for each in found]
        names = [re.sub(r'(?:[\s,;:|=]|->)+$', '', match['name']).strip(' "\'') for match in matches if match]
        own = [name for name in names if name != 'ignore']
        if found and all(matches) and len(set(own)) == len(own):
            values = [int(match['value']) for match in matches if match]
            return [_Class(n, each.color, v) for n, v, each in zip(names, values, found, strict=True)]
    return found


def _hex(word: str) -> Color | None:
    match = re.fullmatch(r'#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})', word)
    return (int(match[1], 16), int(match[2], 16), int(match[3], 16)) if match else None


def _color(value: object) -> Color | None:
    """'#804080', '128,64,128', [128, 64, 128] or {'r': 128, ...} as a colour."""
    if isinstance(value, str):
        if found := _hex(value.strip()):
            return found
        value = re.findall(r'[\d.]+', value)
    elif isinstance(value, Mapping):
        value = [value.get(key) for key in 'rgb']
    if isinstance(value, Iterable):
        numbers = [int(n) for n in value if str(n).isdecimal()]
        if len(numbers) >= 3 and max(numbers[:3]) < 256:
            return numbers[0], numbers[1], numbers[2]
    return None
