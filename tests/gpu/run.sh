#!/usr/bin/env bash
# Goal: the engine's tests and measurements on a machine with a GPU. Method: parts with a time limit each:
#   tests/gpu/run.sh [part...]     all parts by default
#
#   part        at most  took   (seconds; "took" on an H200 with 16 cores, if known)
#   build          300     24   APB_BARE into build/gpu, the programs into build/gpu-bin
#   kernels        120     29   all operations against float64, on fresh random data
#   engine         150     12   logits of random models, prefill to decode, against the CPU
#   nccl            60     35   collectives of 1, 2 and 4 ranks on one GPU; a peer that stays away
#   strategies     120   > 40   the exactness contract of all strategies on 2 and 4 ranks; decode steps as graphs on 1 and
#                               2 ranks
#   sanitizer      130          compute-sanitizer on small cases
#   bench          200     18   kernels, compared with copy bandwidth and matrix peak
#   torch           90          PyTorch's attention at the same shapes
#   model          290          the 8B shape: a whole prefill, and each of 8 hosts alone
#   server         290          apb-server with the 8B shape over HTTP; the demo model's answers on 2 ranks. Needs the
#                               archive of `pack.sh server`
#
# If a call may take 600 s:  run.sh kernels engine nccl strategies sanitizer ; run.sh bench torch model ; run.sh server
# A part that has passed is not run again: remove build/gpu-results to start anew. Numbers are written to
# build/gpu-results/results.json; a table of the main ones is printed.
#
# `build` needs nvcc, cuBLASLt and NCCL with their headers (PyTorch's are found, too), CMake, ninja, a C++ compiler,
# Abseil, GoogleTest and nlohmann-json: the system's, or build/gpu-deps as pack.sh makes it. It needs no GPU. After a
# build elsewhere, build/gpu-carry.tgz can be copied to a machine that only has the libraries; the other parts unpack it.
#   APB_BUILD_SECONDS (300)          time limit of `build`, for slower machines
#   APB_TEST_SEED (from the clock)   seed of the tests' random data
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build="$root/build/gpu"
bin="$root/build/gpu-bin"
results="$root/build/gpu-results"
deps="$root/build/gpu-deps"
carried="$root/build/gpu-carry.tgz"  # programs and deps, compressed to a quarter
server="$root/build/gpu-server"
if [[ -e $carried && ( ! -d $bin || $carried -nt $bin ) ]]; then tar -xmzf "$carried" -C "$root/build"; fi
if [[ -e $server.tar.xz && ! -d $server ]]; then
  python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$server.tar.xz" "$root/build"
