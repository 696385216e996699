"""Files of classes as people and tools write them."""

import json
import sys

import pytest
from own_files import refuse, source, tree

from ann_jax.data.own.class_files import parse_classes
from ann_jax.errors import ConfigError
from ann_jax.typing import IGNORE

COLORS = ((128, 64, 128), (0, 0, 0))
CLASSES = {
    'R G B name': ('128 64 128 road\n0 0 0 the rest', COLORS, None),
    'R G B tab name': ('128 64 128\troad\n0 0 0\t\tthe rest\n', COLORS, None),
    'name R G B': ('road 128 64 128\nthe rest,0,0,0', COLORS, None),
    'name #hex': ('# comment\nroad #804080\nthe rest #000000', COLORS, None),
    '#hex name': ('#804080 road\n#000000 the rest', COLORS, None),
    'CVAT': ('# label:color_rgb:parts:actions\nroad:128,64,128::\nthe rest:0,0,0:a,b:c', COLORS, None),
    'CVAT, no heading': ('road:128,64,128::\nthe rest:0,0,0::', COLORS, None),
    'CVAT, no colours': ('# label:color_rgb:parts:actions\nroad:::\nthe rest:::', (), None),
    'quotes': ('"road","128","64","128"\n"the rest","0","0","0"', COLORS, None),
    'R G B A': ('road 128 64 128 255\nthe rest 0 0 0 255', COLORS, None),
    'FreeSurfer': (
        '#No. Label Name: R G B A\n0 road 128 64 128 0\n4 the rest 0 0 0 0',
        COLORS,
        {0: 0, 4: 1, 255: IGNORE},
    ),
    '3D Slicer': ('# Color table file x\n0 road 128 64 128 255\n1 the rest 0 0 0 0', COLORS, None),
    'ITK-SNAP': (
        '# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n'
        '    0   128   64  128        0  0  0    "road"\n    1     0    0    0     0.85  1  1    "the rest"',
        COLORS,
        None,
    ),
    'code': ("('road', 'the rest')", (), None),
    'one line': ('road, the rest\n', (), None),
    'Segments.ai': (
        {
            'task_attributes': {
                'format_version': '0.1',
                'categories': [
                    {'name': 'road', 'id': 1, 'color': [128, 64, 128]},
                    {'name': 'the rest', 'id': 2, 'color': [0, 0, 0]},
                ],
            }
        },
        COLORS,
        {1: 0, 2: 1, 255: IGNORE},
    ),
    'Encord': ({'objects': [{'name': 'road', 'shape': 'x'}, {'name': 'the rest'}]}, (), None),
    'comments': ('// x\nroad\nthe rest', (), None),
    'hex without #': ('road 804080\nthe rest 000000', COLORS, None),
    'columns that are not needed': (
        'id,trainId,name,color\n7,0,road,"128,64,128"\n0,255,"the rest",#000000',
        COLORS,
        {7: 0, 0: 1, 255: IGNORE},
    ),
    'bullets': ('- road\n- the rest', (), None),
    'headings and blanks': ('name r g b\nroad 128 64 128\nthe rest 0 0 0', COLORS, None),
    'mmsegmentation': ({'classes': ['road', 'the rest'], 'palette': COLORS}, COLORS, None),
    'names': ('road\n"the rest"\n\n', (), None),
    'LabelMe': ('__ignore__\nroad\nthe rest', (), None),
    'csv': ('name,r,g,b\nroad,128,64,128\nthe rest,0,0,0', COLORS, None),
    'csv with an id': ('id;name;r;g;b\n0;road;128;64;128\n1;the rest;0;0;0', COLORS, None),
    'csv, plurals': ('Classes,Red,Green,Blue\nroad,128,64,128\nthe rest,0,0,0', COLORS, None),
    'csv with other ids': ('name,id\nroad,7\nthe rest,0', (), {7: 0, 0: 1, 255: IGNORE}),
    'Roboflow': ('Pixel Value, Class\n0, road\n1, the rest', (), None),
    'csv, quoted': ('"name","color"\n"road","#804080"\n"the rest","#000000"', COLORS, None),
    'id name': ('0 road\n1 the rest', (), None),
    'id: name': ('1: road\n2: the rest', (), {1: 0, 2: 1, 255: IGNORE}),
    'name id': ('road 3\nthe rest 1', (), {3: 0, 1: 1, 255: IGNORE}),
    'id name R G B': ('5 road 128 64 128\n1 the rest 0 0 0', COLORS, {5: 0, 1: 1, 255: IGNORE}),
    'id R G B name': ('0 128 64 128 road\n1 0 0 0 the rest', COLORS, None),
    'id,name,#hex': ('0,road,#804080\n1,the rest,#000000', COLORS, None),
    'Supervisely': (
        {
            'classes': [
                {'title': 'road', 'shape': 'polygon', 'color': '#804080', 'id': 12},
                {'title': 'the rest', 'color': '#000000', 'id': 3},
            ]
        },
        COLORS,
        None,
    ),
    'Labelbox': (
        {
            'tools': [
                {'tool': 'superpixel', 'name': 'road', 'color': '#804080'},
                {'tool': 'superpixel', 'name': 'the rest', 'color': '#000000'},
            ]
        },
        COLORS,
        None,
    ),
    'COCO': (
        {'categories': [{'id': 1, 'name': 'road', 'supercategory': 'x'}, {'id': 2, 'name': 'the rest'}]},
        (),
        {1: 0, 2: 1, 255: IGNORE},
    ),
    'id2label': ({'0': 'road', '1': 'the rest'}, (), None),
    'colours by name': ({'road': [128, 64, 128], 'the rest': [0, 0, 0]}, COLORS, None),
    'a list': (['road', 'the rest'], (), None),
}  # fmt: skip


