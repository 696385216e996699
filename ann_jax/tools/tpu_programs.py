r"""What the compiler for TPUs makes of a training step or of inference: memory, FLOPs, bytes, collectives.

    pip install 'jax[tpu]'
    python -m ann_jax.tools.tpu_programs --config=configs/cityscapes.py --config.model.dtype=bfloat16 \
        --rows='step,v5e:4x8,1,769x769 inference,v5e:2x2,4,1024x2048'

compiles programs for chips that are not there, and prints a table, by default that of docs/scaling.md. A row
is

    step or inference, topology, chips that share an image (`mesh.space`), height x width

with one image for each such group of chips, or as many as a fifth field says: `step,v5e:4x8,1,769x769,2`. A
step of ANN-ResNet-101 compiles for 6 to 20 minutes of a core. Rows that `--output=FILE` holds are not
compiled again.
"""

import json
import logging
import math
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ann_jax import build, command, files
from ann_jax.config import validate
from ann_jax.errors import ConfigError, DataError, SaveError
from ann_jax.models.feature_map import FeatureMap
from ann_jax.models.fold import folded_shapes
from ann_jax.parallel.arrays import replicated, split_batch
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import jit
from ann_jax.runs import history
from ann_jax.tools.cost_model import COLLECTIVES, ITEMSIZE, classes_of, define_classes, size_of, step_of

logger = logging.getLogger(__name__)

# Those of docs/scaling.md.
ROWS = (
    'step,v5e:4x8,1,769x769',
    'step,v5e:4x8,1,769x769,2',
    'step,v5e:8x16,1,769x769',
    'step,v5e:4x8,2,1024x2048',
    'step,v5e:4x8,4,1024x2048',
    'inference,v5e:4x8,1,1024x2048',
    'inference,v5e:4x8,2,1024x2048',
    'inference,v5e:4x8,4,1024x2048',
)
# What a program says of an array: f32[769,19]{0,1:T(8,128)S(1)}, of which T are tiles, and S a memory.
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](?:\{([\d,]*):?([^}]*)\})?')
_TILE = re.compile(r'T\((?:(\d+),)?(\d+)\)')
_INSTRUCTION = re.compile(r'\s+(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*?)\)')
_MOVES_NOTHING = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'}


class Row(NamedTuple):
    """A program to compile."""

    what: str  # step or inference
    topology: str  # as jax names it, such as v5e:4x8
    space: int  # devices that share the rows of an image
    height: int
    width: int
    images: int = 1  # of each group of such devices

    @classmethod
    def parse(cls, text: str) -> 'Row':
        """Reads 'step,v5e:4x8,1,769x769', or with the number of images behind it.

        Raises:
            ConfigError: it has another form.
        """
        n = r'[1-9]\d*'  # a topology of 0 chips would end the process within libtpu
        match = re.fullmatch(
            rf'(step|inference),(\w+:{n}x{n}(?:x{n})?),({n}),({n})x({n})(?:,({n}))?', text, re.ASCII
        )
        if not match:
            raise ConfigError(
                f'{text!r} is not WHAT,TOPOLOGY,SPACE,HEIGHTxWIDTH, or that and ,IMAGES, with whole numbers '
                'from 1, as in step,v5e:4x8,1,769x769'
            )
        what, topology, *numbers = match.groups(default='1')
        return cls(what, topology, *map(int, numbers))

    def __str__(self):
        images = f',{self.images}' if self.images > 1 else ''
        return f'{self.what},{self.topology},{self.space},{self.height}x{self.width}{images}'


def devices_of(topology: str) -> list[jax.Device]:
    """The chips of a topology, which need not be there.

    Raises:
        ConfigError: there is no compiler for TPUs, or no such topology.
    """
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
    except Exception as error:  # of several kinds, from C++
        reason = ' '.join(str(error).split())[:200]
        raise ConfigError(
            f"{topology} cannot be compiled for ({reason}): pip install 'jax[tpu]', and name a topology "
            'such as v5e:4x8 or v5p:4x4x4'
        ) from error


def step_program(config: ConfigDict, mesh: Mesh, classes: int, batch: int, size: tuple[int, int]) -> Any:
    """The lowered training step of a config."""
    step = step_of(config, classes)
    program = jit(
        step.function,
        mesh,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    return program.lower(*step.arguments(mesh, batch, *size))


def inference_program(config: ConfigDict, mesh: Mesh, classes: int, batch: int, size: tuple[int, int]) -> Any:
    """The lowered folded network of a config: images of levels to class ids, both uint8."""
    model, normalize = build.model(config, classes), build.normalize(config)
    placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    def segment(variables, images):
        image = FeatureMap.of(normalize(images))
        logits: Any = model.clone(folded=True).apply(variables, image, full_size=True)
        return logits.main.array.argmax(-1).astype(jnp.uint8)

    shape = batch, *size, build.channels(config)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split_batch(mesh))
    program = jit(segment, mesh, out_shardings=split_batch(mesh))
    return program.lower(jax.tree.map(placed, folded_shapes(model)), images)


