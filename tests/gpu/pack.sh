#!/usr/bin/env bash
# Packs Abseil, GoogleTest and nlohmann-json of this machine (Debian 12) for one that cannot install them:
# build/gpu-deps, which run.sh finds there.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
deps="$root/build/gpu-deps"
libs=lib/$(gcc -print-multiarch)
rm -rf "$deps"
mkdir -p "$deps/include" "$deps/$libs/cmake" "$deps/share/cmake"
cp -r /usr/include/{absl,gtest,gmock,nlohmann} "$deps/include/"
cp -P /usr/$libs/libabsl_*.so* /usr/$libs/lib{gtest,gtest_main,gmock,gmock_main}.a "$deps/$libs/"
cp -r /usr/$libs/cmake/{absl,GTest} "$deps/$libs/cmake/"
cp -r /usr/share/cmake/nlohmann_json "$deps/share/cmake/"
du -sh "$deps"
