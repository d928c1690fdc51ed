#!/usr/bin/env python3
"""How far approximate strategies are from exact attention on real text, with a real model; resumable.

Documents are texts that any Debian machine has (/usr/share/common-licenses, /usr/share/doc), each cut to 6,000 to 7,500
tokens, with a question about it. engine_fidelity computes the exact, greedy answer and compares, token by token of
question and answer, the distribution of the next token under each strategy with the exact one. The table is written
between two marks of --page. tests/bench/fidelity.sh calls this.

Which files there are differs between machines, so numbers of two machines compare strategies, not documents.
"""
import argparse
import gzip
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import table

ROOTS = ["/usr/share/common-licenses", "/usr/share/doc"]
NAMES = ("changelog", "readme", "news", "copyright", "faq", "history", "notes", "tutorial", "manual")
CONFIGURATIONS = {
    "apb query-aware, 4 hosts": "apb:query_aware:4", "apb query-aware, 8 hosts": "apb:query_aware:8",
    "apb random, 8 hosts": "apb:random:8", "apb without anchor, 8 hosts": "apb:query_aware:8:anchor=0",
    "star, 4 hosts": "star::4", "star, 8 hosts": "star::8"}
QUESTIONS = ["What is this text about? Answer in three sentences.", "Which of its points matter most to a user?",
             "What was changed, added or forbidden?", "How does the text begin, and how does it end?",
             "List the names that the text mentions."]
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
LEAST_CHARACTERS = 33_000
BEGIN, END = "<!-- fidelity: written by tests/quality/fidelity.py -->", "<!-- end of fidelity -->"


def read_text(file):
    """The file's text, unpacked; None if it is not UTF-8 text."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return data.decode()
    except (OSError, UnicodeDecodeError, EOFError):
        return None


def find_texts(count):
    """`count` long texts, each once, in an order that depends on their names only: licences, then others of one folder
    each, Debian's own changelogs, which are many and alike, last."""
    files = [f for root in ROOTS for f in pathlib.Path(root).rglob("*")
             if f.is_file() and not f.is_symlink() and (root == ROOTS[0] or f.name.lower().startswith(NAMES))]
    rank = lambda f: (0 if str(f).startswith(ROOTS[0]) else 2 if f.name.startswith("changelog.Debian") else 1,  # noqa: E731
                      hashlib.sha256(str(f).encode()).digest())
    seen, texts = set(), []
    for file in sorted(files, key=rank):
        if len(texts) == count:
            break
        folder = file if str(file).startswith(ROOTS[0]) else file.parent
        text = read_text(file) if folder not in seen else None
        if text and len(text) >= LEAST_CHARACTERS and text[:LEAST_CHARACTERS] not in seen:
            seen |= {folder, text[:LEAST_CHARACTERS]}
            texts.append((str(file), text))
    return texts


class Prompts:
    """Prompts in SmolLM2's chat format, split as the server splits a chat of one user message."""

    def __init__(self, model):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def make(self, index, text):
        length = 6000 + 1500 * int(hashlib.sha256(str(index).encode()).hexdigest()[:6], 16) // 0xFFFFFF
        front, question = self.encode(SYSTEM), QUESTIONS[index % len(QUESTIONS)]
        document = front + self.encode(text[:LEAST_CHARACTERS])[:length - len(front)]
        return {"tokens": document + self.encode("\n\n" + question + ANSWER), "query_begin": len(document),
                "query_insert_position": len(front), "embedded_query": self.encode(question)}


class Results:
    """Lines of engine_fidelity by (prompt, configuration), kept in a file."""

    def __init__(self, file, model):
        self.file, self.lines = file, {}
        self.model = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:16]
        for line in map(json.loads, file.read_text().splitlines() if file.exists() else []):
            if line["model"] == self.model:
                self.lines[line["prompt"], line["configuration"]] = line

    def add(self, prompt, line):
        line |= {"model": self.model, "prompt": prompt}
        self.lines[prompt, line["configuration"]] = line
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")


def compute(args, prompt, missing, results):
    key = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "prompts.jsonl")
        file.write_text(json.dumps(prompt) + "\n")
        command = [args.engine_fidelity, "--model", args.model, "--prompts", file, "--threads", str(args.threads),
                   "--answer-tokens", str(args.answer_tokens), "--configurations", ",".join(missing)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                results.add(key, json.loads(line))
        if process.returncode:
            sys.exit(f"engine_fidelity failed ({process.returncode})")


def mean_and_error(values):
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))


def row_of(name, lines):
    """A row of the table: means over prompts, each with its standard error."""
    cells = [name, str(len(lines))]
    for part in ("question", "answer"):
        kl, error = mean_and_error([line[part]["kl"] / line[part]["tokens"] for line in lines])
        same, same_error = mean_and_error([100 * line[part]["same_top"] / line[part]["tokens"] for line in lines])
        cells += [f"{kl:.3f} ± {error:.3f}", f"{same:.1f} ± {same_error:.1f} %"]
    for part in ("question", "answer"):
        tokens = sum(line[part]["tokens"] for line in lines)
        exact, approximate = (math.exp(sum(line[part][n] for line in lines) / tokens) for n in ("exact_nats", "nats"))
        cells.append(f"{approximate:.2f} ({exact:.2f})")
    return "| " + " | ".join(cells) + " |"


def page_table(results):
    head = ["strategy", "prompts", "KL, question", "same token, question", "KL, answer", "same token, answer",
            "perplexity, question (exact)", "perplexity, answer (exact)"]
    rows = []
    for name, configuration in CONFIGURATIONS.items():
        lines = [line for (_, c), line in results.lines.items() if c == configuration]
        if lines:
            rows.append(row_of(name, lines))
    return "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n" + "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine-fidelity", type=pathlib.Path, required=True, help="the engine_fidelity binary")
    parser.add_argument("--model", type=pathlib.Path, default=table.ROOT / "build" / "real_model" / "smollm2")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--strategies", help="separated by ;  of: " + "; ".join(CONFIGURATIONS))
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("fidelity_results.jsonl"))
    parser.add_argument("--page", type=pathlib.Path, help="writes the table there; docs/benchmarks/quality.md has the marks")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    chosen = args.strategies.split(";") if args.strategies else list(CONFIGURATIONS)
    texts, prompts, results = find_texts(args.prompts), Prompts(args.model), Results(args.results, args.model)
    if len(texts) < args.prompts:
        print(f"only {len(texts)} texts of {LEAST_CHARACTERS} characters are in {' and '.join(ROOTS)}", file=sys.stderr)
    for index, (name, text) in enumerate(texts):
        prompt = prompts.make(index, text)
        key = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]
        missing = [c for c in (CONFIGURATIONS[s] for s in chosen) if (key, c) not in results.lines]
        if missing:
            print(f"{index + 1} of {len(texts)}: {name}, {prompt['query_begin']} tokens", flush=True)
            compute(args, prompt, missing, results)
    text = page_table(results)
    print(text)
    if args.page:
        table.write_page(args.page, text, BEGIN, END)


if __name__ == "__main__":
    main()