def measured(row: Row, config: ConfigDict, classes: int) -> dict[str, Any]:
    """Compiles a program, and returns what the compiler says of the share of one chip.

    Raises:
        ConfigError: it needs more memory than a chip has; see also `devices_of` and `make_mesh`.
    """
    mesh = make_mesh(devices_of(row.topology), space=row.space)
    lower = {'step': step_program, 'inference': inference_program}[row.what]
    batch = row.images * mesh.shape['data']
    lowered = lower(config, mesh, classes, batch, (row.height, row.width))
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        reason = ' '.join(str(error).split())
        needed = re.search(r'total memory .*? exceeds available \w+ \(.*?\)', reason)
        remat = ', or --config.model.remat=2,3,4,5' if row.what == 'step' else ''
        raise ConfigError(
            f'{row} does not fit into a chip ({needed[0] if needed else reason[:200]}): '
            f'give fewer images, smaller ones, or more chips for each{remat}'
        ) from error
    seconds = time.perf_counter() - start
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        'chips': mesh.size,
        'images': batch,
        'memory': kept + memory.temp_size_in_bytes,
        'flops': cost['flops'],
        'bytes': cost['bytes accessed'],
        'hbm': hbm_bytes(text),
        'collectives': collectives(text),
        'seconds': round(seconds),
        'jax': jax.__version__,
    }


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Number and bytes of the collectives in a compiled program, by kind; one in a loop counts once."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    kinds = '|'.join(COLLECTIVES)
    # One that goes on in the background has its shape where it ends.
    for shapes, kind in re.findall(rf'= (\S.*?) ({kinds})(?:-done)?\(', program):
        count[kind] += 1
        size[kind] += size_of(shapes)
    return {kind: (count[kind], size[kind]) for kind in COLLECTIVES if count[kind]}


def hbm_bytes(program: str) -> int:
    """Bytes that a compiled program reads from HBM and writes to it, padding included.

    The compiler's own count has those of the memory on the chip as well. An operand counts as a whole, and
    what is in a loop not at all.
    """
    shapes: dict[str, str] = {}
    total = 0
    for line in program[program.index('ENTRY') :].splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, shapes[match[1]], kind, operands = match.groups()
        if kind.endswith('-done'):  # of a copy from one memory to the other
            total += _padded(shapes[name])
        elif kind not in _MOVES_NOTHING and not kind.endswith('-start'):
            names = re.findall(r'%([\w.-]+)', operands)
            total += sum(_padded(shapes.get(each, ''), of_hbm=True) for each in (name, *names))
    return total


def _padded(shapes, of_hbm=False):
    """Bytes of arrays in tiles, of all or of those in HBM."""
    total = 0
    for dtype, shape, order, layout in _ARRAY.findall(shapes):
        if dtype in ITEMSIZE and not (of_hbm and 'S(' in layout):
            lengths = [int(n) for n in shape.split(',') if n]
            lengths = [lengths[int(axis)] for axis in order.split(',') if axis]  # the innermost first
            if tile := _TILE.search(layout):
                for i, side in enumerate(filter(None, reversed(tile.groups()))):
                    lengths[i : i + 1] = [-(-n // int(side)) * int(side) for n in lengths[i : i + 1]]
            total += ITEMSIZE[dtype] * math.prod(lengths)
    return total


def table(found: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        '| program | chips | images | memory of a chip | TFLOP | GB accessed | of HBM | collectives |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for text, figures in found.items():
        row = Row.parse(text)
        exchanged = ', '.join(
            f'{count} {kind} ({size / 1e6:.1f} MB)' for kind, (count, size) in figures['collectives'].items()
        )
        space = f', space {row.space}' if row.space > 1 else ''
        hbm = f'{figures["hbm"] / 1e9:.1f}' if 'hbm' in figures else ''  # files of earlier versions lack it
        lines.append(
            f'| {row.what}, {row.height} x {row.width}, {row.topology}{space} | {figures["chips"]} '
            f'| {figures["images"]} | {figures["memory"] / 1e9:.2f} GB | {figures["flops"] / 1e12:.2f} '
            f'| {figures["bytes"] / 1e9:.1f} | {hbm} | {exchanged or "none"} |'
        )
    return '\n'.join(lines)


def known(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings and the rows of a file, if it is there.

    Raises:
        ConfigError: its rows are of other settings, or it is none of these files.
    """
    if not path.is_file():
        return {'settings': settings, 'rows': {}}
    try:
        found = dict(json.loads(path.read_text(encoding='utf-8')))
    except (ValueError, TypeError) as error:
        raise ConfigError(f'{path} holds no figures of programs: name another file by --output') from error
    if found.get('rows') == {}:  # the first one failed
        return {'settings': settings, 'rows': {}}
    other = [key for key, value in settings.items() if found.get('settings', {}).get(key) != value]
    if other:
        raise ConfigError(
            f'{path} has rows of other settings ({", ".join(other[:5])}): name another file by --output'
        )
    return found


def main(argv=None):
    """Compiles what is missing, and prints the table."""
    argv, given = command.arguments(argv), flags.FlagValues()
    command.define_config('Config file of the run.', given, argv)
    define_classes(given)
    flags.DEFINE_string('output', 'tpu_programs.json', 'File that keeps the figures.', flag_values=given)
    flags.DEFINE_string('rows', ' '.join(ROWS), 'Programs, with blanks between them.', flag_values=given)
    command.parse(argv, __doc__, given)
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    jax.config.update('jax_platforms', 'cpu')
    path = Path(given.output)
    try:
        validate(given.config)
        rows = [Row.parse(text) for text in given.rows.split()]
        if not rows:
            raise ConfigError(f'--rows={given.rows!r} names no program: give some, such as {ROWS[0]}')
        # By way of JSON, whose lists are tuples in a config.
        classes = classes_of(given)
        settings = json.loads(json.dumps({'classes': classes} | history.flat(given.config.to_dict())))
        found = known(path, settings)
        for row in rows:
            if str(row) not in found['rows']:
                files.write_json(path, found)  # before minutes of work that could not be kept
                logger.info('compiling %s', row)
                found['rows'][str(row)] = measured(row, given.config, classes)
                files.write_json(path, found)
    except (ConfigError, DataError, SaveError) as error:
        sys.exit(f'error: {error}')
    print(table({str(row): found['rows'][str(row)] for row in rows}))


if __name__ == '__main__':
    main()
