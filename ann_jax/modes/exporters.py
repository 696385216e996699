"""Programs that run without this package: what they compute, and the files they are written to."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ann_jax.errors import ConfigError
from ann_jax.kernels.forms import with_forms_of
from ann_jax.kernels.resizing import linear_matrix, resize_images
from ann_jax.models.ann import ANN
from ann_jax.models.feature_map import FeatureMap
from ann_jax.modes.onnx_graph import OPSET, to_onnx
from ann_jax.weights.inputs import Normalization, normalizer

PLATFORMS = ('cpu', 'cuda', 'tpu')
LARGEST_ONNX = 2_000_000_000  # bytes of weights: the format of the file ends at 2 GiB


@dataclass(frozen=True)
class Job:
    """What is exported.

    Attributes:
        model: the folded network, which computes in the dtype of the export.
        variables: of the folded network.
        normalization: of uint8 RGB, which gives what the network takes.
        size: height and width, of networks that do not take canvases.
        takes: 'levels', uint8 of 0 to 255; or 'normalized', float32 that is normalised already.
        gives: 'logits', float32; or 'ids', uint8.
        read: how images were read, those of the settings `bands` and `image_range` that are not empty.
    """

    model: ANN
    variables: Mapping[str, Any]
    normalization: Normalization
    size: tuple[int, int]
    takes: str = 'levels'
    gives: str = 'logits'
    read: Mapping[str, str] = field(default_factory=dict)

    def images(self, *shape: Any) -> jax.ShapeDtypeStruct:
        """The images that a program takes, (B, H, W, N)."""
        dtype = jnp.uint8 if self.takes == 'levels' else jnp.float32
        return jax.ShapeDtypeStruct((*shape, self.model.in_channels), dtype)

    @property
    def interface(self) -> str:
        """From what to what, such as 'uint8 RGB to float32 logits'."""
        channels = f'{self.model.in_channels} channels' if self.read.get('bands') else 'RGB'
        if self.takes == 'normalized' and self.normalization['bgr']:
            channels = 'BGR' if channels == 'RGB' else f'{channels}, the last first'
        taken = f'uint8 {channels}' if self.takes == 'levels' else f'normalised float32 {channels}'
        return f'{taken} to {"float32 logits" if self.gives == "logits" else "uint8 ids"}'

    def program(self, image: jax.Array) -> jax.Array:
        """(B, H, W, N) images -> (B, H, W, classes) logits or (B, H, W) ids; weights are constants.

        H and W may be symbolic if the network takes canvases.
        """
        batch, height, width, channels = image.shape
        image = normalizer(**self.normalization)(image) if self.takes == 'levels' else image
        model = self.model
        if isinstance(height, int) and isinstance(width, int):
            low = self._low(image)
            rows, columns = (
                linear_matrix(low.shape[i], n, model.align_corners) for i, n in ((1, height), (2, width))
            )
            low = jnp.einsum('pw,bhwc->bhpc', columns, low, precision='highest')
            return self._given(jnp.einsum('oh,bhpc->bopc', rows, low, precision='highest'))
        # The sizes are known only when the program runs; symbolic arithmetic can compare the halves of
        # multiples of 16.
        size = tuple(jnp.full((batch,), n, jnp.int32) for n in (height, width))
        more = [(0, (n + 15) // 16 * 16 - n) for n in (height, width)]
        image = jnp.pad(image, ((0, 0), *more, (0, 0)))
        low = self._low(FeatureMap.of(image, size))
        logits = resize_images(low.array, low.size, (height, width), size, model.align_corners)
        return self._given(logits)

    def _low(self, image):
        logits: Any = self.model.apply(self.variables, image)
        return logits.main

    def _given(self, logits):
        return logits if self.gives == 'logits' else logits.argmax(-1).astype(jnp.uint8)


@dataclass(frozen=True)
class Written:
    """A program in a file.

    Attributes:
        run: images (B, H, W, N) -> what it gives.
        size: height and width of the images; None if any.
        what: a line about its interface.
        snippet: Python that runs it on street.jpg, beside the file.
    """

    run: Callable[[np.ndarray], np.ndarray]
    size: tuple[int, int] | None
    what: str
    snippet: str


def write_stablehlo(file: Path, job: Job) -> Written:
    """Writes the program for all platforms, of free size if the network takes canvases.

    Raises:
        ConfigError: a package is missing.
    """
    shape, free, size = _free(job)
    program = jax_export.export(jax.jit(job.program), platforms=PLATFORMS)(job.images(*shape))
    try:
        file.write_bytes(program.serialize())
    except ImportError as error:
        raise ConfigError('writing StableHLO needs flatbuffers: pip install flatbuffers') from error
    loaded = jax_export.deserialize(bytearray(file.read_bytes()))
    lines = [
        'from pathlib import Path',
        '',
        'import jax',
        *_reading(job, size),
        f"program = jax.export.deserialize(bytearray(Path('{file.name}').read_bytes()))",
        'result = np.asarray(program.call(image))[0]',
        *_ids(job),
    ]
    what = f'{free}; {", ".join(PLATFORMS)}; {job.interface}'
    return Written(lambda image: np.asarray(loaded.call(image)), size, what, '\n'.join(lines))


def write_onnx(file: Path, job: Job) -> Written:
    """Writes the program for ONNX Runtime, OpenVINO and TensorRT, free in what `write_stablehlo` leaves free.

    Raises:
        ConfigError: a package is missing, or the backbone has an operation that this does not know.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise ConfigError("writing ONNX needs more packages: pip install 'ann_jax[export]'") from error
    count = sum(leaf.size for leaf in jax.tree.leaves(job.variables))
    if (held := count * jnp.dtype(job.model.dtype).itemsize) > LARGEST_ONNX:
        raise ConfigError(
            f'an ONNX file holds at most {LARGEST_ONNX / 1e9:.1f} GB, but the weights take {held / 1e9:.1f}: '
            'take export.dtype=float16, or leave onnx out of export.formats'
        )
    shape, free, size = _free(job)
    plain = with_forms_of('any', job.program)  # there is no choice by platform
    model = to_onnx(plain, job.images(*shape), 'image', job.gives)
    file.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    lines = [
        'import onnxruntime',
        *_reading(job, size),
        f"session = onnxruntime.InferenceSession('{file.name}')",
        "result = session.run(None, {'image': image})[0][0]",
        *_ids(job),
    ]
    what = f'{free}; opset {OPSET}, input image, output {job.gives}; {job.interface}'
    return Written(lambda image: session.run(None, {'image': image})[0], size, what, '\n'.join(lines))


