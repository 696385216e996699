"""Array functions that dominate the run time, with a special form for a platform where it pays.

The form is chosen when a program is lowered, see `forms`.
"""

from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray  # what functions on arrays take; they return `jax.Array`s
Dim = Any  # an int, or a symbol in a program that is exported for any size
