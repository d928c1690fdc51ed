#!/usr/bin/env bash
# Goal: the accuracy of the strategies on the gauge model. Method: runs tests/quality/table.py, which writes the table of
# docs/benchmarks/quality.md. Builds engine_quality if necessary. A run that was stopped continues where it stopped.
#   --documents 100 --lengths 8192,16384,32768 --hosts 4,8,16 --results FILE (tests/quality/table.py --help lists all)
#   APB_TEST_PYTHON  a Python with the `tokenizers` package; default: the one that tests/run.sh makes, else python3
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bench="${APB_BENCH_DIR:-$root/build/release/tests/bench}"
if [[ -z "${APB_BENCH_DIR:-}" ]]; then
  "$root/deploy/local/install.sh"
  [[ -f "$root/build/release/build.ninja" ]] || (cd "$root" && cmake --preset release) >&2
  cmake --build "$root/build/release" --target engine_quality >&2
fi
python="${APB_TEST_PYTHON:-$root/build/venv/bin/python}"
[[ -x "$python" ]] || python=python3
exec "$python" "$root/tests/quality/table.py" --engine-quality "$bench/engine_quality" \
  --page "$root/docs/benchmarks/quality.md" "$@"
