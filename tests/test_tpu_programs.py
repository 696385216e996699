"""Programs compiled for TPUs that are not there, and what the table says of them."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from ann_jax import build
from ann_jax.errors import ConfigError
from ann_jax.models.fold import fold, folded_shapes
from ann_jax.models.initializers import initial_variables
from ann_jax.tools import tpu_programs
from ann_jax.tools.cost_model import step_of
from ann_jax.tools.tpu_programs import ROWS, Row, collectives, hbm_bytes
from configs import scenes

PROGRAM = """
  %all-reduce.182 = s32[1]{0:T(128)} all-reduce(%bitcast.1809), channel_id=4, to_apply=%region_68
  %all-reduce.7 = (f32[16]{0:T(128)S(1)}, bf16[3,5]{1,0}) all-reduce(%a, %b), channel_id=9, to_apply=%region_0
  %start.1 = (bf16[1,2,8,3]{2,1,3,0}, bf16[1,2,8,3]{2,1}, u32[]{:S(2)}) collective-permute-start(%slice)
  %permute-done.1 = bf16[1,2,8,3]{2,1,3,0} collective-permute-done(%start.1)
  %fusion.3 = f32[16]{0} fusion(%all-reduce.7), kind=kLoop, calls=%all-reduce-fusion
"""


def test_collectives_are_counted_where_they_end():
    assert collectives(PROGRAM) == {'all-reduce': (2, 4 + 64 + 30), 'collective-permute': (1, 96)}


def test_bytes_of_hbm_have_the_padding_of_tiles_and_not_the_memory_of_the_chip():
    program = """
%fused_computation.1 (param_0: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0:T(128)} negate(%param_0)
}

