"""Exported programs: without this package they give what the network gives."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reference import assert_close
from small import small_folder
from test_predict import config_for, expected_logits

import ann_jax
from ann_jax.data.scenes import render
from ann_jax.errors import ConfigError
from ann_jax.kernels.anchors import sample_anchors
from ann_jax.modes import exporters
from ann_jax.modes.export import export
from ann_jax.modes.onnx_graph import to_onnx

# Runs the snippets of a card, and their programs on another image.
FRESH = """
import re, sys
import numpy as np
sys.modules['ann_jax'] = None  # importing it fails
images, results = np.load('images.npy'), {}
for code in re.findall('```python\\n(.*?)```', open('README.md').read(), re.S):
    names = {}
    exec(code, names)
    onnx = 'session' in names
    results['onnx' if onnx else 'stablehlo'] = names['result']
    results['onnx_ids' if onnx else 'stablehlo_ids'] = names['ids']
    if onnx:
        results['onnx_batch'] = names['session'].run(['logits'], {'image': images})[0]
    else:
        results['stablehlo_batch'] = names['program'].call(images)
np.savez('results.npz', **results)
"""
# The types that TensorRT lists for the operators of `onnx_graph` and `onnx_rules`: docs/operators.md of
# onnx-tensorrt 8.5, the first with opset 17, and NVIDIA's pages on Cast and Identity for uint8. Where int32
# is taken, so is int64.
FLOAT, INTEGER, BOOL = ('float', 'float16'), ('int32', 'int64'), ('bool',)
TENSORRT = {
    operator: types
    for operators, types in (
        ('ArgMax Ceil Conv Erf Exp Floor Log MatMul Pow Reciprocal ReduceMax ReduceSum', FLOAT),
        ('Sigmoid Sqrt Tanh', FLOAT),
        ('And Not Or', BOOL),
        ('Abs Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul', FLOAT + INTEGER),
        ('Neg Pad Range Sign Sub', FLOAT + INTEGER),
        ('Concat Expand Gather Reshape Shape Slice Squeeze Transpose', FLOAT + INTEGER + BOOL),
        ('Unsqueeze Where', FLOAT + INTEGER + BOOL),
        ('Cast Identity', FLOAT + INTEGER + BOOL + ('uint8',)),
    )
    for operator in operators.split()
}


@pytest.fixture(scope='module')
def exported(folder, tmp_path_factory):
    """Of a run in bfloat16."""
    for needed in ('flatbuffers', 'onnx', 'onnxruntime'):
        pytest.importorskip(needed, reason='of the extra export')
    config = config_for(folder)
    config.model.dtype = 'bfloat16'
    out = tmp_path_factory.mktemp('export') / 'small'
    config.export.update(output=str(out), size=(64, 97), formats='stablehlo,onnx')
    settings = Path(folder, 'config.json')  # as a run has it
    settings.write_text('{"dataset": {"name": "streets"}}')
    export(config, tmp_path_factory.mktemp('run'))
    settings.unlink()
    with pytest.raises(ConfigError, match='exists'):
        export(config, tmp_path_factory.mktemp('run'))
    return out


def refused_by_tensorrt(file):
    """(operator, type of an input) of a graph that TensorRT does not list."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True)
    name = lambda number: onnx.TensorProto.DataType.Name(number).lower()
    types = {each.name: name(each.data_type) for each in model.graph.initializer}
    for each in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        types[each.name] = name(each.type.tensor_type.elem_type)
    data = lambda node: (
        node.input[:1] if node.op_type == 'ReduceSum' else node.input
    )  # the second is its axes
    held = {(node.op_type, types[each]) for node in model.graph.node for each in data(node)}
    assert len(held) > 20
    return sorted((op, dtype) for op, dtype in held if dtype not in TENSORRT.get(op, ()))


