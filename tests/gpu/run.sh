#!/usr/bin/env bash
# Builds, tests and measures the CUDA backend and NCCL on a machine with a GPU. It needs CUDA (nvcc, cuBLASLt; NCCL for
# its part), CMake, ninja, a C++ compiler, Abseil and GoogleTest: the system's, or build/gpu-deps as pack.sh makes it.
#   tests/gpu/run.sh [part...]     parts: build kernels nccl sanitizer bench torch; all of them by default
# A part that has passed is not run again: remove build/gpu-results to start anew. Numbers end in
# build/gpu-results/results.json.
#   APB_TEST_SEED (from the clock)   seed of the tests' random data
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build="$root/build/gpu"
results="$root/build/gpu-results"
deps="$root/build/gpu-deps"
export APB_TEST_SEED=${APB_TEST_SEED:-$(date +%s)}
export PATH="$PATH:/usr/local/cuda/bin"
mkdir -p "$results"
failed=()

# part NAME SECONDS FUNCTION: runs it in a time limit unless it has passed before.
wanted=${*:-build kernels nccl sanitizer bench torch}
part() {
  local name=$1 seconds=$2 status
  [[ " $wanted " == *" $name "* ]] || return 0
  if [[ -e "$results/$name.passed" ]]; then
    echo "== $name: passed before"
    return 0
  fi
  echo "== $name (at most $seconds s)"
  export -f "run_$name"
  root=$root build=$build results=$results deps=$deps timeout "$seconds" bash -euo pipefail -c "run_$name" 2>&1 |
    tee "$results/$name.log" | tail -n 80
  status=${PIPESTATUS[0]}
  if [[ $status == 0 ]]; then
    touch "$results/$name.passed"
  else
    echo "== $name FAILED (exit $status; all of it in $results/$name.log)"
    failed+=("$name")
  fi
}

run_build() {
  nvidia-smi || true
  nvcc --version
  local prefix=()
  [[ -d $deps ]] && prefix=("-DCMAKE_PREFIX_PATH=$deps")
  # Other compilers than CI's have other warnings.
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAPB_BARE=ON -DAPB_CUDA=ON -DAPB_WERROR=OFF \
    -DAPB_TESTS=ON "${prefix[@]}"
  cmake --build "$build"
}

run_kernels() {
  echo "seed $APB_TEST_SEED"
  cd "$build"
  tests/kernels/ops_test --gtest_brief=1
  tests/kernels/attention_test --gtest_brief=1
  ctest --output-on-failure -E '^(ops_test|attention_test)$'
}

# Ranks of one machine that share a GPU: NCCL takes them for ranks of several machines.
run_nccl() {
  local meeting ranks rank pids status=0
  for ranks in 1 2 4; do
    meeting=$(mktemp -d)
    pids=()
    for ((rank = 0; rank < ranks; ++rank)); do
      NCCL_HOSTID=rank$rank NCCL_SOCKET_IFNAME=lo "$build/tests/gpu/nccl_test" $rank $ranks "$meeting/id" &
      pids+=($!)
    done
    for rank in "${pids[@]}"; do wait "$rank" || status=1; done
    rm -rf "$meeting"
  done
  return $status
}

run_sanitizer() {
  cd "$build"
  local check="compute-sanitizer --error-exitcode 9 --tool"
  $check memcheck tests/kernels/ops_test --gtest_brief=1 --gtest_filter='*NormRope*:*Merge*:*Selection*:*Embedding*'
  $check memcheck tests/kernels/sample_test --gtest_brief=1 --gtest_filter='*Edits*:*OfEqual*:*NoDraw*'
  $check memcheck tests/kernels/attention_test --gtest_brief=1 --gtest_filter='*EqualsOracle*'
  $check racecheck tests/kernels/ops_test --gtest_brief=1 --gtest_filter='*NormRope*:*Selection*'
  $check racecheck tests/kernels/sample_test --gtest_brief=1 --gtest_filter='*Edits*:*OfEqual*'
}

run_bench() {
  rm -f "$results/bench.json"
  "$build/tests/gpu/cuda_bench" "$results/bench.json"
}

run_torch() {
  rm -f "$results/torch.json"
  if python3 -c 'import torch' 2>/dev/null; then
    python3 "$root/tests/gpu/torch_attention.py" "$results/torch.json"
  else
    echo "no PyTorch to compare with"
  fi
}

part build 240 run_build
part kernels 120 run_kernels
part nccl 90 run_nccl
part sanitizer 150 run_sanitizer
part bench 180 run_bench
part torch 90 run_torch

cat "$results"/{bench,torch}.json 2>/dev/null | sed -e '1s/^/[/' -e '$!s/$/,/' -e '$s/$/]/' >"$results/results.json"
if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all parts passed; numbers in $results/results.json"
