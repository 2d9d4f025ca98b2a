#!/usr/bin/env bash
# One table of what a GPU computes, how fast and in how much memory: at most 8 minutes.
#
#   benchmarks/gpu.sh                     on a machine with jax[cuda]
#   WHEELS=wheels benchmarks/gpu.sh       installs the wheels of a folder first, without a network
#   JAX_PLATFORMS=cpu benchmarks/gpu.sh --small     the same steps on a CPU, in seconds
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site:${PYTHONPATH:-}"
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
"$python" -m benchmarks.gpu "$@"
