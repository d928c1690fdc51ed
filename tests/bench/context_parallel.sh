#!/usr/bin/env bash
# Goal: the time of a prefill by strategy, number of ranks and length. Method: runs context_parallel_bench for each number
# of ranks; prints each rank's compute alone, the imbalance, the bytes sent, and the modelled time with one rank on each
# device, as a table (and JSON). Builds the bench if necessary.
#   --ranks 1,2,4 --lengths 2048,8192,32768,65536 --strategies full,ring_kv,ulysses,apb,apb+balanced
#   --hosts 8 (of apb and star, over all ranks) --layers 2 --json FILE
#   Other arguments go to context_parallel_bench (`--help` lists them).
# With --layers 2, the first layer is whole, and the second only stores K and V, as a last layer does.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
ranks=1,2,4 lengths=2048,8192,32768,65536 hosts=8 layers=2 json="" args=()
strategies=full,star,ring_kv,ring_q,token_ring,ulysses,apb,apb+balanced,apb+balanced+overlap
while [[ $# -gt 0 ]]; do
  case "$1" in
    --ranks) ranks=$2; shift 2 ;;
    --lengths) lengths=$2; shift 2 ;;
    --strategies) strategies=$2; shift 2 ;;
    --hosts) hosts=$2; shift 2 ;;
    --layers) layers=$2; shift 2 ;;
    --json) json=$(realpath -m "$2"); shift 2 ;;
    *) args+=("$1"); shift ;;
  esac
done

bench="${APB_BENCH_DIR:-$root/build/release/tests/bench}/context_parallel_bench"
if [[ -z "${APB_BENCH_DIR:-}" ]]; then
  "$root/deploy/local/install.sh"
  [[ -f "$root/build/release/build.ninja" ]] || (cd "$root" && cmake --preset release) >&2
  cmake --build "$root/build/release" --target context_parallel_bench >&2
fi
if [[ -n "$json" ]]; then
  rm -f "$json"
  args+=(--json "$json" --append)
fi
for n in ${ranks//,/ }; do
  if (( hosts % n != 0 )); then
    echo "--hosts $hosts: not a multiple of $n ranks" >&2
    exit 2
  fi
  "$bench" --ranks "$n" --virtual-hosts $((hosts / n)) --layers "$layers" --lengths "$lengths" \
    --strategies "$strategies" "${args[@]}"
  echo
done
