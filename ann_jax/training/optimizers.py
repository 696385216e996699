"""SGD with momentum and the "poly" learning rate, equal to torch's (paper: Sec. 4.2)."""

import jax
import optax

from ann_jax.errors import ConfigError, unknown

DECAYS = ('all', 'kernels')


def poly_schedule(base: float, max_steps: int, power: float = 0.9) -> optax.Schedule:
    """base * (1 - step / max_steps) ** power, as in the released code; the paper misplaces the power.

    Plain arithmetic: a Python step gives a Python number, without a device.
    """
    return lambda step: base * (1 - step / max_steps) ** power


def sgd(
    schedule: optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4, decay: str = 'all'
) -> optax.GradientTransformation:
    """torch's SGD: the decay is added to the gradient before the momentum; the learning rate comes last.

    Args:
        schedule: step -> learning rate.
        momentum: fraction of the velocity that is kept.
        weight_decay: factor on the parameters that decay.
        decay: 'all' parameters, like the authors, or only 'kernels' of convolutions.

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
