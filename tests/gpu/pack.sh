#!/usr/bin/env bash
# Packs the software that run.sh needs from this machine (Debian 12) for a machine that cannot install it:
#   pack.sh          Abseil, GoogleTest and nlohmann-json as build/gpu-deps, where run.sh finds them
#   pack.sh server   apb-server and apb-worker for Hopper, OpenMPI and the shared libraries of all three as
#                    build/gpu-server.tar.xz (about 20 MB) for run.sh's part `server`. Builds them in build/gpu-whole,
#                    which needs the packages of the whole build, nvcc and NCCL. cuBLASLt, NCCL, the C and the C++
#                    library are the other machine's.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
arch=$(gcc -print-multiarch)

pack_deps() {
  local deps="$root/build/gpu-deps" libs=lib/$arch
  rm -rf "$deps"
  mkdir -p "$deps/include" "$deps/$libs/cmake" "$deps/share/cmake"
  cp -r /usr/include/{absl,gtest,gmock,nlohmann} "$deps/include/"
  cp -P /usr/$libs/libabsl_*.so* /usr/$libs/lib{gtest,gtest_main,gmock,gmock_main}.a "$deps/$libs/"
  cp -r /usr/$libs/cmake/{absl,GTest} "$deps/$libs/cmake/"
  cp -r /usr/share/cmake/nlohmann_json "$deps/share/cmake/"
  du -sh "$deps"
}

# libraries FILE...: the shared libraries that the files need, except for those that the other machine has.
libraries() {
  ldd "$@" | awk '$3 ~ /^\// { print $3 }' | sort -u |
    grep -v -E '/(libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libcublas.*|libnccl|libcuda)\.so'
}

pack_server() {
  local whole="$root/build/gpu-whole" out="$root/build/gpu-server" plugins=openmpi/lib/openmpi3 file
  cmake -S "$root" -B "$whole" -G Ninja -DCMAKE_BUILD_TYPE=Release -DAPB_CUDA=ON -DAPB_TESTS=OFF \
    "-DCMAKE_CUDA_ARCHITECTURES=90-real"
  cmake --build "$whole" --target apb-server apb-worker
  rm -rf "$out"
  mkdir -p "$out/bin" "$out/lib/$arch/$plugins" "$out/share/openmpi"
  strip -o "$out/bin/apb-server" "$whole/server/apb-server"
  strip -o "$out/bin/apb-worker" "$whole/engine/worker/apb-worker"
  cp -L "$(command -v mpirun)" "$out/bin/mpirun"
  # One machine needs no plugins for networks, whose libraries are most of OpenMPI's size.
  for file in /usr/lib/$arch/$plugins/mca_*.so; do
    [[ $file == *_@(ofi|ucx|openib|psm|psm2|monitoring|slurm|gridengine|flux|jsm|netlink|romio321).so ]] ||
      cp "$file" "$out/lib/$arch/$plugins/"
  done
  cp /usr/share/openmpi/help-*.txt "$out/share/openmpi/"
  libraries "$out"/bin/* "$out/lib/$arch/$plugins"/*.so | while read -r file; do cp -L "$file" "$out/lib/"; done
  tar -cJf "$root/build/gpu-server.tar.xz" -C "$root/build" gpu-server
  du -sh "$out" "$root/build/gpu-server.tar.xz"
}

case "${1:-}" in
  server) pack_server ;;
  *) pack_deps ;;
esac
