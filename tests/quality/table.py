#!/usr/bin/env python3
"""Accuracy of the strategies on tasks that separate them, with the gauge model on this machine's CPU; resumable.

Documents come from tasks.py, answers from engine_quality (the engine with all hosts in one process). Every answer becomes a
line in --results, and is not computed again: a run can be stopped at any time and continued, also with more documents. The
table is written between two marks in --page; the page's other text is not changed. Plots are written beside the page if
matplotlib is installed. tests/bench/quality.sh calls this script. --quick compares strategies at 8K with 8 hosts, and fails
if, on chains, APB with retaining heads is less than --margin points better than with randomly chosen tokens.
"""
import argparse
import collections
import hashlib
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import tasks

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "reference_model"))
from make_prompt import render  # noqa: E402

STRATEGIES = {  # name -> strategy:compressor:{hosts}:options
    "full": "full", "ring_kv": "ring_kv", "apb": "apb:retaining_heads:{}", "apb query-aware": "apb:query_aware:{}",
    "apb random": "apb:random:{}", "apb without anchor": "apb:retaining_heads:{}:anchor=0", "star": "star::{}",
    "apb second question": "apb:retaining_heads:{}:again"}  # on KV that was computed for another question
ONE_HOST = ("full", "ring_kv")
TASKS = ["niah_single_2", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt",
         "cwe", "fwe", "khop"]
FACT = re.compile(r"The (key|secret word) of ([A-Z]\w+ [A-Z]\w+)")
SEED = 3 * 10 ** 6
QUESTION_TOKENS = 200  # upper bound for question and answer together
BEGIN, END = "<!-- table: written by tests/quality/table.py -->", "<!-- end of the table -->"


def task_parameters(name):
    """khop:num_hops=4 -> khop, {"num_hops": 4}"""
    task, _, rest = name.partition(":")
    return task, {k: int(v) if v.isdigit() else v for k, v in (p.split("=") for p in rest.split(",") if p)}


class Documents:
    """Makes prompts, split as the server splits a chat of two user messages."""

    def __init__(self, model):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        config = json.loads((model / "config.json").read_text())
        self.bos, self.eos = config["bos_token_id"], config["eos_token_id"]

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, name, length, index, count):
        task, parameters = task_parameters(name)
        depth = 1.0 if task == "khop" else (index * 0.618034) % 1  # even for any number of documents
        made = tasks.make(task, SEED + index, length - QUESTION_TOKENS, depth, lambda t: len(self.encode(t)), **parameters)
        document = [self.bos] + self.encode("<|user|>\n" + made["document"] + "<|end|>\n")
        others = [f"What is the {what} of {name}?" for what, name in FACT.findall(made["document"])
                  if name not in made["question"]] or [made["question"]]
        return made["values"], {
            "length": length, "tokens": document + self.encode(render([{"role": "user", "content": made["question"]}])),
            "query_begin": len(document), "query_insert_position": 1 + len(self.encode("<|user|>\n")),
            "query_before": self.encode(render([{"role": "user", "content": others[0]}])),
            "embedded_query_before": self.encode(others[0]), "embedded_query": self.encode(made["question"]), "expected": self.encode(made["answer"]) + [self.eos]}

    def text(self, ids):
        return self.tokenizer.decode(ids)


class Results:
    """Scores by (model, task, length, configuration, document), kept in a file of JSON lines. The retaining heads count as part
    of the model only for configurations that use them."""

    def __init__(self, file, model):
        weights = (model / "model.safetensors").read_bytes()
        heads = model / "retaining_heads.safetensors"
        self.weights = hashlib.sha256(weights).hexdigest()[:16]
        self.with_heads = hashlib.sha256(weights + (heads.read_bytes() if heads.exists() else b"")).hexdigest()[:16]
        self.file, self.scores = file, {}
        if file.exists():
            for line in file.read_text().splitlines():
                record = json.loads(line)
                if record["model"] == self.model(record["key"][2]):
                    self.scores[tuple(record["key"])] = record["score"]

    def model(self, configuration):
        return self.with_heads if "retaining_heads" in configuration else self.weights

    def add(self, key, score, answer, seconds):
        self.scores[key] = score
        with self.file.open("a") as out:
            out.write(json.dumps({"model": self.model(key[2]), "key": key, "score": score, "answer": answer,
                                  "seconds": seconds}) + "\n")

    def cell(self, task, length, configuration):
        """(mean, standard error, number of documents) of a cell; None without documents."""
        found = [s for (t, n, c, _), s in self.scores.items() if (t, n, c) == (task, length, configuration)]
        if not found:
            return None
        mean = sum(found) / len(found)
        variance = sum((s - mean) ** 2 for s in found) / max(1, len(found) - 1)
        return mean, math.sqrt(variance / len(found)), len(found)


def compute(args, documents, results, task, length, configuration):
    """Computes the missing answers of one cell, args.chunk documents at a time."""
    missing = [i for i in range(args.documents) if (task, length, configuration, i) not in results.scores]
    for begin in range(0, len(missing), args.chunk):
        chunk = missing[begin:begin + args.chunk]
        made = [documents.prompt(task, length, i, args.documents) for i in chunk]
        with tempfile.TemporaryDirectory() as folder:
            prompts, answers = pathlib.Path(folder, "prompts.jsonl"), pathlib.Path(folder, "answers.jsonl")
            prompts.write_text("".join(json.dumps(p) + "\n" for _, p in made))
            command = [args.engine_quality, "--model", args.model, "--prompts", prompts, "--answers", answers, "--json",
                       pathlib.Path(folder, "sums.json"), "--threads", str(args.threads), "--configurations", configuration]
            subprocess.run(command + (["--float32"] if args.float32 else []), check=True, stderr=subprocess.DEVNULL)
            for line in map(json.loads, answers.read_text().splitlines()):
                values, _ = made[line["prompt"]]
                text = documents.text(line["answer"])
                results.add((task, length, configuration, chunk[line["prompt"]]), tasks.score(values, text), text,
                            line["seconds"])
        mean, error, count = results.cell(task, length, configuration)
        print(f"{task} {length} {configuration}: {100 * mean:.0f} ± {100 * error:.0f} % of {count}", flush=True)