def test_the_snippets_of_the_card_run_without_this_package(folder, exported, tmp_path, environment):
    image, small = render((5, 33), 64, 130)[0][:33], render((5, 5), 64, 128)[0][:5, :2]
    work = tmp_path / 'elsewhere'
    shutil.copytree(exported, work)
    stored = Image.fromarray(image).transpose(Image.Transpose.ROTATE_90)  # as a phone that was turned
    exif = stored.getexif()
    exif[0x0112] = 6  # to be turned back
    stored.save(work / 'street.jpg', format='png', exif=exif)
    np.save(work / 'images.npy', np.stack([small[:, ::-1], small]))
    environment = {key: value for key, value in environment.items() if key != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-c', FRESH], check=True, cwd=work, env=environment)
    results, expected = np.load(work / 'results.npz'), expected_logits(folder, image)
    for name in ('stablehlo', 'onnx'):
        assert results[name].shape == (33, 130, 17)
        assert_close(results[name], expected, 1e-4)
        np.testing.assert_array_equal(results[f'{name}_ids'], results[name].argmax(-1))
        assert results[f'{name}_batch'].shape == (2, 5, 2, 17)
        assert_close(results[f'{name}_batch'][1], expected_logits(folder, small), 1e-4)


def test_an_export_is_a_folder_of_weights_with_a_card(exported):
    card = Path(exported, 'README.md').read_text()
    for words in (
        '16. worker',
        '- command: `python -m ann_jax.main',
        "ann_jax.load('FOLDER')",
        'channels red, green, blue',
        'any batch, height and width',
        'cpu, cuda, tpu',
        'opset 17, input image, output logits',
    ):
        assert words in card
    assert ann_jax.load(exported).classes[-1] == 'worker'
    assert json.loads(Path(exported, 'model.json').read_text())['version'] == 3


def test_a_card_of_bands_names_them_and_not_rgb(tmp_path):
    for needed in ('onnx', 'onnxruntime'):
        pytest.importorskip(needed, reason='of the extra export')
    small_folder(tmp_path / 'weights', bands='4,3,2', image_range='0,4095')
    config = config_for(tmp_path / 'weights')
    config.export.update(output=str(tmp_path / 'out'), formats='onnx')
    export(config, tmp_path)
    card = Path(tmp_path, 'out', 'README.md').read_text()
    assert '- channels from bands 4,3,2; mean' in card and '- 0,4095 are the values that become' in card
    assert 'red, green' not in card and 'uint8 3 channels to float32 logits' in card
    image = np.random.default_rng(0).integers(0, 4096, (33, 50, 4), np.uint16)
    # What the card says: bands 4, 3 and 2, and 4095 becomes 255.
    np.save(tmp_path / 'out' / 'street.npy', np.rint(image[..., [3, 2, 1]] / 4095 * 255).astype(np.uint8))
    (code,) = re.findall('```python\n(.*?)```', card, re.S)
    assert 'street.npy' in code and 'Image' not in code
    code += "np.save('ids.npy', ids)"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path / 'out')
    expected = ann_jax.load(tmp_path / 'out')(image).ids
    assert (np.load(tmp_path / 'out' / 'ids.npy') == expected).mean() > 0.999


def test_damaged_scores_and_settings_are_told_and_left_out(tmp_path, caplog):
    small_folder(tmp_path / 'weights')
    whole = {'split': 'val', 'step': 5, 'miou': 0.5, 'pixel_accuracy': 0.75}
    (tmp_path / 'weights' / 'metrics-test.json').write_text(json.dumps(whole))
    (tmp_path / 'weights' / 'metrics.json').write_text('{"split": "val", "st')
    (tmp_path / 'weights' / 'config.json').write_text('{"dataset": {"na')
    config = config_for(tmp_path / 'weights')
    config.export.update(output=str(tmp_path / 'out'), formats='')
    export(config, tmp_path)
    card = Path(tmp_path, 'out', 'README.md').read_text()
    assert '`val` at step 5: mIoU 50.00, pixel accuracy 75.00' in card and 'in config.json' not in card
    assert not (tmp_path / 'out' / 'config.json').exists()
    for name in ('metrics.json', 'config.json'):
        assert f'{name} is damaged (' in caplog.text


def test_tensorrt_lists_the_operators(exported):
    assert not refused_by_tensorrt(exported / 'model.onnx')


