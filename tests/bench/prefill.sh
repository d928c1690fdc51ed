#!/usr/bin/env bash
# Goal: the engine's prefill and decode speed. Method: runs engine_bench under mpirun, with random weights or a checkpoint;
# prints a table (and JSON). Builds the bench if necessary.
#   --shape 125m --lengths 2048,32768 --strategies full,apb,star --ranks 2 --virtual-hosts 4 --threads N
#   --weights random|DIR --json FILE; other arguments go to engine_bench (`--help` lists them)
# `full` runs on one rank with all cores. --threads is the number per rank for the other strategies.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
ranks=2 strategies=full,apb,star lengths=2048,8192,32768 weights=random json="" threads=0 args=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --ranks) ranks=$2; shift 2 ;;
    --strategies) strategies=$2; shift 2 ;;
    --lengths) lengths=$2; shift 2 ;;
    --weights) weights=$2; shift 2 ;;
    --threads) threads=$2; shift 2 ;;
    --json) json=$(realpath -m "$2"); shift 2 ;;
    *) args+=("$1"); shift ;;
  esac
done

bench="${APB_BENCH_DIR:-$root/build/release/tests/bench}/engine_bench"
if [[ -z "${APB_BENCH_DIR:-}" ]]; then
  "$root/deploy/local/install.sh"
  [[ -f "$root/build/release/build.ninja" ]] || (cd "$root" && cmake --preset release) >&2
  cmake --build "$root/build/release" --target engine_bench >&2
fi
[[ "$weights" == random ]] || args+=(--model "$weights")
if [[ -n "$json" ]]; then
  rm -f "$json"
  args+=(--json "$json" --append)
fi
run() {  # ranks, threads, strategies
  OMPI_MCA_btl=self,vader,tcp mpirun --allow-run-as-root --oversubscribe --bind-to none -n "$1" \
    "$bench" --lengths "$lengths" --threads "$2" --strategies "$3" "${args[@]}"
}
others=$(tr ',' '\n' <<<"$strategies" | grep -vx full | paste -sd, || true)
if [[ ",$strategies," == *,full,* ]]; then run 1 0 full; fi
if [[ -n "$others" ]]; then run "$ranks" "$threads" "$others"; fi
