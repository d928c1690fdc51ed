"""Needle accuracy of a checkpoint, document by document: evaluate.py [--tokens 32000] [--documents 20] ...
  evaluate.py --summary FILE...   accuracy by length and depth, from files of --log

Greedy decoding is checked by teacher forcing: an answer counts if the expected token has the largest logit at each of its
positions, which is true exactly if greedy decoding gives the expected answer. Documents share nothing. With --questions Q,
each document hides Q facts at evenly spread depths, and each is asked for separately (the document is computed once): a
cheap and slightly harder estimate. The seeds start above those of training.
"""
import argparse
import collections
import json
import pathlib
import random
import time

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import generator
from make_prompt import render
from model import CONFIG, Llama

ROOT = pathlib.Path(__file__).resolve().parent


def load(path):
    model = Llama(json.loads((path / "config.json").read_text()) if path.is_dir() else CONFIG)
    if path.is_dir():
        weights = load_file(str(path / "model.safetensors"))
    else:
        weights = torch.load(path)["model"]
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval()


def keys_and_values(tap, c):
    width = c["num_key_value_heads"] * c["head_dim"]
    out = []
    for packed, _, k in tap:
        v = packed[..., -width:]
        out.append((k, v.view(*v.shape[:2], -1, c["head_dim"]).transpose(1, 2)))
    return out


@torch.no_grad()
def answers(model, encode, document, asked, dtype):
    """For each asked (name, value): whether greedy decoding gives the expected answer, and the best token ids."""
    head = [CONFIG["bos_token_id"]] + encode(f"<|user|>\n{document}<|end|>\n")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        tap, none = [], torch.zeros(1, len(head), dtype=torch.bool)
        model(torch.tensor([head]), torch.arange(len(head))[None], none, tap)
        past, right = keys_and_values(tap, CONFIG), []
        del tap
        for name, value in asked:
            question = encode(render([{"role": "user", "content": generator.question_text(name)}]))
            answer = encode(generator.answer_text(name, value)) + [CONFIG["eos_token_id"]]
            ids = torch.tensor([question + answer[:-1]])
            at = torch.arange(len(head), len(head) + ids.shape[1])[None]
            best = model(ids, at, past=past)[0, len(question) - 1:].argmax(-1).tolist()
            right.append((best == answer, best))
    return right


def summary(files):
    """Prints accuracy by length, and for each length by tenths of depth."""
    found = collections.defaultdict(list)
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            found[record["tokens"]].append((record["depth"], record["right"]))
    for tokens, results in sorted(found.items()):
        right = sum(r for _, r in results)
        print(f"{tokens} tokens: {right} of {len(results)} right ({right / len(results):.1%})")
        tenths = [[r for d, r in results if int(d * 10) == tenth] for tenth in range(10)]
        print("  by tenths of depth: " + ", ".join(f"{sum(t)}/{len(t)}" for t in tenths))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "gauge_checkpoint",
                        help="checkpoint, or training state of such a model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 4000, 16000, 32000])
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--seed", type=int, default=10 ** 6)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", default="0/1", help="I/N: every N-th document from the I-th on, for several processes")
    parser.add_argument("--log", type=pathlib.Path, help="appends a JSON line per question; documents in it are skipped")
    parser.add_argument("--summary", type=pathlib.Path, nargs="+", help="summarizes such files instead")
    args = parser.parse_args()
    if args.summary:
        return summary(args.summary)
    torch.set_num_threads(args.threads)
    model = load(args.model)
    folder = args.model if args.model.is_dir() else ROOT / "gauge_checkpoint"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    count = lambda text: len(encode(text))
    done = set()
    if args.log and args.log.exists():
        records = map(json.loads, args.log.read_text().splitlines())
        done = {(r["tokens"], r["seed"]) for r in records}
    first, step = map(int, args.part.split("/"))
    for tokens in args.tokens:
        start, right, missed = time.time(), [], []
        order = list(range(first, args.documents, step))
        random.Random(tokens).shuffle(order)  # so that an unfinished run covers all depths
        for i in order:
            if (tokens, args.seed + i) in done:
                continue
            # With one question, depths advance with the documents. With several, each document covers all depths.
            depths = [(q + (i + 0.5) / args.documents) / args.questions for q in range(args.questions)]
            document, facts = generator.make_asked(args.seed + i, tokens, depths, args.keys, count)
            for depth, (name, value), (ok, best) in zip(
                    depths, facts, answers(model, encode, document, facts, args.dtype)):
                right.append(ok)
                if not ok:
                    missed.append(round(depth, 2))
                if args.log:
                    record = {"tokens": tokens, "seed": args.seed + i, "depth": depth, "keys": args.keys, "right": ok,
                              "expected": generator.answer_text(name, value), "found": tokenizer.decode(best)}
                    with args.log.open("a") as file:
                        file.write(json.dumps(record) + "\n")
        print(f"{tokens} tokens: {sum(right)} of {len(right)} right ({sum(right) / max(1, len(right)):.1%}), "
              f"{time.time() - start:.0f} s; missed at depths {missed[:20]}", flush=True)


if __name__ == "__main__":
    main()
