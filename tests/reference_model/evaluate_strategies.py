"""The accuracy of APB and Star Attention, simulated in PyTorch independently of the engine.

evaluate_strategies.py [--tokens 16000] [--hosts 8] [--anchor 0] [--passing 0] [--documents 10] [--strategies ...]

Strategies: full, apb (the retaining heads choose the passing blocks), random (passing blocks at random), none (no passing
blocks), star (the anchor is the first shard, without the question). 0 means a quarter of the shard for the anchor, and an
eighth for the passing block.

The query pass is exact in all of them, so questions about one fact are answered well even without passing blocks. The
quality of passing blocks shows better in the share of the asked fact's rows that is passed on, which is printed too (mean
over layers and KV heads, over documents whose fact is not in the last shard).
"""
import argparse
import pathlib
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import generator
from evaluate import ROOT, load
from make_prompt import render
from model import CONFIG, rope, rotate

NQ, NKV, D = (CONFIG[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))


def project(layer, x, positions):
    """q, k, v before RoPE side by side, then q [n_q, t, d] and k [n_kv, t, d] after RoPE, and v [n_kv, t, d]."""
    a, y = layer.self_attn, layer.input_layernorm(x)
    packed = torch.cat([a.q_proj(y), a.k_proj(y), a.v_proj(y)], -1)
    q, k, v = (p.view(len(x), -1, D).transpose(0, 1) for p in packed.split([NQ * D, NKV * D, NKV * D], -1))
    cos, sin = rope(positions, D, CONFIG["rope_theta"])
    return packed, rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v


