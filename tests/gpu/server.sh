#!/usr/bin/env bash
# Goal: the whole server on a machine with a GPU. Method: runs build/gpu-server (made by pack.sh server): server.sh RESULTS
#   8B shape, random weights, one rank: TTFT and ITL over HTTP, up to 32 clients
#   the demo model, two ranks over NCCL: answers by apb and ring_kv
# Writes RESULTS/server_*.json (tests/bench/serve.py). APB_TRIAL=1 tests this script itself: small sizes on the CPU.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
packed="$root/build/gpu-server"
results=$1
worker_arguments="--device cuda" shape=8b lengths=128,8192,32768,131072 long=32768 documents=20 clients=32
if [[ -n ${APB_TRIAL:-} ]]; then
  worker_arguments="--device cpu --dtype float32" shape=tiny lengths=128 long=512 documents=2 clients=2
fi
scratch=$(mktemp -d)
server=""
stop() {
  [[ -z $server ]] || { kill -TERM "$server" 2>/dev/null && wait "$server" || true; }
  server=""
}
trap 'stop; rm -rf "$scratch"' EXIT

# Ranks share the GPU, so NCCL must think that they are on several machines.
cat >"$scratch/worker" <<W
#!/bin/sh
export NCCL_HOSTID=rank\$OMPI_COMM_WORLD_RANK NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo
exec "$packed/bin/apb-worker" "\$@"
W
chmod +x "$scratch/worker"

# start MODEL RANKS ARGUMENT...: starts a server, sets `url` when it is ready.
start() {
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  url=http://127.0.0.1:$port
  # The packed libraries are for these programs only: Python has its own.
  env OPAL_PREFIX="$packed" PMIX_MCA_pcompress_base_silence_warning=1 PATH="$packed/bin:$PATH" LD_LIBRARY_PATH="$packed/lib:${LD_LIBRARY_PATH:-}" \
    "$packed/bin/apb-server" --model "$1" --http-port "$port" --grpc-port 0 --local-ranks "$2" \
    --worker-binary "$scratch/worker" --worker-args "$worker_arguments" "${@:3}" >"$scratch/log" 2>&1 &
  server=$!
  until grep -q '^ready ' "$scratch/log"; do
    kill -0 "$server" 2>/dev/null || { cat "$scratch/log"; exit 1; }
    sleep 0.1
  done
  grep -E 'backend=|KV|loaded' "$scratch/log" | tail -n 6
}

start "$root/tests/reference_model/checkpoint" 2 --virtual-hosts 4 --served-model-name demo
"$root/tests/gpu/answers.py" "$url" apb $((long * 15 / 16)) $documents
"$root/tests/gpu/answers.py" "$url" ring_kv $((long / 2)) $((documents / 2))
stop

python3 "$root/tests/bench/random_checkpoint.py" --shape "$shape" "$scratch/model"
start "$scratch/model" 1 --virtual-hosts 8
load() {
  python3 "$root/tests/bench/serve.py" --url "$url" --json "$results/server_$1.json" "${@:2}"
}
load one --lengths $lengths --concurrency 1 --requests 2 --strategies full,apb
load follow_up --lengths $long --concurrency 1 --requests 2 --strategies apb --follow-up 64
load many --lengths 1024 --concurrency $clients --requests $((2 * clients)) --max-tokens 128 --strategies full
stop
