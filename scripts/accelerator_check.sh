#!/usr/bin/env bash
# Checks and times ann_jax on the accelerator of this machine, in less than eight minutes. See
# ann_jax/tools/accelerator_check.py.
#
#   scripts/accelerator_check.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
# PyTorch, which is measured beside, needs memory next to jax.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec python scripts/accelerator_check.py "${1:-runs/accelerator_check}" "${@:2}"
