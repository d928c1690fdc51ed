"""Trains the retaining heads of a checkpoint: train_retaining_heads.py [--model DIR] [--steps N] [--query-blind].

The recipe is that of Locret as APB uses it. Per layer a small MLP, silu between fc1 and fc2 and no bias, maps the
un-rotated q, k, v of a document row to one score per KV head. Its label is the largest attention logit (scaled by
1 / sqrt(d), after the rotation) that any answer row gives that row, maximised over the query heads of the group too.
Loss: Smooth-L1, and 0.0025 times the squared difference between neighbouring predictions. The model stays frozen.

Heads are trained query-aware by default: in most samples the question stands at the front of the document, as in an
anchor block, so that the rows "know" what will be asked. In the other samples (the first host has no anchor) the
question comes only at the end. Labels come from the answer's rows only: with the question's rows among them fewer rows
of the asked fact are found.
"""
import argparse
import hashlib
import math
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

import generator
from evaluate import load
from make_prompt import render
from model import CONFIG

ROOT = pathlib.Path(__file__).resolve().parent


class Heads(nn.Module):
    def __init__(self, c, width):
        super().__init__()
        into = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
        layers = range(c["num_hidden_layers"])
        self.fc1 = nn.ModuleList(nn.Linear(into, width, bias=False) for _ in layers)
        self.fc2 = nn.ModuleList(nn.Linear(width, c["num_key_value_heads"], bias=False) for _ in layers)

    def forward(self, layer, x):
        return self.fc2[layer](F.silu(self.fc1[layer](x)))


def sample(rng, encode, shown_share, lengths):
    """ids, (begin, end) of the document's rows, first row whose attention is the label."""
    tokens = int(math.exp(rng.uniform(*map(math.log, lengths))))
    facts = generator.draw_facts(rng, rng.randint(1, 16))
    document = generator.make_document(rng, int(tokens / generator.TOKENS_PER_SENTENCE), facts,
                                       [rng.random() for _ in facts])
    name, value = facts[0]
    question = generator.question_text(name)
    shown = rng.choice(["", "<|user|>\n"]) + question if rng.random() < shown_share else ""
    head = [CONFIG["bos_token_id"]] + encode("<|user|>\n" + shown)
    body = encode(document)
    tail = encode("<|end|>\n" + render([{"role": "user", "content": question}]))
    answer = encode(generator.answer_text(name, value)) + [CONFIG["eos_token_id"]]
    document_end = len(head) + len(body)
    return head + body + tail + answer, (len(head), document_end), len(tail)


def labels(q, k, document, first):
    """q [n_q, t, d], k [n_kv, t, d] -> [document rows, n_kv]."""
    group = q.shape[0] // k.shape[0]
    rows = q[:, first:].reshape(k.shape[0], -1, q.shape[-1])  # of the query heads that share a KV head
    assert rows.shape[1] == group * (q.shape[1] - first)
    keys = k[:, document[0]:document[1]]
    return (keys @ rows.transpose(1, 2) / math.sqrt(q.shape[-1])).amax(-1).T


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "checkpoint")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "checkpoint" / "retaining_heads.safetensors")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--query-blind", action="store_true", help="the question is never in front")
    args = parser.parse_args()
    torch.manual_seed(2)
    torch.set_num_threads(args.threads)
    model = load(args.model)
    tokenizer = Tokenizer.from_file(str(ROOT / "checkpoint" / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    rng, heads = random.Random(77), Heads(CONFIG, args.width)
    opt = torch.optim.AdamW(heads.parameters(), lr=5e-4, betas=(0.9, 0.95))
    start, recent = time.time(), []
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / (args.steps / 10))
        for group in opt.param_groups:
            group["lr"] = 2e-3 * warm * max(0.02, 1 - step / args.steps)
        ids, document, tail = sample(rng, encode, 0.0 if args.query_blind else 0.8, (300, 4000))
        first = document[1] + tail
        tap = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            t = torch.tensor([ids])
            at = torch.arange(len(ids))[None]
            if rng.random() < 0.7:  # any stretch of a long document, as a host has it
                at[:, document[0]:] += rng.randrange(32000)
            model(t, at, torch.zeros_like(t, dtype=torch.bool), tap)
        loss, share = 0.0, []
        for layer, (x, q, k) in enumerate(tap):
            score = heads(layer, x[0, document[0]:document[1]].float())
            label = labels(q[0].float(), k[0].float(), document, first)
            loss = loss + F.smooth_l1_loss(score, label) + 0.0025 * (score[1:] - score[:-1]).pow(2).mean()
            kept = min(32, len(score) // 8)  # how many of the best rows by label are among twice as many by score
            best, found = label.topk(kept, 0).indices, score.detach().topk(2 * kept, 0).indices
            share.append((best[:, None] == found[None]).any(1).float().mean().item())
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(heads.parameters(), 0.5)
        opt.step()
        recent.append([loss.item()] + share)
        if (step + 1) % 50 == 0:
            mean = [sum(v) / len(recent) for v in zip(*recent)]
            print(f"{time.time() - start:6.0f}s step {step + 1} loss {mean[0]:.4f} best rows found, by layer "
                  + " ".join(f"{s:.2f}" for s in mean[1:]), flush=True)
            recent = []
    weights = {f"model.layers.{i}.self_attn.{fc}.weight": getattr(heads, fc)[i].weight.detach().to(torch.bfloat16)
               for i in range(CONFIG["num_hidden_layers"]) for fc in ("fc1", "fc2")}
    base = (args.model / "model.safetensors").read_bytes()
    save_file(weights, str(args.out), metadata={
        "format": "pt", "base_model": "reference", "base_model_sha256": hashlib.sha256(base).hexdigest(),
        "query_aware": str(not args.query_blind).lower(), "activation": "silu"})


if __name__ == "__main__":
    main()
