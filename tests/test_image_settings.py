"""How images are read: found in the training images, and kept with the weights."""

import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from PIL import Image
from sample_images import SIZE, refused, scaled, values
from small import small_folder

import ann_jax
from ann_jax import build
from ann_jax.config import defaults, validate
from ann_jax.data.augment.transforms import Augment
from ann_jax.data.decode.images import PLAIN
from ann_jax.data.decode.levels import Reading, find_range
from ann_jax.errors import ConfigError, DataError
from ann_jax.modes.resume import keep_settings
from ann_jax.weights import folder as weights
from ann_jax.weights.inputs import IMAGENET_RGB, for_channels
from ann_jax.weights.start import start


def own_folder(root, images, suffix='tif'):
    for split in ('train', 'val'):
        for number, image in enumerate(images):
            for kind, array in (('images', image), ('labels', np.zeros(image.shape[:2], np.uint8))):
                file = root / kind / split / f'{number}.{suffix if kind == "images" else "png"}'
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    config = defaults()
    config.dataset.update(name='folder', root=str(root), classes='a,b', image_range='auto')
    config.input = IMAGENET_RGB
    return config


def test_auto_is_the_percentiles_of_the_training_images(tmp_path):
    images = [values(3000, dtype=np.float32, seed=i) + 7 for i in range(3)]
    config = own_folder(tmp_path, images)
    validate(config)
    source = build.source(config, 'val')
    low, high = np.percentile(np.stack(images), (0.1, 99.9))
    assert config.dataset.image_range == f'{low:.6g},{high:.6g}'
    np.testing.assert_array_equal(
        source[0]['image'], scaled(images[0], *map(float, config.dataset.image_range.split(',')))
    )
    mixed = [np.full((*SIZE, 3), 200, np.uint8), np.full((*SIZE, 3), np.nan), values(5000, 3)]
    low, high = map(float, find_range(mixed).split(','))
    np.testing.assert_allclose((low, high), np.percentile(mixed[2], (0.1, 99.9)), rtol=1e-5)
    refused(['all values', '7'], find_range, [np.full((*SIZE, 1), 7)])
    config.dataset.image_range = ''
    refused(['0.tif', 'float32', 'image_range'], build.source(config, 'val').__getitem__, 0)


def test_a_resumed_run_keeps_the_range_that_was_found(tmp_path, monkeypatch):
    saved = defaults().to_dict()
    saved['dataset']['image_range'] = '3,9'
    (tmp_path / 'checkpoints/1').mkdir(parents=True)
    monkeypatch.setattr('ann_jax.modes.resume.read_facts', lambda _: {'config': saved})
    config = defaults()
    config.dataset.image_range = 'auto'
    keep_settings(config, tmp_path)
    assert config.dataset.image_range == '3,9'


@pytest.mark.usefixtures('compiled_fast')
def test_weights_keep_how_images_are_read(tmp_path):
    small_folder(tmp_path / 'w', image_range='100,4000', bands='4,2')
    opened = weights.load(tmp_path / 'w')
    assert opened.images == {'image_range': '100,4000', 'bands': '4,2'} and opened.in_channels == 2
    assert opened.reading(page=2) == Reading((100, 4000), (4, 2), 2)
    assert opened.reading(image_range='100,4000') == opened.reading()
    refused(['bands', '4,2'], opened.reading, bands='1,2', error=ConfigError)
    small_folder(tmp_path / 'plain')
    plain = weights.load(tmp_path / 'plain')
    assert plain.reading() == PLAIN and plain.reading(bands='4,3,2').bands == (4, 3, 2)
    refused(['picks 2', 'take 3'], plain.reading, bands='4,3', error=ConfigError)
    refused(['auto', 'LOW,HIGH'], plain.reading, image_range='auto', error=ConfigError)
    seg = ann_jax.load(tmp_path / 'w')
    array = values(5000, 4)
    result = seg(array)
    assert result.ids.shape == SIZE and result.overlay().shape == (*SIZE, 3)
    np.testing.assert_array_equal(result.image, scaled(array[..., [3]].repeat(3, 2)))
    np.testing.assert_allclose(result.probabilities().argmax(-1), result.ids)
    with pytest.raises(DataError, match='has 3 bands'):
        seg(array[..., :3])
    with pytest.raises(ConfigError, match='unknown settings'):
        ann_jax.load(tmp_path / 'w', band='1')


def test_rgb_weights_are_widened():
    path = ('params', 'backbone', 'stem', 'conv1', 'kernel')
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 3, 4)).astype(np.float32)
    image = rng.standard_normal((3, 3, 1)).astype(np.float32)
    for count in (1, 2, 3, 6):
        model = ConfigDict({'model': defaults().model, 'dataset': {'bands': ','.join('1' * count)}})
        initial = traverse_util.unflatten_dict({path: np.zeros((3, 3, build.channels(model), 4), np.float32)})
        loaded = traverse_util.unflatten_dict({path: kernel})
        wide = traverse_util.flatten_dict(start(initial, loaded, 'all'))[path]
        assert wide.shape == (3, 3, count, 4)
        if count != 2:  # the response to equal channels
            response = lambda kernel: np.einsum('hwi,hwio->o', image.repeat(kernel.shape[2], 2), kernel)
            np.testing.assert_allclose(response(wide), response(kernel), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(wide, 0.5 * np.concatenate([kernel, kernel], 2))


def test_each_channel_is_normalised_and_augmented_alone():
    mean = np.float32(np.mean(IMAGENET_RGB['mean']))
    np.testing.assert_allclose(for_channels(IMAGENET_RGB, 5)['mean'], [mean] * 5, rtol=1e-6)
    assert for_channels(IMAGENET_RGB, 3) == IMAGENET_RGB
    own = {'mean': (1.0, 2.0), 'std': (3.0, 4.0), 'bgr': False}
    assert for_channels(own, 2) == own
    refused(['input.mean', '3 numbers'], for_channels, own, 3, error=ConfigError)
    refused(['input.bgr'], for_channels, IMAGENET_RGB | {'bgr': True}, 4, error=ConfigError)
    count = 130  # OpenCV takes 128
    image, label = values(256, count, dtype=np.uint8), values(3, dtype=np.uint8)
    augment = Augment((30, 16), mean=range(1, count + 1))
    draw = augment.draw(np.random.default_rng(3), *SIZE)
    whole = augment.apply({'name': 'x', 'image': image, 'label': label}, draw)['image']
    for channel in (0, 1, 127, 128, 129):
        alone = Augment((30, 16), mean=(channel + 1,))
        part = alone.apply({'name': 'x', 'image': image[..., [channel]], 'label': label}, draw)['image']
        np.testing.assert_array_equal(whole[..., [channel]], part)
