#!/usr/bin/env bash
# How far the approximate strategies are from exact attention on real text, with SmolLM2; writes the table of
# docs/benchmarks/quality.md. Downloads the model once, builds what is missing. A run that was stopped goes on where it was.
#   --prompts 40 --results FILE (tests/quality/fidelity.py --help lists all)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
"$root/deploy/local/install.sh"
"$root/tests/real_model/prepare.sh" >&2
[[ -f "$root/build/release/build.ninja" ]] || (cd "$root" && cmake --preset release) >&2
cmake --build "$root/build/release" --target engine_fidelity >&2
exec "$root/build/real_model/venv/bin/python" "$root/tests/quality/fidelity.py" \
  --engine-fidelity "$root/build/release/tests/bench/engine_fidelity" --page "$root/docs/benchmarks/quality.md" "$@"