def attend(q, segments):
    """Attention of q over segments (k, v, causal?). A causal segment comes last and has as many rows as q."""
    k, v = (torch.cat([s[i] for s in segments], 1).repeat_interleave(NQ // NKV, 0) for i in (0, 1))
    mask, alone = None, len(segments) == 1 and segments[0][2]
    if segments[-1][2] and not alone:
        t, past = q.shape[1], k.shape[1] - q.shape[1]
        mask = torch.ones(t, past + t, dtype=torch.bool).tril(past)
    return F.scaled_dot_product_attention(q[None], k[None], v[None], mask, is_causal=alone)[0].transpose(0, 1).reshape(q.shape[1], -1)


def finish(layer, x, attended):
    x = x + layer.self_attn.o_proj(attended)
    return x + layer.mlp(layer.post_attention_layernorm(x))


def prefill(model, document, query, hosts, anchor, passing, strategy, heads, fact):
    """K and V of all document rows by layer, as `hosts` hosts compute them, and by layer the share of the rows in `fact`
    (begin, end) that is passed on; empty if none can be."""
    n = len(document)
    block = -(-n // hosts)
    if strategy == "star":
        front, passing = document[:block], 0
    else:
        front = (document[:3] + query + document[3:])[:anchor]  # <|begin|><|user|>\n come before the query
        passing = 0 if strategy == "none" else passing
    embed = model.model.embed_tokens
    xa, pa = embed(torch.tensor(front)), torch.arange(len(front))
    parts = [(document[h * block:(h + 1) * block], torch.arange(h * block, min((h + 1) * block, n))) for h in range(hosts)]
    xs, cache, passed = [embed(torch.tensor(t)) for t, _ in parts], [], []
    own = len(front) - (0 if strategy == "star" else len(query))  # number of document rows in the anchor
    for i, layer in enumerate(model.model.layers):
        _, qa, ka, va = project(layer, xa, pa)
        kept, rows = [], []
        for h, (x, (_, positions)) in enumerate(zip(xs, parts)):
            packed, q, k, v = project(layer, x, positions)
            segments = ([(ka, va, False)] if h else []) + kept + [(k, v, True)]
            rows.append((k, v))
            if passing and h < hosts - 1:
                if strategy == "random":
                    score = torch.rand(len(x), NKV)
                else:
                    fc1, fc2 = (heads[f"model.layers.{i}.self_attn.{f}.weight"] for f in ("fc1", "fc2"))
                    score = F.silu(packed.float() @ fc1.T) @ fc2.T
                    score = F.max_pool1d(score.T[None], 5, 1, 2)[0].T
                if h == 0:
                    score[:own] = -1e30
                best = score.topk(min(passing, len(score)), 0).indices.T
                if fact[0] // block == h == (fact[1] - 1) // block:
                    rows_of_fact = torch.arange(fact[0], fact[1]) - h * block
                    passed.append((best[..., None] == rows_of_fact).any(1).float().mean().item())
                best = best[..., None].expand(-1, -1, D)
                kept = kept + [(k.gather(1, best), v.gather(1, best), False)]
            xs[h] = finish(layer, x, attend(q, segments))
        xa = finish(layer, xa, attend(qa, [(ka, va, True)]))
        cache.append(tuple(torch.cat([r[j] for r in rows], 1)[None] for j in (0, 1)))
    return cache, passed


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "gauge_checkpoint")
    parser.add_argument("--heads", type=pathlib.Path, default=ROOT / "gauge_checkpoint" / "retaining_heads.safetensors")
    parser.add_argument("--strategies", nargs="+", default=["full", "apb", "random", "none", "star"])
    parser.add_argument("--tokens", type=int, default=16000)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--anchor", type=int, default=0)
    parser.add_argument("--passing", type=int, default=0)
    parser.add_argument("--keys", type=int, default=4)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model)
    heads = {k: v.float() for k, v in load_file(str(args.heads)).items()} if "apb" in args.strategies else {}
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    anchor, passing = args.anchor or args.tokens // args.hosts // 4, args.passing or args.tokens // args.hosts // 8
    start, right, passed = time.time(), dict.fromkeys(args.strategies, 0), {s: [] for s in args.strategies}
    for i in range(args.documents):
        depth = (i + 0.5) / args.documents
        text, ((name, value),) = generator.make_asked(2 * 10 ** 6 + i, args.tokens, [depth], args.keys,
                                                      lambda t: len(encode(t)))
        question = generator.question_text(name)
        document = [CONFIG["bos_token_id"]] + encode(f"<|user|>\n{text}<|end|>\n")
        before = 1 + len(encode("<|user|>\n" + text[:text.index(generator.fact_sentence(name, value))]))
        fact = (before, before + len(encode(" " + generator.fact_sentence(name, value))))
        query = encode(render([{"role": "user", "content": question}]))
        answer = encode(generator.answer_text(name, value)) + [CONFIG["eos_token_id"]]
        ids = torch.tensor([query + answer[:-1]])
        at = torch.arange(len(document), len(document) + ids.shape[1])[None]
        for strategy in args.strategies:
            hosts = 1 if strategy == "full" else args.hosts
            embedded = query[:query.index(CONFIG["eos_token_id"])]
            with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
                past, shares = prefill(model, document, embedded, hosts, anchor, passing, strategy, heads, fact)
                best = model(ids, at, past=past)[0, len(query) - 1:].argmax(-1).tolist()
            right[strategy] += best == answer
            if shares:
                passed[strategy].append(shares)
        print(f"{i + 1} documents of {args.tokens} tokens, {args.keys} keys, {args.hosts} hosts, anchor {anchor}, "
              f"passing {passing}, {time.time() - start:.0f} s: "
              + ", ".join(f"{s} {r}" for s, r in right.items()), flush=True)
    for strategy, shares in passed.items():
        if shares:
            by_layer = [sum(x) / len(x) for x in zip(*shares)]
            print(f"rows of the asked fact that {strategy} passes on, by layer: "
                  + " ".join(f"{x:.0%}" for x in by_layer) + f"; mean {sum(by_layer) / len(by_layer):.0%}", flush=True)


if __name__ == "__main__":
    main()
