"""SGD with momentum and the "poly" learning rate, equal to torch's (paper: Sec. 4.2)."""

import jax
import optax

from ann_jax.errors import ConfigError, unknown

DECAYS = ('all', 'kernels')


def poly_schedule(base: float, max_steps: int, power: float = 0.9) -> optax.Schedule:
    """base * (1 - step / max_steps) ** power: what the released code does; the paper misplaces the power.

    Plain arithmetic, so that a Python step gives a Python number and needs no device.
    """
    return lambda step: base * (1 - step / max_steps) ** power


def sgd(
    schedule: optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4, decay: str = 'all'
) -> optax.GradientTransformation:
    """torch's SGD: the decay joins the gradient before the momentum, and the learning rate comes last.

    Args:
        schedule: step -> learning rate.
        momentum: share of the velocity that is kept.
        weight_decay: factor on the parameters that decay.
        decay: 'all' parameters, as the authors do, or 'kernels' of convolutions only.

    Raises:
        ConfigError: unknown `decay`.
    """
    if decay not in DECAYS:
        raise ConfigError(unknown('decay', decay, DECAYS))

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: decay == 'all' or path[-1].key == 'kernel', params
        )

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )
