#!/usr/bin/env bash
# Installs, builds and serves a model on this machine; prints `ready http://127.0.0.1:PORT` when curl may come.
# Stays in the foreground; Ctrl-C or SIGTERM stops the server and its ranks.
#   HTTP_PORT (8000)  GRPC_PORT (50051)  RANKS (2)  MODEL (the demo model)  VIRTUAL_HOSTS (4)
# Further arguments go to apb-server (`serve.sh --help` lists them).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

"$root/deploy/local/install.sh"
build="$root/build/release"
if [[ ! -f "$build/build.ninja" ]]; then
  (cd "$root" && cmake --preset release) >&2
fi
cmake --build "$build" --target apb-server apb-worker >&2

if [[ -z "${MODEL:-}" ]]; then
  MODEL="$root/tests/reference_model/checkpoint"
  set -- --served-model-name demo "$@"
fi
exec "$build/server/apb-server" \
  --model "$MODEL" \
  --http-port "${HTTP_PORT:-8000}" \
  --grpc-port "${GRPC_PORT:-50051}" \
  --local-ranks "${RANKS:-2}" \
  --virtual-hosts "${VIRTUAL_HOSTS:-4}" \
  --worker-binary "$build/engine/worker/apb-worker" \
  "$@"
