"""Commands beside the main one, such as `python -m ann_jax.tools.launch`; `scripts/` holds shells of them."""

import sys
from pathlib import Path

from ann_jax.runs.signals import end_command_by_ctrl_c


def _is_command() -> bool:
    """Whether the process was started as one of them, and did not just import one."""
    words = sys.orig_argv
    module = words[words.index('-m') + 1] if '-m' in words[:-1] else ''
    scripts = Path(__file__).resolve().parents[2] / 'scripts'
    return module.startswith(f'{__name__}.') or not module and Path(sys.argv[0]).resolve().parent == scripts


if _is_command():  # before they import jax, which takes seconds
    end_command_by_ctrl_c()
