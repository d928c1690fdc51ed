"""Goal: no kernel spills registers or loses wgmma's asynchrony, and every change of registers or shared memory is
noticed. Method: read ptxas's reports of all kernels from the build (*.ptxas beside the objects) and compare them
with resources.txt, if the same nvcc wrote it. `--update` writes resources.txt."""

import glob
import os
import re
import subprocess
import sys

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resources.txt")


def short_names(mangled):
    plain = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = []
    for line in plain.splitlines():
        name = line.split("(anonymous namespace)::", 1)[1]
        depth = 0
        for i, c in enumerate(name):  # the name ends at the parameters
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0 and not name[:i].endswith("<"):
                name = name[:i]
                break
        names.append(re.sub(r"\((?:int|bool)\)|apb::kernels::|(?<=,) ", "", name))
    return names


def read_reports(folder):
    kernels, notes = [], []
    for path in sorted(glob.glob(os.path.join(folder, "**", "*.ptxas"), recursive=True)):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        notes += [line for line in text.splitlines() if re.search(r"\(C\d+\)", line)]
        for name, arch, body in re.findall(r"Compiling entry function '(\S+)' for '(\S+)'\n(.*?Used [^\n]*)", text, re.S):
            stack, stores, loads = map(int, re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", body).groups())
            used = re.search(r"Used (\d+) registers", body).group(1)
            shared = re.search(r"(\d+) bytes smem", body)
            kernels.append((arch, name, int(used), int(shared.group(1)) if shared else 0, stack, stores + loads))
    names = short_names([k[1] for k in kernels])
    return sorted((kernel[0], name) + kernel[2:] for kernel, name in zip(kernels, names)), notes


def main():
    folder, compiler = sys.argv[1], sys.argv[2]
    kernels, notes = read_reports(folder)
    lines = [f"nvcc {compiler}: registers, bytes of static shared memory, of stack, kernel"]
    lines += [f"{arch:7}{registers:4}{shared:7}{stack:5}  {name}" for arch, name, registers, shared, stack, _ in kernels]
    if "--update" in sys.argv:
        with open(TABLE, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return 0
    errors = [f"note of ptxas: {note}" for note in notes]
    if not kernels:
        errors.append(f"no reports of ptxas under {folder}")
    errors += [f"{arch} {name}: {spills} bytes of spills" for arch, name, *_, spills in kernels if spills]
    with open(TABLE, encoding="utf-8") as file:
        table = file.read().splitlines()
    if table[0] == lines[0]:
        errors += [f"not in resources.txt: {line}" for line in lines if line not in table]
        errors += [f"only in resources.txt: {line}" for line in table if line not in lines]
    else:
        print(f"resources.txt is of another compiler ({table[0]}): compared spills only")
    for error in errors:
        print("error:", error)
    print(f"{len(kernels)} kernels, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
