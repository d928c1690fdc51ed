"""Goal: no machine runs instructions that it lacks. Of an inline function that objects of several instruction sets
define, the linker keeps one copy, perhaps the one with AVX-512. Method: every weak symbol that an object of
kernels/cpu/simd defines is in the namespace of its instruction set. Usage: isa_symbols.py OBJECT..."""

import re
import subprocess
import sys

# Tables of the C++ runtime: data, not code.
HARMLESS = re.compile(r"DW\.ref\.__gxx_personality_v0$")


def main(objects):
    failed = 0
    for path in objects:
        isa = re.search(r"apb_kernels_(\w+)\.dir", path).group(1)
        symbols = subprocess.run(["nm", "--defined-only", "-C", path], capture_output=True, text=True, check=True).stdout
        for line in symbols.splitlines():
            _, kind, name = line.split(maxsplit=2)
            if kind in "WVu" and f"isa_{isa}::" not in name and not HARMLESS.search(name):
                print(f"{path}: {name} is shared between instruction sets; do not call it there")
                failed += 1
    print(f"{len(objects)} objects, {failed} shared functions")
    return 1 if failed or not objects else 0


sys.exit(main(sys.argv[1:]))