fi
export APB_TEST_SEED=${APB_TEST_SEED:-$(date +%s)}
export PATH="$PATH:/usr/local/cuda/bin"
libraries=$(python3 -c 'import glob, site
print(":".join(p for s in site.getsitepackages() for p in sorted(glob.glob(s + "/nvidia/*/lib"))))' 2>/dev/null)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}:$(printf '%s:' "$deps"/lib/*-linux-gnu)/usr/local/cuda/lib64:/usr/local/cuda/lib:$libraries"
mkdir -p "$results"
failed=()
wanted=${*:-build kernels engine nccl strategies sanitizer bench torch model server}

# part NAME SECONDS: runs run_NAME with a time limit, unless it is not wanted or has passed before.
part() {
  local name=$1 seconds=$2 start=$SECONDS status
  [[ " $wanted " == *" $name "* ]] || return 0
  if [[ -e "$results/$name.passed" ]]; then
    echo "== $name: passed before"
    return 0
  fi
  echo "== $name (at most $seconds s)"
  export -f "run_$name" over_ranks lend
  root=$root build=$build bin=$bin results=$results deps=$deps server=$server libraries=$libraries carried=$carried \
    timeout "$seconds" bash -euo pipefail -c "run_$name" 2>&1 |
    tee "$results/$name.log" | tail -n 60
  status=${PIPESTATUS[0]}
  if [[ $status == 0 ]]; then
    touch "$results/$name.passed"
    echo "== $name passed in $((SECONDS - start)) s"
  else
    echo "== $name FAILED (exit $status; all of it in $results/$name.log)"
    failed+=("$name")
  fi
}

# lend NAME HEADER...: if the toolkit lacks a library, links PyTorch's copy of it into build/gpu-lent, under the names
# that compilers and linkers look for.
lend() {
  local name=$1 toolkit folder file header
  shift
  toolkit=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
  for folder in "$toolkit"/lib64 "$toolkit"/lib "$toolkit"/targets/*/lib /usr/lib/*-linux-gnu; do
    if [[ -e $folder/lib$name.so ]]; then return; fi
  done
  for folder in ${libraries//:/ }; do
    for file in "$folder/lib$name.so".*; do
      [[ -e $file ]] || continue
      ln -sf "$file" "$build-lent/lib$name.so"
      for header; do ln -sf "$(dirname "$folder")/include/$header" "$build-lent/$header"; done
      return
    done
  done
}

run_build() {
  nvcc --version
  local options=() programs=(ops_test sample_test record_test attention_test engine_gpu_test nccl_test nccl_strategy_test nccl_decode_test cuda_bench model_bench)
  if [[ -d $deps ]]; then options=("-DCMAKE_PREFIX_PATH=$deps"); fi
  rm -rf "$build-lent"
  mkdir -p "$build-lent"
  lend cublasLt cublasLt.h cublas_api.h
  lend nccl nccl.h
  export CPATH="$build-lent"
  if [[ -e $build-lent/libcublasLt.so ]]; then options+=("-DCUDA_cublasLt_LIBRARY=$build-lent/libcublasLt.so"); fi
  if [[ -e $build-lent/libnccl.so ]]; then
    options+=("-DNCCL_LIBRARY=$build-lent/libnccl.so" "-DNCCL_INCLUDE_DIR=$build-lent")
  fi
  # For Hopper only. APB_WERROR is off, because other compilers than CI's have other warnings.
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAPB_BARE=ON -DAPB_CUDA=ON -DAPB_WERROR=OFF \
    -DAPB_TESTS=ON "-DCMAKE_CUDA_ARCHITECTURES=90-real" "${options[@]}"
  cmake --build "$build" --target "${programs[@]}"
  mkdir -p "$bin"
  for program in "${programs[@]}"; do
    strip -o "$bin/$program" "$(find "$build/tests" -type f -name "$program")"
  done
  du -sh "$bin"
  local folders=(gpu-bin)
  if [[ -d $deps ]]; then folders+=(gpu-deps); fi
  tar -czf "$carried" -C "$root/build" "${folders[@]}"
}

run_kernels() {
  nvidia-smi
  echo "seed $APB_TEST_SEED"
  local program status=0
  for program in ops_test sample_test record_test attention_test; do
    "$bin/$program" --gtest_brief=1 || status=1
  done
  return $status
}

run_engine() {
  "$bin/engine_gpu_test"
}

# over_ranks PROGRAM COUNT: runs a process for each rank. Ranks share GPUs, so NCCL must think that they are on several
# machines.
over_ranks() {
  local meeting rank pids=() status=0
  meeting=$(mktemp -d)
  for ((rank = 0; rank < $2; ++rank)); do
    NCCL_HOSTID=rank$rank NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo "$1" $rank "$2" "$meeting/id" --gtest_brief=$((rank > 0)) &
    pids+=($!)
  done
  for rank in "${pids[@]}"; do wait "$rank" || status=1; done
  rm -rf "$meeting"
  return $status
}

run_nccl() {
  local ranks status=0
  for ranks in 1 2 4; do over_ranks "$bin/nccl_test" $ranks || status=1; done
  return $status
}

run_strategies() {
  export OMP_NUM_THREADS=2  # for the oracle
  local ranks status=0
  for ranks in 2 4; do over_ranks "$bin/nccl_strategy_test" $ranks || status=1; done
  for ranks in 1 2; do over_ranks "$bin/nccl_decode_test" $ranks || status=1; done
  return $status
}

run_sanitizer() {
  local check="compute-sanitizer --error-exitcode 9 --tool"
  $check memcheck "$bin/ops_test" --gtest_brief=1 --gtest_filter='*NormRope*:*Merge*:*Selection*:*Embedding*:*RopeStores*'
  $check memcheck "$bin/sample_test" --gtest_brief=1 --gtest_filter='*Edits*:*OfEqual*:*NoDraw*'
  $check memcheck "$bin/attention_test" --gtest_brief=1 --gtest_filter='*EqualsOracle*'
  $check memcheck "$bin/engine_gpu_test" --gtest_brief=1 --gtest_filter='*Small/llama_bf16'
  $check racecheck "$bin/ops_test" --gtest_brief=1 --gtest_filter='*NormRope*:*Selection*:*RopeStores*'
  $check racecheck "$bin/sample_test" --gtest_brief=1 --gtest_filter='*Edits*:*OfEqual*'
}

run_bench() {
  rm -f "$results/bench.json"
  "$bin/cuda_bench" "$results/bench.json"
}

run_torch() {
  rm -f "$results/torch.json"
  if python3 -c 'import torch' 2>/dev/null; then
    python3 "$root/tests/gpu/torch_attention.py" "$results/torch.json"
  else
    echo "no PyTorch to compare with"
  fi
}

run_model() {
  rm -f "$results/model.json"
  "$bin/model_bench" "$results/model.json"
}

run_server() {
  if [[ -d $server ]]; then
    "$root/tests/gpu/server.sh" "$results"
  else
    echo "no $server to run: see pack.sh"
  fi
}

part build "${APB_BUILD_SECONDS:-300}"
part kernels 120
part engine 150
part nccl 60
part strategies 120
part sanitizer 130
part bench 200
part torch 90
part model 290
part server 290

cat "$results"/{bench,torch,model}.json 2>/dev/null | sed -e '1s/^/[/' -e '$!s/$/,/' -e '$s/$/]/' >"$results/results.json"
python3 "$root/tests/gpu/report.py" "$results/results.json"
if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all of [$wanted] passed; numbers in $results/results.json"
