"""Matrix products of feature maps with small kernels, with gradients that are fast on CPUs and GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from ann_jax.kernels import Array
from ann_jax.kernels.forms import by_platform
from ann_jax.parallel.mesh import row_shards


def product(x: Float[Array, '*rows C'], kernel: Float[Array, 'C D']) -> Float[jax.Array, '*rows D']:
    """x @ kernel."""
    x = jnp.asarray(x)
    # The form for CPUs merges axes, which would gather rows that are split over devices.
    return x @ kernel if row_shards(x) > 1 else _product(x, kernel)


@jax.custom_vjp
def _product(x, kernel):
    return by_platform(x, kernel, cpu=_flat_forward, gpu=_gpu_inference, default=_plain_forward)


def _forward(x, kernel):
    return by_platform(x, kernel, cpu=_flat_forward, default=_plain_forward), (x, kernel)


def _backward(residual, gradient):
    return by_platform(*residual, gradient, cpu=_flat_backward, gpu=_gpu_backward, default=_plain_backward)


_product.defvjp(_forward, _backward)


def _plain_forward(x, kernel):
    return x @ kernel


def _plain_backward(x, kernel, gradient):
    return jax.vjp(_plain_forward, x, kernel)[1](gradient)


def product_by_cudnn(x: Float[Array, 'B H W C'], kernel: Float[Array, 'C D']) -> Float[jax.Array, 'B H W D']:
    """x @ kernel as a convolution, which XLA gives to cuDNN.

    A bias, then a map to be added, then a ReLU, all in the dtype of x, become parts of it: the result is
    written once. cuDNN takes any number of pixels; for cuBLAS, XLA pads copies to a multiple of 8.
    """
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel)[None, None],
        (1, 1),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _gpu_inference(x, kernel):
    return product_by_cudnn(x, kernel) if x.ndim == 4 else x @ kernel


def _gpu_backward(x, kernel, gradient):
    """With the gradient of the kernel as that of a convolution: cuDNN sums over pixels in place."""
    if x.ndim != 4:
        return _plain_backward(x, kernel, gradient)
    _, of_kernel = jax.vjp(lambda kernel: product_by_cudnn(x, kernel), kernel)
    return gradient @ kernel.T, *of_kernel(gradient)


def sum_of_products(x: Float[Array, '*pixels C'], y: Float[Array, '*pixels D']) -> Float32[jax.Array, 'C D']:
    """The sum of the outer products of all pixels."""
    pixels = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(x, y, ((pixels, pixels), ((), ())), preferred_element_type=jnp.float32)


def _flat(x):
    """Merges all axes but the last: for gradients of more axes, XLA would transpose copies of the arrays."""
    return x.reshape(-1, x.shape[-1])


def _flat_forward(x, kernel):
    return (_flat(x) @ kernel).reshape(*x.shape[:-1], -1)


def _flat_backward(x, kernel, gradient):
    shape, (inputs, features) = x.shape, kernel.shape
    # Behind a barrier; else x might be transposed long before it is used.
    x, gradient = jax.lax.optimization_barrier((_flat(x), _flat(gradient)))
    if len(x) * (inputs + features) <= 1.5 * kernel.size:  # maps to transpose, compared to the kernel
        of_input = times_transposed(gradient, kernel).T
    else:
        of_input = gradient @ kernel.T
    rows = jax.lax.optimization_barrier(x.T) if inputs > features else x.T
    # After both, an optimizer updates the kernel in place; otherwise XLA would copy it first.
    of_input, of_kernel = jax.lax.optimization_barrier((of_input, rows @ gradient))
    return of_input.reshape(shape), of_kernel


def times_transposed(x: Float[Array, 'N D'], kernel: Float[Array, 'C D']) -> Float[jax.Array, 'C N']:
    """The transpose of x @ kernel.T; for CPUs.

    On CPUs, XLA's product with a transposed matrix may take twice as long as with one in its memory layout.
    Here the maps are transposed instead, which pays off if they are smaller than the kernel.
    """
    barrier = jax.lax.optimization_barrier
    return barrier(kernel @ barrier(x.T))
