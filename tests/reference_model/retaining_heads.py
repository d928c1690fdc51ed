"""Trains the demo model's retaining heads by Locret's recipe, with labels that suit passing blocks.

In each layer a small MLP (silu between fc1 and fc2, no biases) maps q, k, v of a document row before RoPE to one score per
KV head. The label of a row is the largest attention logit (scaled by 1 / sqrt(d), after RoPE) that an asking row at least
APART rows after it gives it, maximised over the group's query heads too. Asking rows are the rows of answers and, unlike in
Locret, the last rows of sentences with facts, because these rows read passing blocks in a prefill. The loss is Smooth-L1,
plus 0.0025 times the squared difference between neighbouring predictions. The model's weights do not change.
"""
import math
import time

import torch
import torch.nn.functional as F
from torch import nn

import fast_model
from export import export_heads

APART = 256
ASKING = 256  # upper bound for the asking rows of a document
WIDTH = 128
TOKENS = 32768  # tokens of a training step


class Heads(nn.Module):
    def __init__(self, c, width=WIDTH):
        super().__init__()
        into = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
        layers = range(c["num_hidden_layers"])
        self.fc1 = nn.ModuleList(nn.Linear(into, width, bias=False) for _ in layers)
        self.fc2 = nn.ModuleList(nn.Linear(width, c["num_key_value_heads"], bias=False) for _ in layers)

    def forward(self, layer, x):
        return self.fc2[layer](F.silu(self.fc1[layer](x)))


def packed(layer, x):
    """q, k, v of flat rows before RoPE, side by side."""
    a = layer.self_attn
    y = fast_model.normalized(x, layer.input_layernorm.weight)
    return torch.cat([y @ w.weight.to(y.dtype).T for w in (a.q_proj, a.k_proj, a.v_proj)], -1).float()


def labels(q, k, asking, nkv):
    """The labels [t, nkv] from q, k [t, heads, d], and a mask of the rows that have a label."""
    t, heads, d = k.shape
    logits = torch.einsum("rhd,thd->rth", q[asking].float(), k.float()) / math.sqrt(d)
    far = asking[:, None] - torch.arange(t, device=k.device) >= APART
    logits = logits.masked_fill(~far[..., None], -1e30).amax(0)
    return logits.view(t, nkv, heads // nkv).amax(-1), far.any(0)


def asking_rows(marks, known, row, length):
    """The asking rows of a sequence: some rows of answers, and some last rows of facts."""
    answers = (marks[row] > 0).nonzero()[:, 0] - 1
    facts = known[known[:, 0] // length == row][:, 0] - row * length
    some = [x[torch.randperm(len(x), device=x.device)[:ASKING // 2]] for x in (answers, facts)]
    return torch.cat(some)


def heads_loss(model, heads, batch):
    ids, positions, marks, known = batch
    size, length = ids.shape
    nkv, tap = model.c["num_key_value_heads"], []
    with torch.no_grad():
        fast_model.forward(model, ids, positions, tap, eager=True)
    loss, found = 0.0, []
    asking = [asking_rows(marks, known, row, length) for row in range(size)]
    for index, (x, q, k) in enumerate(tap):
        with torch.no_grad():
            given = packed(model.model.layers[index], x)
        scores = heads(index, given).view(size, length, nkv)
        share = []
        for row in range(size):
            part = slice(row * length, (row + 1) * length)
            with torch.no_grad():
                label, there = labels(q[part], k[part], asking[row], nkv)
            label, score = label[there], scores[row][there]
            loss = loss + (F.smooth_l1_loss(score, label) + 0.0025 * (score[1:] - score[:-1]).pow(2).mean()) / size
            # The share of the best 32nd of rows by label that is among the best eighth by score.
            kept = max(1, len(score) // 32)
            best, chosen = label.topk(kept, 0).indices, score.detach().topk(len(score) // 8 + 1, 0).indices
            hit = torch.zeros_like(score, dtype=torch.bool).scatter_(0, chosen, True)
            share.append(hit.gather(0, best).float().mean())
        found.append(torch.stack(share).mean())
    return loss, torch.stack(found)


def train_heads(model, source, level, args):
    """Trains for args.heads_seconds and exports the heads beside the model."""
    heads = Heads(model.c).to(args.device)
    opt = torch.optim.AdamW(heads.parameters(), lr=2e-3, betas=(0.9, 0.95))
    source.level.value = level
    begin, recent, step = time.time(), [], 0
    while time.time() - begin < args.heads_seconds:
        got, arrays = source.next()
        if got != level and time.time() - begin < args.heads_seconds / 3:
            continue  # rows that were made for the model's training are still in the queue
        ids, positions, marks, known = (torch.from_numpy(a).to(args.device) for a in arrays)
        size = max(1, TOKENS // ids.shape[1])
        known = known[known[:, 0] < size * ids.shape[1]].long()
        done = (time.time() - begin) / args.heads_seconds
        for group in opt.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 30) * max(0.02, 1 - done)
        loss, found = heads_loss(model, heads, (ids[:size].long(), positions[:size], marks[:size], known))
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(heads.parameters(), 0.5)
        opt.step()
        step += 1
        recent.append(torch.cat([loss.detach()[None], found]))
        if step % 25 == 0:
            mean = torch.stack(recent).mean(0).tolist()
            print(f"{time.time() - args.begin:6.0f}s retaining heads, step {step}, loss {mean[0]:.4f}, best rows found, by "
                  "layer " + " ".join(f"{x:.2f}" for x in mean[1:]), flush=True)
            recent = []
    export_heads({(i, fc): getattr(heads, fc)[i].weight for i in range(model.c["num_hidden_layers"])
                  for fc in ("fc1", "fc2")}, args.out)