ENTRY %main (p.1: bf16[7,9,3]) -> f32[7,9] {
  %p.1 = bf16[7,9,3]{2,1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %p.2 = f32[3]{0:T(128)} parameter(1)
  %start = (bf16[7,9,3]{2,1,0:T(8,128)(2,1)S(1)}, bf16[7,9,3]{2,1,0:T(8,128)(2,1)}) copy-start(%p.1)
  %done = bf16[7,9,3]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %fusion.1 = (f32[7,9]{0,1:T(8,128)S(1)}, f32[7,9]{0,1}) fusion(%done, %p.2, %p.2), kind=kLoop, calls=%fused
  %gte = f32[7,9]{0,1:T(8,128)S(1)} get-tuple-element(%fusion.1), index=0
  ROOT %copy.1 = f32[7,9]{1,0:T(8,128)} copy(%gte), backend_config={}
}
"""
    copied, read, written, result = 7 * 16 * 128 * 2, 2 * 128 * 4, 7 * 9 * 4, 8 * 128 * 4
    assert hbm_bytes(program) == copied + read + written + result


def test_rows_are_read_and_written():
    assert Row.parse('inference,v5p:2x2x4,2,96x208') == ('inference', 'v5p:2x2x4', 2, 96, 208, 1)
    assert Row.parse('step,v5e:4x8,1,769x769,2').images == 2
    assert [str(Row.parse(text)) for text in ROWS] == list(ROWS)
    bad_rows = (
        'step,v5e:4x8,1',
        'train,v5e:4x8,1,9x9',
        'step,v5e,1,9x9',
        'step,v5e:4x8,1,9',
        'step,v5e:4x8,1,9x9,',
        'step,v5e:0x2,1,9x9',
        'step,v5e:4x8,0,9x9',
        'step,v5e:4x8,1,0x9',
        'step,v5e:4x8,1,9x9,0',
    )
    for bad in bad_rows:
        with pytest.raises(ConfigError, match='is not WHAT,TOPOLOGY,SPACE,HEIGHTxWIDTH'):
            Row.parse(bad)


def test_shapes_of_the_folded_network_are_those_of_folding():
    config = scenes.get_config('runlocal')
    config.model.dtype = 'bfloat16'
    model = build.model(config, 5)
    shape = lambda x: (x.shape, jnp.dtype(x.dtype))
    expected = jax.tree.map(shape, fold(model, initial_variables(model, seed=0)))
    assert jax.tree.map(shape, folded_shapes(model)) == expected


def test_what_is_known_is_not_compiled_again(monkeypatch, tmp_path, capsys):
    path = tmp_path / 'known.json'
    figures = {'chips': 4, 'memory': 5e9, 'flops': 3e12, 'bytes': 7e10, 'hbm': 6e9, 'seconds': 1, 'jax': '1'}
    compiled = []

    def measured(row, *_):
        compiled.append(str(row))
        return figures | {
            'images': 2 * row.images,
            'collectives': {'all-reduce': [3, 2e6]} if row.space > 1 else {},
        }

    monkeypatch.setattr(tpu_programs, 'measured', measured)
    first, *others = rows = ['step,v5e:2x2,2,9x9', 'step,v5e:2x2,2,9x9,4', 'inference,v5e:2x2,1,9x9']
    tpu_programs.main(['--config=scenes', f'--rows={first}', f'--output={path}'])
    tpu_programs.main(['--config=scenes', f'--rows={" ".join(rows)}', f'--output={path}'])
    assert compiled == [first, *others] and list(json.loads(path.read_text())['rows']) == rows
    printed = capsys.readouterr().out.splitlines()[-3:]
    assert printed[:2] == [
        f'| step, 9 x 9, v5e:2x2, space 2 | 4 | {n} | 5.00 GB | 3.00 | 70.0 | 6.0 | 3 all-reduce (2.0 MB) |'
        for n in (2, 8)
    ]
    assert printed[2].endswith('| 70.0 | 6.0 | none |')
    with pytest.raises(SystemExit, match='error: .*is not WHAT'):
        tpu_programs.main(['--config=scenes', '--rows=nonsense', f'--output={path}'])


def test_the_classes_are_those_of_the_dataset_unless_given(monkeypatch, tmp_path):
    used = []
    monkeypatch.setattr(tpu_programs, 'measured', lambda row, config, classes: used.append(classes) or exit())
    for i, given in enumerate((['--config=ade20k'], ['--config=voc'], ['--config=voc', '--classes=7'])):
        with pytest.raises(SystemExit):
            tpu_programs.main([*given, '--rows=step,v5e:2x2,1,9x9', f'--output={tmp_path / str(i)}'])
    assert used == [150, 21, 7]


@pytest.mark.parametrize(
    'bad, says',
    [
        ('--classes=0', '--classes=0: .* range .1, 255'),
        ('--classes=256', '--classes=256: .* range .1, 255'),
        ('--rows=', "--rows='' names no program: give some, such as step,"),
        ('--output=.', 'cannot write .*: it is a folder'),
    ],
)
def test_bad_arguments_end_before_a_program_is_compiled(monkeypatch, tmp_path, bad, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tpu_programs, 'measured', lambda *_: pytest.fail('compiled'))
    with pytest.raises(SystemExit, match=f'error: .*{says}'):
        tpu_programs.main(['--config=scenes', '--rows=step,v5e:2x2,1,9x9', bad])


@pytest.mark.parametrize(
    'text, says',
    [
        (
            'RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total memory required for HLO '
            'temporaries (57.92G) exceeds available HBM (15.75G). HLO module: jit_step.\nSee error_1000.',
            'total memory required for HLO temporaries (57.92G) exceeds available HBM (15.75G)',
        ),
        ('RESOURCE_EXHAUSTED: out of\nmemory', 'RESOURCE_EXHAUSTED: out of memory'),
        ('INTERNAL: a defect', None),
    ],
)
def test_a_program_that_does_not_fit_is_one_line(monkeypatch, text, says):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(tpu_programs, 'devices_of', lambda topology: jax.devices()[:1])
    monkeypatch.setattr(tpu_programs, 'step_program', lambda *_: Lowered())
    row = Row.parse('step,v5e:1x1,1,9x9,16')
    with pytest.raises(ConfigError if says else jax.errors.JaxRuntimeError) as caught:
        tpu_programs.measured(row, scenes.get_config(), 5)
    if says:
        assert str(caught.value) == (
            f'{row} does not fit into a chip ({says}): give fewer images, smaller ones, or more chips '
            'for each, or --config.model.remat=2,3,4,5'
        )


def test_a_step_in_parts_is_not_counted_as_one_of_the_whole_batch():
    config = scenes.get_config('runlocal')
    config.train.accumulate = 2
    with pytest.raises(ConfigError, match='train.accumulate=2: .* leave it at 1'):
        step_of(config, 5)


def test_rows_of_other_settings_are_not_taken(monkeypatch, tmp_path):
    path = tmp_path / 'known.json'
    monkeypatch.setattr(tpu_programs, 'measured', lambda *_: pytest.fail('compiled'))
    path.write_text('{"step,v5e:2x2,2,9x9": {}}')
    with pytest.raises(
        SystemExit, match='known.json has rows of other settings .classes, .*: name another file by'
    ):
        tpu_programs.main(['--config=scenes', '--rows=step,v5e:2x2,2,9x9', f'--output={path}'])
    for damaged in ('{', '[1]'):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match='known.json holds no figures of programs: name another'):
            tpu_programs.known(path, {})
    with pytest.raises(SystemExit, match='train.steps=0: must be'):
        tpu_programs.main(['--config=scenes', '--config.train.steps=0', f'--output={path}'])
    settings = {'classes': 19, 'model.dtype': 'float32'}
    rows = {'step,v5e:2x2,2,9x9': {}}
    path.write_text(json.dumps({'settings': settings, 'rows': rows}))
    assert tpu_programs.known(path, settings)['rows'] == rows
    with pytest.raises(ConfigError, match='rows of other settings .model.dtype.: '):
        tpu_programs.known(path, settings | {'model.dtype': 'bfloat16'})
    path.write_text(json.dumps({'settings': settings, 'rows': {}}))
    fresh = {'settings': settings | {'classes': 7}, 'rows': {}}
    assert tpu_programs.known(path, settings | {'classes': 7}) == fresh


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason="no compiler for TPUs: pip install 'jax[tpu]'"
)
def test_a_step_compiles_for_a_tpu(tmp_path, capsys):
    rows = 'step,v5e:2x2,2,33x65 inference,v5e:2x2,1,33x65'
    output = tmp_path / 'found.json'
    tpu_programs.main(['--config=scenes:runlocal', '--classes=5', f'--rows={rows}', f'--output={output}'])
    step, inference = json.loads(output.read_text())['rows'].values()
    assert 0 < step['hbm'] < step['bytes'] and 0 < inference['hbm'] < inference['bytes']
    assert step['chips'] == 4 and step['images'] == 2 and inference['images'] == 4
    assert step['collectives'].keys() >= {'all-reduce', 'collective-permute'} and not inference['collectives']
    with pytest.raises(SystemExit, match='v9:2x2 cannot be compiled for'):
        tpu_programs.main(['--config=scenes', '--rows=step,v9:2x2,1,9x9', f'--output={output}'])