def test_litert(folder, tmp_path):
    pytest.importorskip('litert_converter', reason='of the extra litert')
    interpreter = pytest.importorskip('ai_edge_litert.interpreter', reason='of the extra litert')
    config = config_for(folder)
    config.export.update(output=str(tmp_path / 'out'), size=(33, 130), formats='litert')
    export(config, tmp_path)
    image = render((5, 33), 64, 130)[0][:33]
    runner = interpreter.Interpreter(str(tmp_path / 'out' / 'model.tflite')).get_signature_runner()
    assert_close(runner(image=image[None])['logits'][0], expected_logits(folder, image), 1e-4)


def test_onnx_of_normalised_images_to_ids_in_float16(folder, tmp_path):
    pytest.importorskip('onnx', reason='of the extra export')
    onnxruntime = pytest.importorskip('onnxruntime', reason='of the extra export')
    config = config_for(folder)
    config.export.update(output=str(tmp_path / 'out'), size=(64, 97), formats='onnx')
    config.export.update(dtype='float16', takes='normalized', gives='ids')
    export(config, tmp_path)
    assert not refused_by_tensorrt(tmp_path / 'out' / 'model.onnx')
    session = onnxruntime.InferenceSession(str(tmp_path / 'out' / 'model.onnx'))
    image = render((5, 33), 64, 130)[0][:33]
    normal = (np.float32(image) - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
    (ids,) = session.run(['ids'], {'image': np.float32(normal[None])})
    logits = np.asarray(expected_logits(folder, image))
    assert ids.dtype == np.uint8 and ids.shape == (1, 33, 130)
    chosen = np.take_along_axis(logits, np.int64(ids[0])[..., None], -1)[..., 0]
    assert (logits.max(-1) - chosen).max() < 5e-3 * np.abs(logits).max()


@pytest.mark.parametrize('sampling', ['max', 'random', 'average'])
def test_onnx_of_a_function(sampling):
    pytest.importorskip('onnx', reason='of the extra export')
    onnxruntime = pytest.importorskip('onnxruntime', reason='of the extra export')

    def function(x):
        anchors = sample_anchors(x[..., ::-1] * jnp.arange(3.0), sampling, (1, 2), jax.random.key(0))
        y = jnp.einsum('bsc,btc->bst', anchors, anchors) % 3 - jnp.float32(x.shape[0])
        return jnp.stack([jax.nn.softmax(y), y**2, jnp.where(y > 0, y, jax.nn.sigmoid(y))], 1)[:, ::2]

    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('n'), 6, 7, 3), jnp.float32)
    model = to_onnx(function, shape, 'x', 'y').SerializeToString()
    x = np.random.default_rng(0).standard_normal((4, 6, 7, 3)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(model).run(['y'], {'x': x})
    assert_close(y, function(x), 1e-5)


def test_export_refuses(folder, tmp_path, monkeypatch):
    config = config_for(folder)
    config.export.formats = 'tflite'
    with pytest.raises(ConfigError, match="unknown export.formats 'tflite'"):
        export(config, tmp_path)
    config.export.update(formats='onnx', dtype='bfloat16')
    with pytest.raises(ConfigError, match='export.dtype=bfloat16: ONNX Runtime cannot'):
        export(config, tmp_path)
    config.export.update(formats='litert', dtype='float16')
    with pytest.raises(ConfigError, match='export.dtype=float16: LiteRT is written in float32 only'):
        export(config, tmp_path)
    pytest.importorskip('onnx', reason='of the extra export')
    config.export.update(formats='onnx', output=str(tmp_path / 'large'))
    monkeypatch.setattr(exporters, 'LARGEST_ONNX', 10**4)
    with pytest.raises(ConfigError, match='an ONNX file holds at most .* take export.dtype=float16'):
        export(config, tmp_path)
    with pytest.raises(ConfigError, match=r'no counterpart here of jax.lax.cumsum: leave onnx out of'):
        to_onnx(jnp.cumsum, jax.ShapeDtypeStruct((3,), jnp.float32), 'x', 'y')
