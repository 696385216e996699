"""What a training step exchanges on 1 to 256 chips, and how long that takes at least: computed, not measured.

    python -m ann_jax.tools.cost_model --config=configs/cityscapes.py --config.model.dtype=bfloat16

prints the tables of docs/scaling.md, which says what is counted and what is assumed. The step is compiled for
eight simulated devices: this takes a minute or two on two cores, and no accelerator. What a chip computes and
keeps, the compiler says: see `ann_jax/tools/tpu_programs.py`.
"""

import math
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import flags
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ann_jax import build, command
from ann_jax.config import validate
from ann_jax.errors import ConfigError, DataError
from ann_jax.kernels.forms import with_forms_of
from ann_jax.parallel.arrays import replicated, split_batch
from ann_jax.parallel.mesh import make_mesh
from ann_jax.parallel.programs import Program
from ann_jax.training.state import abstract_state
from ann_jax.training.step import make_train_step
from ann_jax.typing import IGNORE


class Chip(NamedTuple):
    """The manufacturer's figures for one chip; rates per second, those of links in one direction."""

    name: str
    link: float  # bytes to the chips of its domain, over all its links
    domain: int  # chips that these links connect
    network: float  # bytes to all others


CHIPS = (
    Chip('TPU v5e', 200e9, 256, 0),
    Chip('TPU v5p', 600e9, 8960, 0),
    Chip('H100 or H200 SXM', 450e9, 8, 50e9),
)
COUNTS = 8, 64, 256
MESHES = (8, 1), (4, 2), (1, 8)
LATENCY = 10e-6  # assumed seconds before the first byte of a message
COLLECTIVES = 'all-reduce', 'collective-permute', 'all-gather', 'all-to-all', 'reduce-scatter'
ITEMSIZE = {'f32': 4, 'bf16': 2, 's32': 4, 'u32': 4, 'u16': 2, 'u8': 1, 's8': 1, 'pred': 1}


class Collective(NamedTuple):
    """One exchange of a device with others in a program."""

    kind: str  # of `COLLECTIVES`
    bytes: int  # of the result
    chain: tuple[int, int]  # the longest chain that ends here: how many all-reduces, and how many others
    operation: str  # of the network, which it belongs to


class Exchanges(NamedTuple):
    """The exchanges of a device in a step; messages are counted along the longest chain, in order."""

    sums: int  # bytes of all-reduces
    halos: int  # bytes of all else
    sum_messages: int
    halo_messages: int


class Step(NamedTuple):
    """A step of training, to be counted on any mesh."""

    function: Callable
    model: nn.Module
    tx: optax.GradientTransformation
    settings: Mapping[str, Any] | None = None  # of its state, see `create_state`

    def arguments(self, mesh: Mesh, images: int, height: int, width: int) -> tuple[Any, dict[str, Any]]:
        """Shapes and shardings of the state and of a batch."""
        array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split_batch(mesh))
        channels = getattr(self.model, 'in_channels', 3)
        batch = {'image': array(images, height, width, channels), 'label': array(images, height, width)}
        return abstract_state(self.model, self.tx, replicated(mesh), **(self.settings or {})), batch


def define_classes(flag_values: flags.FlagValues) -> None:
    """Defines --classes, see `classes_of`."""
    flags.DEFINE_integer(
        'classes',
        None,
        "How many classes there are; if not given, as many as the config's dataset has.",
        lower_bound=1,
        upper_bound=IGNORE,
        flag_values=flag_values,
    )


def classes_of(given: flags.FlagValues) -> int:
    """The number of classes by --classes, or else by the config.

    Raises:
        ConfigError, DataError: the config's dataset cannot tell, see `build.dataset`.
    """
    return build.dataset(given.config).num_classes if given.classes is None else given.classes


def step_of(config: ConfigDict, classes: int) -> Step:
    """The training step of a config.

    Raises:
        ConfigError: the batch is to be computed in parts, each a program of its own; or see `build`.
    """
    if (parts := config.train.accumulate) > 1:
        raise ConfigError(
            f'train.accumulate={parts}: only the step of a batch in one part is counted: leave it at 1, '
            'with the images of a part'
        )
    model, tx = build.model(config, classes), build.optimizer(config)
    function = make_train_step(model, tx, **build.step_settings(config, build.loss(config, classes)))
    return Step(function, model, tx, build.state_settings(config))


