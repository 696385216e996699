"""Lists of images and labels as people and tools write them."""

from pathlib import Path

import numpy as np
import pytest
from own_files import matched, pairs, refuse, source, tree
from PIL import Image

LISTS = {
    'pairs': 'images/a.png masks/a.png\nimages/my photo.png masks/my photo.png',
    'a slash first': '/images/a.png /masks/a.png\n/images/b.png /masks/b.png',
    'absolute': '{root}/images/a.png {root}/masks/a.png\n{root}/images/b.png {root}/masks/b.png',
    'commas': 'images/a.png,masks/a.png\nimages/b.png, masks/b.png',
    'commas, semicolon file': 'images/a.png;masks/a.png\nimages/b.png;masks/b.png;',
    'tabs': 'images/a.png\tmasks/a.png\nimages/my photo.png\tmasks/my photo.png',
    'backslashes': 'images\\a.png masks\\a.png\nimages\\b.png masks\\b.png',
    'comments': '# x\n\n  images/a.png masks/a.png\n#images/x.png masks/x.png\nimages/b.png masks/b.png',
    'headings': 'image,label\nimages/a.png,masks/a.png\nimages/b.png,masks/b.png',
    'headings in another order': 'mask,filename\nmasks/a.png,images/a.png\nmasks/b.png,images/b.png',
    'headings of a table': ',filename,mask,width\n0,images/a.png,masks/a.png,3\n1,images/b.png,masks/b.png,3',
    'other headings': 'x,y\nimages/a.png,masks/a.png\nimages/b.png,masks/b.png',
    'quotes': '"images/a.png","masks/a.png"\n"images/my, photo.png","masks/my, photo.png"',
    'quotes and blanks': '"images/a.png" "masks/a.png"\n"images/my photo.png" "masks/my photo.png"',
    'names of files': 'a.png,a.png\nb.png,b.png',
    'of another computer': '/home/me/x/images/a.png C:\\x\\masks\\a.png\nimages/b.png masks/b.png # blurred',
    'bars': 'images/a.png|masks/a.png\nimages/b.png | masks/b.png',
    'dots': './images/a.png ./masks/a.png\n./images/../images/b.png masks/b.png',
    'names': 'a\nb',
    'names with endings': 'a.png\r\nmy photo.png\r\n',
    'names, headings': 'filename\na.png\nb.png',
    'names as paths': 'images/a.png\n{root}/images/b.png',
    'names and commas': 'a.png,\nb.png,',
}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le'])
@pytest.mark.parametrize('case', LISTS)
def test_lists(case, encoding, tmp_path):
    second = next((n for n in ('my, photo', 'my photo') if n in LISTS[case]), 'b')
    names = ['a', second, 'rest']
    tree(tmp_path, [f'images/{n}.png' for n in names], [f'masks/{n}.png' for n in names])
    (tmp_path / 'lists').mkdir()
    text = LISTS[case].format(root=tmp_path)
    (tmp_path / 'lists/train.csv').write_text(text, encoding=encoding, newline='')
    found = pairs(source(tmp_path, images='images', labels='masks', lists='lists/{split}.csv'))
    assert [Path(name).name for name in found] == names[:2] and [*found.values()] == [(0, 0), (1, 1)]


def test_a_list_from_the_home_folder_and_beside_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    tree(tmp_path, ['data/deep/a.png', 'data/deep/b.png'], ['data/deep/a_l.png', 'data/deep/b_l.png'])
    (tmp_path / 'data/deep/train.txt').write_text('~/data/deep/a.png ~/data/deep/a_l.png\nb.png b_l.png\n')
    matched(source(tmp_path / 'data', lists='deep/{split}.txt'), ['deep/a', 'deep/b'])


def test_lists_that_cannot_be_used(tmp_path):
    tree(tmp_path, ['i/a.png', 'i/a.jpg'], ['l/a.png', 'l/a_jpg.png'])
    write = lambda text, **kwargs: (tmp_path / 'train.txt').write_text(text, **kwargs)
    flags = {'lists': '{split}.txt'}
    write('i/a.png l/a.png\n\ni/a.jpg l/a_jpg.png l/a.png\n')
    refuse(['line 3 of', 'train.txt', '3 columns'], source, tmp_path, **flags)
    write('i/a.png l/a.png\ni/a.jpg\n')
    refuse(['line 2 of', 'i/a.jpg and no label'], source, tmp_path, **flags)
    write('i/a.png l/a.png\ni/a.jpg l/q.png\n')
    refuse(['line 2 of', 'names', 'l/q.png, which does not exist'], source, tmp_path, **flags)
    write('i/a.png l/ä.png\n', encoding='latin-1')
    refuse(['train.txt', 'UTF-8'], source, tmp_path, **flags)
    write('i/a.png l/a.png\ni/a.jpg l/a_jpg.png\ni/a.png l/a.png\n')  # one name, two files; one line twice
    assert [source(tmp_path, **flags)[i]['name'] for i in range(3)] == ['i/a', 'i/a.jpg', 'i/a']


def test_lists_that_name_the_label_first(tmp_path, caplog):
    """As what exists says or, if all files do, as what the pictures look like."""
    rng = np.random.default_rng(0)
    for number in range(3):
        for folder, many in (('i', 256), ('l', 3)):
            path = tmp_path / folder / f'{number}.png'
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, many, (40, 40), np.uint8)).save(path)
    write = lambda line: (tmp_path / 'train.txt').write_text(''.join(line.format(n) for n in range(3)))
    flags = {'lists': '{split}.txt', 'images': 'i', 'labels': 'l'}
    for line, turned in (
        ('i/{0}.png l/{0}.png\n', False),
        ('l/{0}.png i/{0}.png\n', True),
        ('l/{0}.png,i/{0}.png\n', True),
        ('{0}.png,{0}.png\n', False),
    ):
        write(line)
        with caplog.at_level('INFO'):
            caplog.clear()
            found = source(tmp_path, **flags)
        assert all(found[n]['label'].max() < 3 and len(np.unique(found[n]['image'])) > 99 for n in range(3))
        assert ('the label before the image' in caplog.text) == turned
    for number in range(3):
        (tmp_path / f'i/{number}.png').rename(tmp_path / f'i/{number}.bmp')
    write('{0}.png {0}.bmp\n')
    assert source(tmp_path, **flags)[0]['label'].max() < 3
    for number in range(3):  # scans of few values tell nothing, and the usual order is kept
        (tmp_path / f'i/{number}.bmp').write_bytes((tmp_path / f'l/{number}.png').read_bytes())
    write('i/{0}.bmp l/{0}.png\n')
    assert source(tmp_path, **flags).image_files()[0].endswith('i/0.bmp')


def test_files_of_lists_that_are_named_otherwise(tmp_path):
    tree(tmp_path, ['i/a.jpg'], ['l/a.png'])
    for line, near in (
        ('i/a.JPG l/a.png', 'i/a.jpg'),
        ('a.jpg A.PNG', 'l/a.png'),
        ('i/a.jpeg a.png', 'i/a.jpg'),
    ):
        (tmp_path / 'train.txt').write_text(line)
        words = ['line 1', 'does not exist: there is ' + str(tmp_path / near), 'write that instead']
        refuse(words, source, tmp_path, lists='{split}.txt', images='i', labels='l')
