#!/usr/bin/env python3
"""Accuracy of the strategies on the demo model: makes documents with hidden facts, runs engine_quality on them and
writes docs/benchmarks/quality.md. Needs the `tokenizers` package; tests/bench/quality.sh calls it.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "reference_model"))
import generator  # noqa: E402
from make_prompt import render  # noqa: E402

VARIANTS = {  # name in the table -> strategy:compressor
    "APB, retaining heads": "apb:retaining_heads",
    "APB, query-aware (training-free)": "apb:query_aware",
    "APB, random tokens": "apb:random",
    "Star": "star:",
}
AGAIN = "apb:retaining_heads:{}:again"


def make_prompts(args, encode, bos, eos):
    """One line per document, split as the server splits a chat of two user messages."""
    for length in args.lengths:
        for i in range(args.documents):
            depth = (i + 0.5) / args.documents
            sample = generator.make_sample(args.seed + i, length - 40, depth, args.keys, lambda t: len(encode(t)))
            document = [bos] + encode("<|user|>\n" + sample["document"] + "<|end|>\n")
            query = encode(render([{"role": "user", "content": sample["question"]}]))
            names = re.findall(r"The secret word of (\w+ \w+) is", sample["document"])
            others = [generator.question_text(name) for name in names if name not in sample["question"]]
            before = others[0] if others else sample["question"]
            yield {"length": length, "depth": depth, "tokens": document + query, "query_begin": len(document),
                   "query_insert_position": 1 + len(encode("<|user|>\n")),
                   "embedded_query": encode(sample["question"]), "expected": encode(sample["answer"]) + [eos],
                   "query_before": encode(render([{"role": "user", "content": before}])),
                   "embedded_query_before": encode(before)}


def added_up(results):
    """One entry for each configuration and length, of all its documents."""
    sums = {}
    for r in results:
        key = r["strategy"], r["compressor"], r["hosts"], r["again"], r["length"]
        s = sums.setdefault(key, {**r, "documents": 0, "correct": 0, "mean_ttft_seconds": 0})
        documents = s["documents"] + r["documents"]
        s["mean_ttft_seconds"] = (s["mean_ttft_seconds"] * s["documents"]
                                  + r["mean_ttft_seconds"] * r["documents"]) / documents
        s["documents"], s["correct"] = documents, s["correct"] + r["correct"]
        s["accuracy"] = s["correct"] / documents
    return list(sums.values())


def percent(result):
    return f"{100 * result['accuracy']:.0f} %" if result else "–"


def table(results, args):
    found = {(r["strategy"] + ":" + r["compressor"], r["hosts"], r["length"]): r for r in results if not r["again"]}
    again = {(r["hosts"], r["length"]): r for r in results if r["again"]}
    names = []
    for n in args.lengths:
        documents = {r["documents"] for r in results if r["length"] == n}
        names.append((f"{n // 1024}K" if n % 1024 == 0 else f"{n:,}") + f", {'–'.join(map(str, sorted(documents)))} documents")
    lines = ["| strategy | hosts | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    lines.append("| full (exact) | 1 | " + " | ".join(percent(found.get(("full:", 1, n))) for n in args.lengths) + " |")
    for name, key in VARIANTS.items():
        for hosts in args.hosts:
            if any((key, hosts, n) in found for n in args.lengths):
                cells = " | ".join(percent(found.get((key, hosts, n))) for n in args.lengths)
                lines.append(f"| {name} | {hosts} | {cells} |")
    for hosts in args.hosts:
        if any((hosts, n) in again for n in args.lengths):
            cells = " | ".join(percent(again.get((hosts, n))) for n in args.lengths)
            lines.append(f"| APB, retaining heads, second question | {hosts} | {cells} |")
    return "\n".join(lines)


PAGE = """# Accuracy of the strategies

Share of documents, with {keys} hidden facts each and the asked one at depths spread evenly, that the demo model answers
exactly (every token of the answer, greedy). Default anchor and passing lengths
(docs/algorithms.md). `random tokens` passes on randomly chosen tokens, as an ablation; Star shows the first block to
everyone and passes nothing on. One process plays all hosts; results do not depend on how hosts are spread over ranks.

In the rows `second question` the document was computed for another question, which stood in the anchor, and its KV was
reused (docs/algorithms.md, "What is reused").

Look-up of one fact does not need the passing blocks: the query pass and decode attend to the cached keys of every host,
so a fact that lies within one block is found whatever was passed on. What this table shows is how much the
approximation of the prefill costs, not how good the choice of tokens is.

{table}

Made by `tests/bench/quality.sh --keys {keys}`. A share p of n documents has a standard error of √(p (1 − p) / n): 2.5
points for 97.5 % of 40.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine-quality", type=pathlib.Path, required=True, help="the engine_quality binary")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "tests" / "reference_model" / "checkpoint")
    parser.add_argument("--lengths", type=lambda t: [int(x) for x in t.split(",")], default=[8192, 16384, 32768])
    parser.add_argument("--hosts", type=lambda t: [int(x) for x in t.split(",")], default=[4, 8])
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--seed", type=int, default=3 * 10 ** 6)
    parser.add_argument("--configurations", help="only these, as engine_quality takes them")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="writes the numbers there too")
    parser.add_argument("--add", type=pathlib.Path, nargs="*", default=[],
                        help="JSON of earlier runs: other lengths, or other documents (--seed); --documents 0: only these")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "benchmarks" / "quality.md")
    args = parser.parse_args()
    try:
        from tokenizers import Tokenizer
    except ImportError:
        sys.exit("quality.py: needs the Python package `tokenizers` (tests/requirements.txt)")
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    config = json.loads((args.model / "config.json").read_text())
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    variants = [v for v in VARIANTS.values()
                if v != "apb:retaining_heads" or (args.model / "retaining_heads.safetensors").exists()]
    configurations = ["full"] + [f"{v}:{h}" for v in variants for h in args.hosts]
    if "apb:retaining_heads" in variants and args.keys > 1:
        configurations += [AGAIN.format(h) for h in args.hosts]
    if args.configurations:
        configurations = args.configurations.split(",")
    with tempfile.TemporaryDirectory() as folder:
        prompts, output = pathlib.Path(folder, "prompts.jsonl"), pathlib.Path(folder, "results.json")
        with prompts.open("w") as file:
            for prompt in make_prompts(args, encode, config["bos_token_id"], config["eos_token_id"]):
                file.write(json.dumps(prompt) + "\n")
        subprocess.run([args.engine_quality, "--model", args.model, "--prompts", prompts, "--json", output,
                        "--threads", str(args.threads), "--configurations", ",".join(configurations)], check=True)
        results = json.loads(output.read_text())
    for earlier in args.add:
        results += json.loads(earlier.read_text())
    results = added_up(results)
    args.lengths = sorted({r["length"] for r in results})
    args.hosts = sorted({r["hosts"] for r in results if r["strategy"] != "full"})
    text = table(results, args)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_text(PAGE.format(keys=args.keys, table=text))


if __name__ == "__main__":
    main()
