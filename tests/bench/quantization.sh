#!/usr/bin/env bash
# Goal: the accuracy of quantized weights. Method: the perplexity of a real model (tests/real_model) and the demo model's
# answers, without and with quantization; writes docs/benchmarks/quantization.md. Builds the programs if necessary.
#   --windows 16 --window 512 --documents 8 --lengths 8192 --json FILE (quantization.py --help lists all)
#   MODEL  a checkpoint instead of that of tests/real_model
#   APB_TEST_PYTHON  a Python with the `tokenizers` package; default: the one that tests/run.sh makes, else python3
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bench="${APB_BENCH_DIR:-$root/build/release/tests/bench}"
if [[ -z "${APB_BENCH_DIR:-}" ]]; then
  "$root/deploy/local/install.sh"
  [[ -f "$root/build/release/build.ninja" ]] || (cd "$root" && cmake --preset release) >&2
  cmake --build "$root/build/release" --target perplexity engine_quality >&2
fi
python="${APB_TEST_PYTHON:-$root/build/venv/bin/python}"
[[ -x "$python" ]] || python=python3
model="${MODEL:-$("$root/tests/real_model/prepare.sh")}"
exec "$python" "$root/tests/bench/quantization.py" --bench "$bench" --model "$model" "$@"
