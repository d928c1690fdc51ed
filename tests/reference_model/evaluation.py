"""Accuracy with exact attention during the demo model's training, on fresh documents of ../quality/tasks.py.

Answers are checked by teacher forcing: an answer is right if an expected token has the largest logit at each of its
positions. In lists, whose order is free, the first token of any item that is not yet listed is expected.
"""
import functools
import multiprocessing
import pathlib
import sys
import time

import torch
import torch.nn.functional as F

import fast_model
from make_prompt import render

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "quality"))
import tasks  # noqa: E402

CASES = {"khop k=1": ("khop", {"num_hops": 1, "blocks": 2, "cross_block_share": 0.0}), "k=2": ("khop", {"num_hops": 2}),
         "k=4": ("khop", {"num_hops": 4}), "k=8": ("khop", {"num_hops": 8}), "single": ("niah_single_2", {}),
         "MK1": ("niah_multikey_1", {}), "MK2": ("niah_multikey_2", {}), "MK3": ("niah_multikey_3", {}),
         "MV": ("niah_multivalue", {}), "MQ": ("niah_multiquery", {}), "VT": ("vt", {}), "CWE": ("cwe", {}), "FWE": ("fwe", {})}
LONGEST = {"CWE": 8192, "FWE": 8192}
DOCUMENTS = {1024: 64, 4096: 32, 16384: 16, 32768: 16}
QUESTION_TOKENS = 200  # upper bound for question and answer together


def expected(encode, answer, listed):
    """The answer's token ids, and the set of right ids at each place."""
    if not listed:
        ids = encode(answer)
        return ids, [{t} for t in ids]
    at = answer.index(" are ") + 4
    ids = encode(answer[:at])
    right, items = [{t} for t in ids], [encode(" " + x) for x in answer[at + 1:-1].split(", ")]
    for i, item in enumerate(items):
        end = encode("," if i + 1 < len(items) else ".")
        right += [{x[0] for x in items[i:]}] + [{t} for t in item[1:] + end]
        ids += item + end
    return ids, right


@functools.cache
def load_tokenizer(file):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(file)


def make_case(job):
    """(name, length, token ids, place of the answer's first token, sets of right ids)"""
    tokenizer_file, name, length, index, documents = job
    tokenizer = load_tokenizer(tokenizer_file)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    task, parameters = CASES[name]
    depth = 1.0 if task == "khop" else (index + 0.5) / documents
    made = tasks.make(task, 10 ** 7 + index, length - QUESTION_TOKENS, depth, lambda text: len(encode(text)), **parameters)
    prompt = [tokenizer.token_to_id("<|begin|>")] + encode(render(
        [{"role": "user", "content": made["document"]}, {"role": "user", "content": made["question"]}]))
    answer, right = expected(encode, made["answer"], task in ("niah_multivalue", "vt", "cwe"))
    end = tokenizer.token_to_id("<|end|>")
    return name, length, prompt + answer + [end], len(prompt), right + [{end}]


class Evaluation:
    """Evaluates the model. Worker processes make the documents during training."""

    def __init__(self, tokenizer_file, args):
        self.args, self.cases = args, {}
        self.pool = multiprocessing.get_context("fork").Pool(max(1, args.workers // 2))
        self.made = {n: self.pool.map_async(make_case, [
            (str(tokenizer_file), name, n, i, count) for name in CASES if n <= LONGEST.get(name, n) for i in range(count)],
            chunksize=4) for n, count in DOCUMENTS.items() if n <= min(args.tokens, args.longest_evaluation)}

    def batches(self, length):
        if length not in self.cases:
            self.cases[length] = self.made[length].get(timeout=100)
        cases = [c for c in self.cases[length] if len(c[2]) <= length]
        size = max(1, self.args.tokens // length)
        for i in range(0, len(cases), size):
            yield cases[i:i + size]

    @torch.no_grad()
    def report(self, model, lengths, title):
        """Prints the share of right answers, by task and length."""
        begin = time.time()
        for length in [n for n in lengths if n in self.made]:
            if begin < self.args.train_until and not self.made[length].ready():
                print(f"        documents of {length} tokens are still being made", flush=True)
                continue
            right = {}
            for cases in self.batches(length):
                ids = torch.full((len(cases), length), 5)
                for i, case in enumerate(cases):
                    ids[i, :len(case[2])] = torch.tensor(case[2])
                ids = ids.to(self.args.device)
                positions = torch.arange(length, device=ids.device)[None].expand(len(cases), -1)
                _, final = fast_model.forward(model, ids, positions, eager=True)
                for i, (name, _, tokens, first, allowed) in enumerate(cases):
                    rows = final[i * length + first - 1:i * length + len(tokens) - 1]
                    best = F.linear(model.model.norm(rows), model.model.embed_tokens.weight).argmax(-1).tolist()
                    hits = [b in a for b, a in zip(best, allowed)]
                    right.setdefault(name, []).append(all(hits))
            print(f"{time.time() - self.args.begin:6.0f}s {title}, {length} tokens: " + ", ".join(
                f"{name} {100 * sum(r) / len(r):.0f} %" for name, r in right.items()), flush=True)
        print(f"        evaluated in {time.time() - begin:.1f} s", flush=True)
