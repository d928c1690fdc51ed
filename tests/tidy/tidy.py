"""Goal: the project's structure stays as docs/architecture.md describes it. Method: read every source file and
CMakeLists.txt; fail on includes in a forbidden direction, vendor headers outside their room, names of strategies outside
their folders, source files that no target builds, folders without tests, and unknown files at the top level. Long files
are printed but do not fail: they are a question."""

import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Folder -> the folders whose headers it may include, besides its own. docs/architecture.md draws this.
ARROWS = {
    "kernels": [],
    "engine/base": [],
    "engine/core": ["kernels", "engine/base"],
    "engine/cache": ["kernels", "engine/base", "engine/core"],
    "engine/comm": ["kernels", "engine/base", "engine/core"],
    "engine/sampling": ["kernels", "engine/base", "engine/core"],
    "engine/model": ["kernels", "engine/base", "engine/core", "engine/comm/communicator.h"],
    "engine/context_parallel": ["kernels", "engine/base", "engine/core", "engine/cache", "engine/comm", "engine/model"],
    "engine/schedule": ["engine/base", "engine/sampling/sampling_params.h",
                        "engine/context_parallel/cost.h", "engine/context_parallel/model_shape.h",
                        "engine/context_parallel/prefill_memory.h", "engine/context_parallel/shard_plan.h",
                        "engine/context_parallel/strategies.h", "engine/context_parallel/strategy_info.h",
                        "engine/context_parallel/strategy_options.h"],
    "engine/executor": ["kernels", "engine/base", "engine/core", "engine/cache", "engine/comm", "engine/model",
                        "engine/context_parallel", "engine/sampling", "engine/schedule"],
    "engine/worker": ["kernels", "engine", "apb/cluster", "apb/common"],
    "server/text": ["engine/base"],
    "server/observability": ["engine/base"],
    "server/request": ["engine/base", "server/text", "server/observability", "apb/cluster", "apb/common"],
    "server/cluster": ["engine/base", "server/request", "server/observability", "apb/cluster"],
    "server/contexts": ["engine/base", "server/text", "server/observability", "server/request", "server/cluster"],
    "server/frontend": ["engine/base", "server/text", "server/observability", "server/request", "server/cluster",
                        "server/contexts", "apb/cluster"],
    "server/launcher": ["engine/base", "server/observability"],
    "server/grpc": ["engine/base", "server/text", "server/observability", "server/request", "server/cluster",
                    "server/contexts", "server/frontend", "apb"],
    "server/http": ["engine/base", "server/text", "server/observability", "server/request", "server/cluster",
                    "server/contexts", "server/frontend"],
    "server": ["engine/base", "server"],
}
# Vendor header -> the only places that may include it.
VENDORS = {
    r"mpi\.h": ["engine/comm/mpi_"],
    r"cuda.*|cublas.*|nccl\.h|cudnn.*": ["kernels/cuda/", "engine/comm/nccl_"],
    r"(oneapi/dnnl/.*|dnnl.*)": ["kernels/cpu/"],
    r"prometheus/.*": ["server/observability/"],
    r"boost/.*": ["server/http/"],
}
TOP_LEVEL = {"CMakeLists.txt", "CMakePresets.json", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "server", "proto", "engine",
             "kernels", "deploy", "docker", "tests", "docs"}
# Folders under engine/ and server/ without a folder of the same path in tests/, and why.
UNMIRRORED = {
    **{f"engine/context_parallel/{name}": "tests/engine/context_parallel/contract.cc goes over the rows of the table"
       for name in ("apb", "full", "ring", "star", "ulysses")},
    "engine/core": "owning tensors and scratch memory: every test of the engine computes in them",
    "server/text/jinja": "tests/server/text/chat_template_test.cc, against jinja2 itself",
}
SOURCE = (".cc", ".h", ".cu", ".cuh")
# Its rows name the strategies. A strategy's own folder may use the name too, but no other file in
# engine/.
STRATEGIES = "engine/context_parallel/strategies.cc"
OURS = ("kernels/", "engine/", "server/", "apb/", "tests/")


def tracked_files():
    out = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if out.returncode == 0 and out.stdout:
        return [f for f in out.stdout.splitlines() if os.path.exists(os.path.join(ROOT, f))]
    found = []
    for folder, dirs, files in os.walk(ROOT):  # an exported tree without git
        dirs[:] = [d for d in dirs if d not in ("build", ".git")]
        found += [os.path.relpath(os.path.join(folder, f), ROOT) for f in files]
    return found


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def room_of(path):
    folder = os.path.dirname(path)
    while folder and folder not in ARROWS:
        folder = os.path.dirname(folder)
    return folder


def allowed(room, target):
    if target.startswith(room + "/"):
        return True
    return any(target == a or target.startswith(a + "/") for a in ARROWS[room])


def check_includes(path, text, errors):
    room = room_of(path)
    for quote, target in re.findall(r'^\s*#\s*include\s*(["<])([^">]+)', text, re.M):
        if room and quote == '"' and target.startswith(OURS) and not allowed(room, target):
            errors.append(f"{path}: {room} must not include {target}")
        for pattern, places in VENDORS.items():
            if re.fullmatch(pattern, target) and not path.startswith("tests/") \
                    and not any(path.startswith(p) for p in places):
                errors.append(f"{path}: {target} belongs to {', '.join(places)} only")


