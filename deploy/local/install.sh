#!/usr/bin/env bash
# Installs the Debian 12 packages that building and running need. When all are installed it does nothing and needs
# no root. `install.sh --tests` adds the packages that only the tests need.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc
  libabsl-dev nlohmann-json3-dev prometheus-cpp-dev libcli11-dev libpcre2-dev libutf8proc-dev
  libdnnl-dev libopenmpi-dev openmpi-bin libboost1.81-dev libgtest-dev libgmock-dev
)
if [[ "${1:-}" == --tests ]]; then
  packages+=(clang-format python3 python3-venv python3-numpy curl iproute2)
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ "$status" == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

sudo=()
if [[ $EUID -ne 0 ]]; then
  command -v sudo >/dev/null || { echo "install.sh: run as root or install sudo; missing: ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "installing: ${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq >&2
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
