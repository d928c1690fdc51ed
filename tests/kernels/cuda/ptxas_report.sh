#!/bin/sh
# Launches nvcc. Keeps ptxas's report of each kernel beside the object file, as OBJECT.ptxas, and passes
# on the rest of its output: errors, warnings, and notes with a number such as (C7520).
object= previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
"$@" 2>"$object.ptxas"
status=$?
grep -v -e '^ptxas info    : [^(]' -e '^ *[0-9]* bytes stack frame' "$object.ptxas" >&2
exit $status
