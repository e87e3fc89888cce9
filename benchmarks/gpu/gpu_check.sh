#!/usr/bin/env bash
# On a machine with a GPU and without network, in the repository's root: installs the wheels that carry.sh fetched, then runs
# the command with its arguments.
#   OUT=runs/gpu bash benchmarks/gpu/gpu_check.sh [arguments of python -m benchmarks.gpu]
set -euo pipefail
site=$(mktemp -d)
if compgen -G '.whl/*.whl' > /dev/null; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" .whl/*.whl \
    || echo 'Some wheels were not installed; it goes on without them.' >&2
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-runs/gpu}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv | tee "$out/card.csv" || true
python3 -c 'import benchmarks.gpu.part' || { echo 'lit_rlhf does not import here: the lines above say what is missing.' >&2; exit 1; }
python3 -m benchmarks.gpu --out "$out" "$@"
