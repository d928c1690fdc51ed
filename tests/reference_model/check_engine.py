#!/usr/bin/env python3
"""Asks a checkpoint in PyTorch and in the engine: check_engine.py --engine-quality BINARY [--model DIR] [--tokens 600].

Goal: the engine reads the files of export.py as PyTorch does, also those of an untrained model. Method: both generate
greedily in float32, and must give the same tokens.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch

from evaluate import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "quality"))
import table  # noqa: E402


@torch.no_grad()
def greedy(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        last = torch.zeros(1, len(ids), dtype=torch.bool)
        last[0, -1] = True
        ids.append(int(model(torch.tensor([ids]), torch.arange(len(ids))[None], last).argmax()))
    return ids[len(prompt):]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine-quality", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "tests" / "reference_model" / "gauge_checkpoint")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--answer-tokens", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    documents, model, same = table.Documents(args.model), load(args.model), 0
    names = ["niah_single_2", "niah_multikey_1", "khop:num_hops=4"]
    made = [documents.prompt(name, args.tokens, i, len(names))[1] for i, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        prompts, answers = pathlib.Path(folder, "prompts"), pathlib.Path(folder, "answers")
        prompts.write_text("".join(
            json.dumps({**p, "expected": p["expected"][:args.answer_tokens]}) + "\n" for p in made))
        subprocess.run([args.engine_quality, "--model", args.model, "--prompts", prompts, "--answers", answers, "--json",
                        pathlib.Path(folder, "sums"), "--configurations", "full", "--threads", "1", "--float32"], check=True)
        found = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    for name, prompt, engine in zip(names, made, found):
        torchs = greedy(model, prompt["tokens"], len(engine))
        same += engine == torchs
        print(f"{name}: engine {documents.text(engine)!r}, PyTorch {documents.text(torchs)!r}", flush=True)
    print(f"{same} of {len(names)} the same")
    return 0 if same == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
