#!/usr/bin/env bash
# Installs, builds and runs every test. Arguments go to ctest: `tests/run.sh -R scheduler` runs what matches.
#   APB_PRESET (release)  a preset of CMakePresets.json: release, debug, asan, tsan
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
preset=${APB_PRESET:-release}

"$root/deploy/local/install.sh" --tests

# The Python clients live in a virtual environment of their own, remade when the list changes.
venv="$root/build/venv"
if ! cmp -s "$root/tests/requirements.txt" "$venv/requirements.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$root/tests/requirements.txt"
  cp "$root/tests/requirements.txt" "$venv/requirements.txt"
fi

cd "$root"
cmake --preset "$preset" -DAPB_TESTS=ON -DAPB_TEST_PYTHON="$venv/bin/python"
cmake --build "build/$preset"
ctest --test-dir "build/$preset" --output-on-failure --no-tests=error "$@"