def _free(job):
    """The shape (B, H, W) of a program, the same in words, and height and width if they are fixed."""
    if job.model.takes_canvas:
        return jax_export.symbolic_shape('batch, height, width'), 'any batch, height and width', None
    height, width = job.size
    return (*jax_export.symbolic_shape('batch'), height, width), f'any batch, {height} x {width}', job.size


def write_litert(file: Path, job: Job) -> Written:
    """Writes the program for LiteRT (TensorFlow Lite), for one image of `job.size`; without TensorFlow.

    Raises:
        ConfigError: a package is missing.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
        from litert_converter.mlir import ir, passmanager
        from litert_converter.mlir._mlir_libs import converter_api_ext as converter
    except ImportError as error:
        raise ConfigError("writing LiteRT needs more packages: pip install 'ann_jax[litert]'") from error
    height, width = job.size
    traced = jax.jit(with_forms_of('any', job.program)).trace(job.images(1, height, width))
    program = io.BytesIO()
    traced.lower(lowering_platforms=('cpu',)).compiler_ir('stablehlo').operation.write_bytecode(program)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(program.getvalue())
        (main,) = (each for each in module.body.operations if str(each.attributes['sym_name']) == '"main"')
        converter.set_signature(main.operation, 'serving_default', ['image'], [job.gives])
        converter.run_convert_to_tfl_passes(module, passmanager.PassManager(), converter.ConvertToTFLConfig())
        file.write_bytes(converter.export_flatbuffer_to_bytes(module.operation))
    runner = Interpreter(str(file)).get_signature_runner()
    lines = [
        'from ai_edge_litert.interpreter import Interpreter',
        *_reading(job, job.size),
        f"runner = Interpreter('{file.name}').get_signature_runner()",
        f"result = runner(image=image)['{job.gives}'][0]",
        *_ids(job),
    ]
    what = f'one image, {height} x {width}; input image, output {job.gives}; {job.interface}'
    run = lambda images: np.concatenate([runner(image=image[None])[job.gives] for image in images])
    return Written(run, job.size, what, '\n'.join(lines))


def _reading(job, size):
    """Lines of a snippet that read an image as (1, H, W, N)."""
    if not job.read:
        # Cameras and phones store pictures that are turned.
        lines = ["picture = ImageOps.exif_transpose(Image.open('street.jpg')).convert('RGB')"]
        if size:
            lines += [f'picture = picture.resize({size[::-1]})']
        lines = [
            'import numpy as np',
            'from PIL import Image, ImageOps',
            '',
            *lines,
            'image = np.asarray(picture)[None]',
        ]
    else:
        kind = f'uint8 (H, W, {job.model.in_channels}), of the channels and levels that the card names'
        lines = ['import numpy as np', '', f"image = np.load('street.npy')[None]  # {kind}"]
    if job.takes == 'normalized':
        order = '[..., ::-1]' if job.normalization['bgr'] else ''
        mean, std = (list(job.normalization[key]) for key in ('mean', 'std'))
        lines += [f'image = np.float32((image{order} - np.array({mean})) / np.array({std}))']
    return lines


def _ids(job):
    return ['ids = result.argmax(-1)' if job.gives == 'logits' else 'ids = result', 'print(ids.shape)']