def configurations(args):
    """Yields (strategy, hosts, configuration)."""
    for strategy in args.strategies:
        for hosts in (1,) if strategy in ONE_HOST else args.hosts:
            yield strategy, hosts, STRATEGIES[strategy].format(hosts)


def name_of(length):
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def page_table(args, results):
    """One table for each length: tasks in columns, strategies and hosts in rows, with standard errors."""
    parts = []
    for length in args.lengths:
        rows = []
        for strategy, hosts, configuration in configurations(args):
            cells = [results.cell(task, length, configuration) for task in args.tasks]
            if any(cells):
                rows.append(f"| {strategy} | {hosts} | " + " | ".join(
                    f"{100 * c[0]:.0f} ± {100 * c[1]:.0f}" if c else "–" for c in cells) + " |")
        counts = collections.Counter(c[2] for _, _, k in configurations(args) for t in args.tasks
                                     if (c := results.cell(t, length, k)))
        if rows:
            few = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(min(counts))
            parts.append(f"{name_of(length)} tokens, {few} documents in each cell, percent:\n\n| strategy | hosts | "
                         + " | ".join(args.tasks) + " |\n|---|---|" + "---|" * len(args.tasks) + "\n" + "\n".join(rows))
    return "\n\n".join(parts)


def write_page(page, table, first=BEGIN, last=END):
    text = page.read_text()
    begin, end = text.index(first) + len(first), text.index(last)
    page.write_text(text[:begin] + "\n\n" + table + "\n\n" + text[end:])


def plot(args, results, folder):
    """Plots accuracy over the number of links, as SVG. Does nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    hops = sorted({task_parameters(t)[1].get("num_hops", 8) for t, *_ in results.scores if t.startswith("khop")})
    length, hosts = args.lengths[0], max(args.hosts)
    for strategy in args.strategies:
        key = STRATEGIES[strategy].format(hosts)
        found = [(k, c) for k in hops if (c := results.cell(f"khop:num_hops={k}" if k != 8 else "khop", length, key))]
        if found:
            plt.errorbar([k for k, _ in found], [100 * c[0] for _, c in found], [100 * c[1] for _, c in found],
                         marker="o", capsize=3, label=strategy)
    plt.xlabel("links of a chain")
    plt.ylabel("right answers, percent")
    plt.title(f"{name_of(length)} tokens, {hosts} hosts")
    plt.legend()
    plt.savefig(folder / "quality_hops.svg")


def quick_verdict(args, results):
    """The exit code of --quick: 0 if the gauge separates APB from random tokens."""
    good = True
    for task in args.tasks:
        cells = {s: results.cell(task, args.lengths[0], c)[0] for s, _, c in configurations(args)}
        print(f"{task}: " + ", ".join(f"{s} {100 * c:.0f} %" for s, c in cells.items()))
        if task == "khop" and {"apb", "apb random"} <= cells.keys() and (
                100 * (cells["apb"] - cells["apb random"]) < args.margin):
            print(f"apb is less than {args.margin} points better than random tokens")
            good = False
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    listed = lambda kind: lambda text: [kind(x) for x in text.split(";" if kind is str else ",")]  # noqa: E731
    parser.add_argument("--engine-quality", type=pathlib.Path, required=True, help="the engine_quality binary")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "tests" / "reference_model" / "gauge_checkpoint")
    parser.add_argument("--tasks", type=listed(str), help="separated by ;  khop:num_hops=4 sets a parameter")
    parser.add_argument("--strategies", type=listed(str), help="separated by ;  of: " + "; ".join(STRATEGIES))
    parser.add_argument("--lengths", type=listed(int), default=[8192, 16384, 32768])
    parser.add_argument("--hosts", type=listed(int), default=[4, 8, 16])
    parser.add_argument("--documents", type=int, default=100, help="of a cell")
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("quality_results.jsonl"))
    parser.add_argument("--fresh", action="store_true", help="forgets what stands in --results")
    parser.add_argument("--page", type=pathlib.Path, help="writes the table there; docs/benchmarks/quality.md has the marks")
    parser.add_argument("--chunk", type=int, default=10, help="documents of one start of engine_quality")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--quick", action="store_true", help="8K, 8 hosts, chains and MK3, 40 documents unless said otherwise")
    parser.add_argument("--margin", type=float, default=20)
    args = parser.parse_args()
    args.tasks = args.tasks or (["khop", "niah_multikey_3"] if args.quick else TASKS)
    args.strategies = args.strategies or (["full", "apb", "apb random", "star"] if args.quick else list(STRATEGIES))
    if args.quick:
        args.lengths, args.hosts, args.documents = [8192], [8], min(args.documents, 40)
    if args.fresh:
        args.results.unlink(missing_ok=True)
    documents, results = Documents(args.model), Results(args.results, args.model)
    for length in args.lengths:
        for task in args.tasks:
            for _, _, configuration in configurations(args):
                compute(args, documents, results, task, length, configuration)
    table = page_table(args, results)
    print(table)
    if args.page:
        write_page(args.page, table)
        plot(args, results, args.page.parent)
    return quick_verdict(args, results) if args.quick else 0


if __name__ == "__main__":
    sys.exit(main())
