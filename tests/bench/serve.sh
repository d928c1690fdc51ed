#!/usr/bin/env bash
# Goal: the speed of the whole server. Method: starts a server with its ranks and sends it requests (serve.py); prints a
# table (and JSON).
#   --weights random|DIR (default: the demo model)  --shape 125m (of random weights)
#   --ranks 2  --virtual-hosts 4  --threads N (per rank)  --url URL (measures that server instead)
#   --lengths 128,2048  --concurrency 1,4  --strategies auto,full,apb  --max-tokens 32  --json FILE: see serve.py --help
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
weights="" shape=125m ranks=2 hosts=4 threads=0 url="" args=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --weights) weights=$2; shift 2 ;;
    --shape) shape=$2; shift 2 ;;
    --ranks) ranks=$2; shift 2 ;;
    --virtual-hosts) hosts=$2; shift 2 ;;
    --threads) threads=$2; shift 2 ;;
    --url) url=$2; shift 2 ;;
    *) args+=("$1"); shift ;;
  esac
done
if [[ -n "$url" ]]; then exec python3 "$root/tests/bench/serve.py" --url "$url" "${args[@]}"; fi

scratch=$(mktemp -d)
server=""
stop() {
  [[ -z "$server" ]] || { kill -TERM "$server" 2>/dev/null && wait "$server" || true; }
  rm -rf "$scratch"
}
trap stop EXIT
if [[ "$weights" == random ]]; then
  python3 "$root/tests/bench/random_checkpoint.py" --shape "$shape" "$scratch/$shape"
  weights="$scratch/$shape"
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
MODEL="$weights" HTTP_PORT=$port GRPC_PORT=0 RANKS=$ranks VIRTUAL_HOSTS=$hosts \
  "$root/deploy/local/serve.sh" --threads-per-rank "$threads" >"$scratch/log" 2>&1 &
server=$!
until grep -q '^ready ' "$scratch/log"; do
  kill -0 "$server" 2>/dev/null || { cat "$scratch/log" >&2; exit 1; }
  sleep 0.1
done
python3 "$root/tests/bench/serve.py" --url "http://127.0.0.1:$port" "${args[@]}"