def partitioned(function: Callable, mesh: Mesh, *args: Any) -> str:
    """The program of one device as XLA partitions it, before the compiler of a platform continues.

    The compiler for CPUs, which is used here, would turn bfloat16 into float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {
            'xla_dump_to': folder,
            'xla_dump_hlo_pass_re': 'spmd-partitioning',
            'xla_backend_optimization_level': 0,
        }
        jitted = jax.jit(
            with_forms_of('any', function), out_shardings=replicated(mesh), compiler_options=options
        )
        Program(jitted, mesh).lower(*args).compile()
        (path,) = Path(folder).glob('*.after_spmd-partitioning.*')
        return path.read_text(encoding='utf-8')


def collectives(program: str) -> list[Collective]:
    """The exchanges in the text of a program, in order; those in a loop count once.

    On a mesh with two axes, XLA sums along one axis and then along the other. The second sum does not count:
    XLA's compiler for GPUs merges both (its pass AllReduceFolder).
    """
    found: list[Collective] = []
    kinds: dict[str, str] = {}
    chains: dict[str, tuple[int, int]] = {}
    computation = ''
    longest = lambda names: max((chains.get(name, (0, 0)) for name in names), key=sum, default=(0, 0))
    for line in program.splitlines():
        if start := re.match(r'(?:ENTRY )?%([\w.-]+) \(', line):
            computation = start[1]
        if not (match := re.match(r' +(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)(.*)', line)):
            continue
        name, shapes, kind, inside, rest = match.groups()
        kinds[name], operands = kind, re.findall(r'%([\w.-]+)', inside)
        called = re.findall(r'(?:body|to_apply|calls)=%([\w.-]+)', rest)
        sums, others = (
            before + within for before, within in zip(longest(operands), longest(called), strict=True)
        )
        if kind in COLLECTIVES and not kind == kinds.get(operands[0]) == 'all-reduce':
            sums, others = (sums + 1, others) if kind == 'all-reduce' else (sums, others + 1)
            operation = re.search(r'op_name="([^"]*)"', rest)
            found.append(Collective(kind, size_of(shapes), (sums, others), operation[1] if operation else ''))
        chains[name] = sums, others
        chains[computation] = longest([name, computation])
    return found


def size_of(shapes: str) -> int:
    """Bytes of arrays as a program writes them: f32[8,110,256]{2,1,0} and the like."""
    arrays = re.findall(r'(\w+)\[([\d,]*)\]', shapes)
    return sum(ITEMSIZE[dtype] * math.prod(map(int, re.findall(r'\d+', shape))) for dtype, shape in arrays)


def exchanges(found: list[Collective]) -> Exchanges:
    """The totals of the exchanges in a program."""
    sums = sum(each.bytes for each in found if each.kind == 'all-reduce')
    chain = max((each.chain for each in found), key=sum, default=(0, 0))
    return Exchanges(sums, sum(each.bytes for each in found) - sums, *chain)


def time_of(exchanged: Exchanges, chip: Chip, chips: int) -> tuple[float, float]:
    """Seconds of a step's sums and halos, if nothing is hidden behind computation."""
    halos = exchanged.halos / chip.link + exchanged.halo_messages * LATENCY
    return all_reduce(exchanged.sums, chip, chips, exchanged.sum_messages), halos


def all_reduce(size: float, chip: Chip, chips: int, messages: int = 1) -> float:
    """Seconds to sum `size` bytes over chips: rings in a domain, then each chip its share between domains."""
    near = min(chips, chip.domain)
    far = chips // near
    time = 2 * (near - 1) / near * size / chip.link
    if far > 1:
        time += 2 * (far - 1) / far * size / near / chip.network
    return time + (messages * LATENCY if chips > 1 else 0)


def tables(step: Step, height: int, width: int) -> str:
    """The figures of docs/scaling.md, in Markdown."""
    lines = [
        '| data x space | MB of sums | messages | MB of halos | messages |',
        '|---|---|---|---|---|',
    ]
    exchanged = {}
    for data, space in MESHES:
        mesh = make_mesh(data=data, space=space)
        program = partitioned(step.function, mesh, *step.arguments(mesh, 8, height, width))
        exchanged[space] = each = exchanges(collectives(program))
        cells = f'{each.sums / 1e6:.1f} | {each.sum_messages} | {each.halos / 1e6:.1f} | {each.halo_messages}'
        lines.append(f'| {data} x {space} | {cells} |')
    lines += ['', '| chip | chips | space | sums | halos |', '|---|---|---|---|---|']
    for chip in CHIPS:
        for chips, space in [*((chips, 1) for chips in COUNTS), *((8, space) for _, space in MESHES[1:])]:
            sums, halos = (f'{1e3 * seconds:.1f}' for seconds in time_of(exchanged[space], chip, chips))
            lines.append(f'| {chip.name} | {chips} | {space} | {sums} | {halos} |')
    return '\n'.join(lines)


def main(argv=None):
    """Prints the tables for the network and crop of a config."""
    argv, given = command.arguments(argv), flags.FlagValues()
    command.define_config('Config file of the run.', given, argv)
    define_classes(given)
    command.parse(argv, __doc__, given)
    config = given.config
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', 8)
    jax.config.update('jax_enable_compilation_cache', False)  # a program found there is not partitioned again
    try:
        validate(config)
        print(tables(step_of(config, classes_of(given)), *config.augment.crop))
    except (ConfigError, DataError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
