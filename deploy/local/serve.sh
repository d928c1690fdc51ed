#!/usr/bin/env bash
# Installs packages, builds, and serves a model on this machine. Prints `ready http://127.0.0.1:PORT` when the server takes
# requests. Stays in the foreground; Ctrl-C or SIGTERM stops the server and its ranks. Environment (with defaults):
#   HTTP_PORT (8000)  GRPC_PORT (50051)  RANKS (2)  VIRTUAL_HOSTS (4, per rank)
#   MODEL (demo): demo, smollm2 (SmolLM2-135M-Instruct, which tests/real_model downloads once), or a checkpoint's folder
# Arguments are passed on to apb-server (`serve.sh --help` lists them).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)

"$root/deploy/local/install.sh"
build="$root/build/release"
if [[ ! -f "$build/build.ninja" ]]; then
  (cd "$root" && cmake --preset release) >&2
fi
cmake --build "$build" --target apb-server apb-worker >&2

case "${MODEL:=demo}" in
  demo)
    MODEL="$root/tests/reference_model/checkpoint"
    set -- --served-model-name demo "$@" ;;
  smollm2)
    MODEL=$("$root/tests/real_model/prepare.sh")
    set -- --served-model-name smollm2 "$@" ;;
esac
exec "$build/server/apb-server" \
  --model "$MODEL" \
  --http-port "${HTTP_PORT:-8000}" \
  --grpc-port "${GRPC_PORT:-50051}" \
  --local-ranks "${RANKS:-2}" \
  --virtual-hosts "${VIRTUAL_HOSTS:-4}" \
  --worker-binary "$build/engine/worker/apb-worker" \
  "$@"