@pytest.mark.parametrize('case', CLASSES)
def test_files_of_classes(case, tmp_path):
    text, colors, label_map = CLASSES[case]
    ending = 'txt' if isinstance(text, str) else 'json'
    (tmp_path / f'names.{ending}').write_text(
        text if ending == 'txt' else json.dumps(text), encoding='utf-8-sig'
    )
    assert parse_classes(f'names.{ending}', str(tmp_path)) == (('road', 'the rest'), colors, label_map)


def test_yaml_names_the_package_to_install(tmp_path, monkeypatch):
    (tmp_path / 'data.yaml').write_text('names: [road, car]')
    monkeypatch.setitem(sys.modules, 'yaml', None)  # cannot be imported
    with pytest.raises(ConfigError, match='pip install pyyaml'):  # `yaml` is no package
        parse_classes('data.yaml', str(tmp_path))


def test_yaml(tmp_path):
    pytest.importorskip('yaml')
    for text in ('train: x\nnames: [road, the rest]\nnc: 2\n', 'names:\n  0: road\n  1: the rest\n'):
        (tmp_path / 'data.yaml').write_text(text)
        assert parse_classes('data.yaml', str(tmp_path)) == (('road', 'the rest'), (), None)


def test_values_of_a_class_file_are_those_of_labels(tmp_path):
    tree(tmp_path, [f'images/train/{i}.png' for i in range(3)], [f'labels/train/{i}.png' for i in range(3)])
    (tmp_path / 'names.csv').write_text('name,id\nroad,2\nrest,0\nsky,1\n')
    samples = source(tmp_path, classes='names.csv')
    assert [int(samples[i]['label'][0, 0]) for i in range(3)] == [1, 2, 0]
    samples = source(tmp_path, classes='names.csv', label_map='0:sky,1:sky,2:sky')  # counts more
    assert [int(samples[i]['label'][0, 0]) for i in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(
    'text',
    [
        'class,frequency\nroad,0.3\ncar,0.7',
        'name,part of\nroad,street\ncar,street',
        'category;weight\nroad;1\ncar;2',
    ],
)
def test_headings_of_what_is_not_used(text, tmp_path):
    (tmp_path / 'names.txt').write_text(text)
    assert parse_classes('names.txt', str(tmp_path)) == (('road', 'car'), (), None)


def test_first_lines_that_are_no_headings(tmp_path):
    for first, second in (('label: a', 'label: b'), ('object, a', 'object, b'), ('class,0', 'road,1')):
        (tmp_path / 'names.txt').write_text(f'{first}\n{second}\n')
        assert len(parse_classes('names.txt', str(tmp_path)).names) == 2
    for shares in ('road,0.3\ncar,0.7', 'road 0.3\ncar 0.7'):
        (tmp_path / 'names.txt').write_text(shares)
        refuse(['is not understood'], parse_classes, 'names.txt', str(tmp_path), error=ConfigError)


@pytest.mark.parametrize('between', [': ', ', ', ' | ', ' ; ', ' = ', ' -> ', ' ', ':', '->'])
def test_values_after_names(between, tmp_path):
    (tmp_path / 'names.txt').write_text(f'road{between}10\ncar (red){between}11\n')
    found = parse_classes('names.txt', str(tmp_path))
    assert found == (('road', 'car (red)'), (), {10: 0, 11: 1, 255: 255})


def test_names_with_numbers_stay_names(tmp_path):
    for line in ('zone%d', '%d zone%d', '%d zone %d'):
        lines = [
            f'{line % ((i,) * line.count("%"))} {c}' for i, c in enumerate(('255 0 0', '0 255 0', '0 0 255'))
        ]
        (tmp_path / 'zones.txt').write_text('\n'.join(lines))
        found = parse_classes('zones.txt', str(tmp_path))
        assert found.colors == ((255, 0, 0), (0, 255, 0), (0, 0, 255)), found
        assert found.names[1].replace(' ', '') == 'zone1'
    (tmp_path / 'names.txt').write_text('class 0\nclass 1\n')
    assert parse_classes('names.txt', str(tmp_path)).names == ('class 0', 'class 1')
    (tmp_path / 'names.txt').write_text('wall, walls\nlane 2 128 64 128\n')
    refuse(['no colour'], parse_classes, 'names.txt', str(tmp_path), error=ConfigError)


def test_files_of_classes_that_cannot_be_used(tmp_path):
    wrong = lambda words, text: refuse(
        [repr(text), *words], parse_classes, text, str(tmp_path), error=ConfigError
    )
    for absent in ('names.csv', 'a/names', 'C:\\x\\names', 'labels.names', '../names.txt', 'meta.json'):
        wrong(['no such file'], absent)
    for text, word in (
        ('item {\n  id: 1\n  name: "road"\n}\n', 'not understood'),
        ('0 0 0\n128 64 128\n', 'not understood'),
        ('#FF0000\n#00FF00\n', 'not understood'),
        ('road 0.5 0.25 0.5\nsky 0 0 0.55\n', 'not understood'),
        ('name,r,g,b\nroad,0.5,0.2,0.5\n', 'numbers from 0 to 255'),
        ('value, class\n0, road, wet\n', '3 columns, but there are 2 headings'),
        ('images/a.png\nimages/b.png\n', "'images/a.png' is the name of a picture"),
        ('<annotations>\n</annotations>\n', 'not understood'),
        ('road 1 2 3\nsky\n', "'sky' has no colour"),
        ('name,id\nroad,1\nsky,1\n', 'the value 1 appears twice'),
        ('name,id\nroad,1\nsky,\n', "'sky' has no value"),
    ):
        (tmp_path / 'names.txt').write_text(text)
        wrong([word], 'names.txt')
    (tmp_path / 'names.json').write_text('{"classes": [')
    wrong(['not understood'], 'names.json')
