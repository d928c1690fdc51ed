"""Goal: every header compiles alone, so that nobody has to include another one before it. Method: a source that contains
only the header is checked (without making code), with the flags that compile_commands.json has for the header's source or
for another source near it.

    headers.py BUILD_FOLDER [HEADER ...]

Headers of kernels/cuda and kernels/cpu/simd need flags of their own (nvcc; instruction sets) and are left out."""

import concurrent.futures
import json
import os
import shlex
import subprocess
import sys
import time

import tidy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LEFT_OUT = ("kernels/cuda/", "kernels/cpu/simd/")


def commands(build):
    """Returns source -> (directory, command without its output and source)."""
    with open(os.path.join(build, "compile_commands.json"), encoding="utf-8") as file:
        entries = json.load(file)
    found = {}
    for entry in entries:
        path = os.path.relpath(entry["file"], ROOT)
        if path.startswith(("..", "build/", "tests/") + LEFT_OUT) or not path.endswith(".cc"):
            continue
        command = shlex.split(entry["command"])
        while os.path.basename(command[0]) == "ccache":
            command = command[1:]
        found[path] = (entry["directory"], command[:command.index("-o")])
    return found


def command_for(header, found):
    """The command of the source with the header's name; else the one with the most include folders in or below the nearest
    folder that has sources."""
    own = found.get(os.path.splitext(header)[0] + ".cc")
    folder = os.path.dirname(header)
    while own is None and folder:
        near = [c for path, c in found.items() if path.startswith(folder + "/")]
        own = max(near, key=lambda c: sum(flag.startswith(("-I", "-isystem")) for flag in c[1]), default=None)
        folder = os.path.dirname(folder)
    return own


def check(header, found):
    """Returns the compiler's errors about the header; empty without errors."""
    own = command_for(header, found)
    if own is None:
        return f"{header}: no source at or below its folder is built"
    directory, command = own
    done = subprocess.run(command + ["-fsyntax-only", "-x", "c++", "-"], input=f'#include "{header}"\n' * 2,
                          capture_output=True, text=True, cwd=directory)
    return "" if done.returncode == 0 else f"{header}:\n{done.stderr}"


def main():
    build, headers = sys.argv[1], sys.argv[2:]
    if not headers:
        headers = [f for f in tidy.tracked_files() if f.endswith(".h")
                   and f.startswith(("engine/", "server/", "kernels/")) and not f.startswith(LEFT_OUT)]
    found = commands(build)
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        errors = [e for e in pool.map(lambda h: check(h, found), headers) if e]
    for error in errors:
        print(error)
    print(f"{len(headers)} headers, {len(errors)} errors, {time.monotonic() - begin:.0f} s")
    return 1 if errors or not headers else 0


if __name__ == "__main__":
    sys.exit(main())
