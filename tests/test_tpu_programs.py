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
from ann_jax.tools.tpu_programs import ROWS, Row, collectives
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


def test_rows_are_read_and_written():
    assert Row.parse('inference,v5p:2x2x4,2,96x208') == ('inference', 'v5p:2x2x4', 2, 96, 208)
    assert [str(Row.parse(text)) for text in ROWS] == list(ROWS)
    for bad in ('step,v5e:4x8,1', 'train,v5e:4x8,1,9x9', 'step,v5e,1,9x9', 'step,v5e:4x8,1,9'):
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
    figures = {'chips': 4, 'images': 2, 'memory': 5e9, 'flops': 3e12, 'bytes': 7e10, 'seconds': 1, 'jax': '1'}
    path.write_text(json.dumps({'step,v5e:2x2,2,9x9': figures | {'collectives': {'all-reduce': [3, 2e6]}}}))
    compiled = []

    def measured(row, *_):
        compiled.append(str(row))
        return figures | {'collectives': {}}

    monkeypatch.setattr(tpu_programs, 'measured', measured)
    rows = 'step,v5e:2x2,2,9x9 inference,v5e:2x2,1,9x9'
    tpu_programs.main(['--config=scenes', f'--rows={rows}', f'--output={path}'])
    assert compiled == ['inference,v5e:2x2,1,9x9'] and set(json.loads(path.read_text())) == set(rows.split())
    printed = capsys.readouterr().out.splitlines()
    assert printed[2] == (
        '| step, 9 x 9, v5e:2x2, space 2 | 4 | 2 | 5.00 GB | 3.00 | 70.0 | 3 all-reduce (2.0 MB) |'
    )
    assert printed[3].endswith('| 70.0 | none |')
    with pytest.raises(SystemExit, match='error: .*is not WHAT'):
        tpu_programs.main(['--config=scenes', '--rows=nonsense', f'--output={path}'])


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'), reason="no compiler for TPUs: pip install 'jax[tpu]'"
)
def test_a_step_compiles_for_a_tpu(tmp_path, capsys):
    rows = 'step,v5e:2x2,2,33x65 inference,v5e:2x2,1,33x65'
    output = tmp_path / 'found.json'
    tpu_programs.main(['--config=scenes:runlocal', '--classes=5', f'--rows={rows}', f'--output={output}'])
    step, inference = json.loads(output.read_text()).values()
    assert step['chips'] == 4 and step['images'] == 2 and inference['images'] == 4
    assert step['collectives'].keys() >= {'all-reduce', 'collective-permute'} and not inference['collectives']
    with pytest.raises(SystemExit, match='v9:2x2 cannot be compiled for'):
        tpu_programs.main(['--config=scenes', '--rows=step,v9:2x2,1,9x9', f'--output={output}'])
