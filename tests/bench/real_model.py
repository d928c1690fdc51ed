#!/usr/bin/env python3
"""Speed of the engine on SmolLM2-135M-Instruct, and of llama.cpp if LLAMA_BENCH is set, as a table (and JSON).

  tests/real_model/prepare.sh && cmake --build build/release --target engine_bench && tests/bench/real_model.py
  LLAMA_BENCH=/path/to/llama-bench PEER_MODELS=f16=smollm2-f16.gguf,Q4_1=smollm2-q4_1.gguf tests/bench/real_model.py

Method: one rank with --threads threads. Each round measures all our cases and all of the peer's in turn, so that both
see the machine in the same state; a figure is the best of the rounds. `prefill` is prompt tokens / time to the first
token's logits. `decode` is the mean over --decode-tokens tokens, with an empty cache and after the longest prompt.
Prompts leave room for these tokens in the model's 8,192. Python's standard library only.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


class OurEngine:
    """engine_bench with one strategy. The figures that it measures have the names of the table."""

    def __init__(self, args, name, flags, strategy="full"):
        self.name = f"{name} {strategy}" if strategy != "full" else name
        self._flags, self._strategy, self._args = flags, strategy, args

    def lengths(self):
        return self._args.lengths if self._strategy == "full" else self._args.lengths[-1:]

    def measure(self, length):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "result.json")
            run(["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "1", self._args.engine_bench,
                 "--model", self._args.model, "--strategies", self._strategy, "--lengths", length,
                 "--virtual-hosts", self._args.virtual_hosts, "--threads", self._args.threads,
                 "--decode-tokens", self._args.decode_tokens, "--json", path, *self._flags],
                {"OMPI_MCA_btl": "self,vader,tcp"})
            result = json.loads(path.read_text())["results"][0]
        return {f"prefill {length}": result["prefill_tokens_per_second"],
                f"decode {length}": result["decode_tokens_per_second"],
                "decode empty": result["empty_cache_decode_tokens_per_second"]}


class Peer:
    """llama-bench with one GGUF file."""

    def __init__(self, args, name, model):
        self.name = f"peer {name}"
        self._model, self._args = model, args

    def lengths(self):
        return self._args.lengths

    def measure(self, length):
        count = self._args.decode_tokens
        wanted = ["-p", length, "-n", count] + (["-gp", f"{length},{count}"] if length == self._args.lengths[-1] else [])
        text = run([os.environ["LLAMA_BENCH"], "-m", self._model, "-t", self._args.threads, "-fa", 1, "-r", 1,
                    "-o", "json", *wanted], {})
        found = {}
        for row in json.loads(text[text.index("["):]):
            if row["n_gen"] == 0:
                found[f"prefill {row['n_prompt']}"] = row["avg_ts"]
            else:
                found[f"decode {row['n_prompt'] or 'empty'}"] = row["avg_ts"]
        return found


def run(command, environment):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def subjects(args):
    flags = {"bf16": []} | {name: ["--quantize", name] for name in args.quantize.split(",") if name}
    ours = [OurEngine(args, name, words) for name, words in flags.items()]
    ours.append(OurEngine(args, "bf16", [], "apb"))
    peers = [Peer(args, *pair.split("=", 1)) for pair in os.environ.get("PEER_MODELS", "").split(",") if pair]
    return ours + (peers if "LLAMA_BENCH" in os.environ else [])


def measure_all(args, chosen):
    """Tokens per second, the best of the rounds, by name of the subject and name of the figure."""
    best = {subject.name: {} for subject in chosen}
    for number in range(args.rounds):
        for length in args.lengths:
            for subject in chosen:
                if length in subject.lengths():
                    found = subject.measure(length)
                    rates = ", ".join(f"{figure} {rate:.1f}" for figure, rate in found.items())
                    print(f"round {number + 1}, {subject.name}: {rates}", file=sys.stderr, flush=True)
                    for figure, rate in found.items():
                        best[subject.name][figure] = max(rate, best[subject.name].get(figure, 0))
    return best


def print_table(args, best):
    figures = [f"prefill {length}" for length in args.lengths] + ["decode empty", f"decode {args.lengths[-1]}"]
    print("| tokens/s | " + " | ".join(figures) + " |\n|---|" + "---|" * len(figures))
    for name, row in best.items():
        print(f"| {name} | " + " | ".join(f"{row[f]:.1f}" if f in row else "" for f in figures) + " |")
    for peer in (name for name in best if name.startswith("peer ")):
        for name in (name for name in best if not name.startswith("peer ")):
            ratios = [f"{best[name][f] / best[peer][f]:.2f}" if f in best[name] and best[peer].get(f) else "" for f in figures]
            print(f"| {name} / {peer} | " + " | ".join(ratios) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "build/real_model/smollm2", help="a checkpoint's folder")
    parser.add_argument("--engine-bench", type=pathlib.Path, default=ROOT / "build/release/tests/bench/engine_bench")
    parser.add_argument("--lengths", type=lambda text: [int(x) for x in text.split(",")], default=[512, 2048, 8128],
                        help="prompt tokens; APB and decoding behind a prompt are measured at the last one")
    parser.add_argument("--quantize", default="", help="also with weights of these kinds: int8,int4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--virtual-hosts", type=int, default=8, help="of APB")
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    for path, what in ((args.model, "tests/real_model/prepare.sh makes it"),
                       (args.engine_bench, "cmake --build build/release --target engine_bench makes it")):
        if not path.exists():
            sys.exit(f"real_model.py: {path} is not there; {what}")
    best = measure_all(args, subjects(args))
    print_table(args, best)
    if args.json:
        args.json.write_text(json.dumps({"benchmark": "real_model", "threads": args.threads, "tokens_per_second": best}, indent=1))


if __name__ == "__main__":
    main()
