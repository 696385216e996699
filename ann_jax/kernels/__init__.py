"""Array functions that decide how fast the network is, with a form for each platform where that pays.

Each has a plain meaning. Which form runs is chosen when a program is lowered, see `forms`.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray  # what functions on arrays take; they return `jax.Array`s
Dim = Any  # an int, or a symbol in a program that is exported for any size