def folders_of_strategies(files):
    """Returns a strategy's name -> the folder with the header that declares the `plan` of its row."""
    headers = {f: read(f) for f in files if f.startswith(os.path.dirname(STRATEGIES) + "/") and f.endswith(".h")}
    rows = re.findall(r'\.name = "(\w+)".*?\.plan = (\w+)', read(STRATEGIES), re.S)
    return {name: next(os.path.dirname(f) + "/" for f, text in headers.items() if re.search(rf"\b{plan}\(", text))
            for name, plan in rows}


def check_strategy_names(path, text, folders, errors):
    for name, folder in folders.items():
        quoted = re.search(rf"""["']{name}["']""", text)
        if quoted and path.startswith("engine/") and path != STRATEGIES and not path.startswith(folder):
            line = text.count("\n", 0, quoted.start()) + 1
            errors.append(f"{path}:{line}: the name of strategy {name} belongs to {folder} and {STRATEGIES};"
                          " ask its StrategyInfo")


def check_recipes(files, errors):
    """CONTRIBUTING.md lists the product's files that each kind of addition touches. The list must hold exactly the files that
    name the recipe's example, and no more files than the recipe promises."""
    text = read("CONTRIBUTING.md")
    recipes = re.findall(r"^## (Add [^\n]*)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    for title, section in recipes:
        example = re.search(r"^Example: `([^`]+)`, at most (\d+) files(?: of `([^`]+)`)?", section, re.M)
        if example is None:
            continue
        listed = set(re.findall(r"^\d+\. `([^`]+)`", section, re.M))
        folders = (example.group(3),) if example.group(3) else ("proto/", "engine/", "server/", "kernels/")
        named = {f for f in files if f.startswith(folders) and not f.endswith((".md", "CMakeLists.txt"))
                 and re.search(rf"\b{example.group(1)}", read(f))}
        for path in sorted(listed ^ named):
            errors.append(f"{path}: {'names' if path in named else 'does not name'} {example.group(1)}, unlike the list of "
                          f"CONTRIBUTING.md, \"{title}\"")
        if len(listed) > int(example.group(2)):
            errors.append(f"CONTRIBUTING.md: \"{title}\" lists {len(listed)} files, and promises {example.group(2)}")
    if sum("Example: `" in section for _, section in recipes) < 4:
        errors.append("CONTRIBUTING.md: fewer than four recipes have an example")


def check_format(files, errors):
    """The layout is that of Debian 12's clang-format (version 14); other versions lay out differently."""
    try:
        version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        version = ""
    if " version 14." not in version:
        print("clang-format 14 is not there: layout is not checked")
        return
    sources = [f for f in files if f.endswith(SOURCE)]
    done = subprocess.run(["clang-format", "--dry-run", *sources], capture_output=True, text=True, cwd=ROOT)
    for path in sorted(set(re.findall(r"^([^:\n]+):\d+:\d+: (?:warning|error)", done.stderr, re.M))):
        errors.append(f"{path}: run clang-format -i on it")


def check_mirror(files, errors):
    """tests/ mirrors the tree: every folder of engine/ and server/ with sources has a folder of the same path with tests."""
    has_code = {os.path.dirname(f) for f in files if f.endswith(".cc") and f.startswith(("engine/", "server/"))}
    has_tests = {os.path.dirname(f) for f in files if f.startswith("tests/") and f.endswith(("_test.cc", "_test.py"))}
    for folder in sorted(has_code):
        if ("tests/" + folder in has_tests) == (folder in UNMIRRORED):
            errors.append(f"{folder}: " + ("has tests, but is in UNMIRRORED" if folder in UNMIRRORED else
                                           f"no tests in tests/{folder}, nor a reason in UNMIRRORED"))


def main():
    errors, files = [], tracked_files()
    strategies = folders_of_strategies(files)
    cmake = "\n".join(read(f) for f in files if f.endswith("CMakeLists.txt"))
    for path in files:
        top = path.split("/")[0]
        if top not in TOP_LEVEL and not top.startswith("."):
            errors.append(f"{path}: not at the top level")
        if not path.endswith(SOURCE):
            continue
        text = read(path)
        check_includes(path, text, errors)
        check_strategy_names(path, text, strategies, errors)
        name = os.path.basename(path)
        if path.endswith((".cc", ".cu")) and not re.search(r"(?<![\w.])" + re.escape(name), cmake) \
                and not re.search(re.escape(os.path.splitext(name)[0]) + r"\b", cmake):
            errors.append(f"{path}: no target builds it")
        lines = text.count("\n")
        if lines > (700 if path.startswith("tests/") else 600 if path.startswith("kernels/") else 500):
            print(f"long file: {path} {lines} lines")
    check_recipes(files, errors)
    check_format(files, errors)
    check_mirror(files, errors)
    for error in errors:
        print("error:", error)
    print(f"{len(files)} files, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
