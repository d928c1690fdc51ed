#!/usr/bin/env bash
# Packs Abseil and GoogleTest of this machine (Debian 12) for one that has neither and cannot install them:
# build/gpu-deps, which run.sh finds there.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
deps="$root/build/gpu-deps"
libs=lib/$(gcc -print-multiarch)
rm -rf "$deps"
mkdir -p "$deps/include" "$deps/$libs/cmake"
cp -r /usr/include/{absl,gtest,gmock} "$deps/include/"
cp -P /usr/$libs/libabsl_*.so* /usr/$libs/lib{gtest,gtest_main,gmock,gmock_main}.a "$deps/$libs/"
cp -r /usr/$libs/cmake/{absl,GTest} "$deps/$libs/cmake/"
du -sh "$deps"
