#!/usr/bin/env python3
"""Trains the demo model from random weights within a given time: train.py --out DIR --device cuda --minutes 9 [--resume].

Needs PyTorch and tokenizers. The time includes everything: making rows (in worker processes), compiling, evaluation, export
and the retaining heads. The curriculum (PLAN) lengthens documents and chains; a part ends when its share of the time is
over, or when it is learnt. Weights are exported after every part and at intervals, so an interrupted run leaves a model;
--resume continues from state.pt. The loss has two terms: the answers, and the words that rows should know after each layer
(training_rows.py), read by linear heads that are dropped after training.
"""
import argparse
import dataclasses
import json
import math
import os
import pathlib
import time

BEGIN = time.time()  # before the imports, whose time counts

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import fast_model  # noqa: E402
from evaluation import Evaluation  # noqa: E402
from export import export  # noqa: E402
from model import CONFIG, Llama  # noqa: E402
from retaining_heads import train_heads  # noqa: E402
from training_rows import FARTHEST, PHRASE, STEPS, VALUE, Level, Source  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent
EXTRA = 1.0  # the loss's weight of the words that rows should know
PHRASE_WEIGHT = 0.25  # the loss's weight of the words around values


@dataclasses.dataclass
class Part:
    name: str
    share: float  # share of the time that is left, relative to the shares of the later parts
    level: Level
    learnt: float  # the part ends early if the shares of right values and of known words are both above this
    rate: float = 1.0  # learning rate, relative to the largest one


PLAN = [
    Part("pairs", 0.18, Level(256, 2, 4000, words=0.02, alike=0.10), 0.97),
    Part("chains", 0.20, Level(512, 6, 30000), 0.975),
    Part("short", 0.14, Level(1024, 12, FARTHEST), 0.985),
    Part("medium", 0.18, Level(4096, 12, FARTHEST), 0.992, 0.8),
    Part("long", 0.12, Level(8192, 12, FARTHEST), 1.1, 0.6),
    Part("longer", 0.18, Level(32768, 12, FARTHEST), 1.1, 0.5),
]
HEADS_LEVEL = Level(8192, 12, FARTHEST, words=0.02, alike=0.1, front=0.7)


class Knowing(nn.Module):
    """Reads a fact's name, and the words that it leads to, from the rows after layers 1, 2, ...; only in training."""

    def __init__(self, c):
        super().__init__()
        h = c["hidden_size"]
        self.name = nn.Parameter(torch.randn(2, h, h) * h ** -0.5)
        self.leads = nn.Parameter(torch.randn(len(STEPS), 2, h, h) * h ** -0.5)

    def forward(self, states, known, embedding):
        """The losses, and the shares of right words, by steps. `states` are those after layers 0, 1, ..., [rows, h]."""
        h = embedding.shape[1]
        scale = 4 * h ** -0.5
        losses, right = [], []
        for layer in range(1, 1 + len(STEPS)):
            x = states[min(layer, len(states) - 1)].index_select(0, known[:, 0]).float()
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
            targets = known[:, 1 + 2 * layer:3 + 2 * layer].T
            weights = self.leads[layer - 1]
            if layer == 1:
                weights, targets = torch.cat([self.name, weights]), torch.cat([known[:, 1:3].T, targets])
            with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
                logits = torch.matmul(torch.matmul(x, weights), embedding.T)
            logits = logits.float() * scale
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
            right.append((logits[-2:].argmax(-1) == targets[-2:]).float().mean())
        return torch.stack(losses), torch.stack(right)


def step_losses(model, knowing, batch):
    """Losses of the answers and of the known words, and shares of right value tokens and (by steps) of known words."""
    ids, positions, rows, kind, known = batch
    states, final = fast_model.forward(model, ids, positions)
    embedding = model.model.embed_tokens.weight
    x = model.model.norm(final.index_select(0, rows - 1))
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        logits = F.linear(x, embedding)
    target = ids.flatten()[rows]
    weight, value = torch.where(kind == PHRASE, PHRASE_WEIGHT, 1.0), kind == VALUE
    loss = (F.cross_entropy(logits.float(), target, reduction="none") * weight).sum() / weight.sum()
    right = ((logits.argmax(-1) == target) & value).sum() / value.sum()
    if not len(known):
        return loss, loss.new_zeros(len(STEPS)), right, loss.new_ones(len(STEPS))
    extra, knows = knowing(states, known, embedding)
    return loss, extra, right, knows


class Run:
    """Model, optimizer and clock of a run."""

    def __init__(self, args, rate):
        self.args, self.device, self.rate = args, args.device, rate
        torch.manual_seed(args.seed)
        self.model, self.knowing = Llama().to(args.device), Knowing(CONFIG).to(args.device)
        matrices = [p for p in self.model.parameters() if p.dim() == 2] + list(self.knowing.parameters())
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        self.opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
                                     lr=rate, betas=(0.9, 0.97), eps=1e-9, fused=args.device == "cuda")
        self.parameters = matrices + vectors
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.part, self.step = 0, 0
        self.begin = args.begin
        if args.resume and (args.out / "state.pt").exists():
            state = torch.load(args.out / "state.pt", map_location=args.device)
            self.model.load_state_dict(state["model"])
            self.knowing.load_state_dict(state["knowing"])
            self.opt.load_state_dict(state["opt"])
            self.average = state["average"]
            self.part, self.step, self.rate = state["part"], state["step"], state["rate"]

    def save(self):
        torch.save({"model": self.model.state_dict(), "knowing": self.knowing.state_dict(), "opt": self.opt.state_dict(),
                    "average": self.average, "part": self.part, "step": self.step, "rate": self.rate},
                   self.args.state / "state.new")
        (self.args.state / "state.new").replace(self.args.state / "state.pt")

    @torch.no_grad()
    def averaged(self):
        """The model with averaged weights, which answers better than with the last step's weights."""
        model = Llama().to(self.device)
        for p, a in zip(model.parameters(), self.average):
            p.copy_(a)
        return model

    def export(self, model):
        export(model.state_dict(), self.args.out, self.args.tokenizer)

    def to_device(self, arrays):
        """ids, positions, flat rows of answer tokens, their marks, and known, on the device. Does not wait for it."""
        ids, positions, marks, known = arrays
        rows = np.flatnonzero(marks)
        parts = [torch.from_numpy(a) for a in (ids, positions, rows, marks.ravel()[rows], known)]
        if self.device == "cuda":
            parts = [t.pin_memory().to("cuda", non_blocking=True) for t in parts]
        ids, positions, rows, kind, known = parts
        return ids.long(), positions, rows, kind, known.long()

    def update(self, arrays, rate):
        for group in self.opt.param_groups:
            group["lr"] = rate
        loss, extra, right, knows = step_losses(self.model, self.knowing, self.to_device(arrays))
        (loss + EXTRA * extra.mean()).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.model.parameters()), max(0.01, 1 / self.step))
        return torch.cat([torch.stack([loss.detach(), extra.mean().detach(), norm, right]), knows])


def learning_rate(run, part, left):
    """The learning rate: warm-up, then the part's rate, then a decay to a twentieth in the last quarter of the time."""
    return run.rate * part.rate * min(1.0, (run.step + 1) / run.args.warm_up) * min(1.0, 0.05 + 4 * left)


def best_start(args, source, part):
    """Trains a run with each learning rate for a short while, and returns the run with the smallest loss."""
    runs = []
    for rate in args.rates:
        run, begin, losses, waited = Run(args, rate), time.time(), [], 0.0
        if run.step or len(args.rates) == 1:
            return run
        while len(losses) < 20 or time.time() - begin < args.probe_seconds:
            waiting = time.time()
            _, arrays = source.next()
            waited += time.time() - waiting
            result = run.update(arrays, learning_rate(run, part, 1.0))
            losses.append(result[0] + result[1])
            if len(losses) % 50 == 1:
                losses[-1].item()  # waits for the device, so that the clock includes its work
            if len(losses) == 1:
                begin = time.time()  # the first step compiles, and does not count
        runs.append((torch.stack(losses[-50:]).mean().item(), rate, run))
        print(f"{time.time() - args.begin:6.0f}s rate {rate}: loss {runs[-1][0]:.4f} after {run.step} steps, waited "
              f"{waited:.1f}s for rows", flush=True)
    return min(runs, key=lambda r: (math.isnan(r[0]), r[0]))[2]


def train(run, source, plan, evaluation):
    args, train_time = run.args, run.args.train_seconds
    clock = time.time
    last_save = clock()
    while run.part < len(plan):
        part, start, recent = plan[run.part], clock(), []
        allowed = (args.train_until - start) * part.share / sum(p.share for p in plan[run.part:])
        source.level.value = run.part
        print(f"{clock() - run.begin:6.0f}s part {part.name}: {part.level}", flush=True)
        waited = 0.0
        while clock() - start < allowed:
            waiting = clock()
            _, arrays = source.next()
            waited += clock() - waiting
            left = max(0.0, args.train_until - clock()) / train_time
            recent.append(run.update(arrays, learning_rate(run, part, left)))
            if len(recent) == args.report:
                mean = torch.stack(recent).mean(0).tolist()
                print(f"{clock() - run.begin:6.0f}s {part.name} step {run.step} waited {waited:.1f}s loss {mean[0]:.4f} "
                      f"extra {mean[1]:.4f} norm {mean[2]:.2f} right {mean[3]:.4f} knows "
                      + " ".join(f"{x:.4f}" for x in mean[4:]), flush=True)
                recent, waited = [], 0.0
                if min(mean[3], sum(mean[4:]) / len(STEPS)) > part.learnt:
                    break
                if clock() - last_save > args.save_every:
                    run.export(run.averaged())
                    run.save()
                    last_save = clock()
        run.part += 1
        run.export(run.averaged())
        if run.part < len(plan):
            evaluation.report(run.averaged(), [n for n in (1024, 4096) if n <= 4 * part.level.length], f"after {part.name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the checkpoint and log go there")
    parser.add_argument("--state", type=pathlib.Path, help="folder of state.pt, which is larger; default: --out")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=ROOT / "gauge_checkpoint", help="folder with tokenizer.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--heads-seconds", type=float, default=45, help="of that: for the retaining heads")
    parser.add_argument("--end-seconds", type=float, default=25, help="of that: for the last evaluation and export")
    parser.add_argument("--tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--rates", type=lambda t: [float(x) for x in t.split(",")], default=[1e-3, 2e-3, 3e-3],
                        help="learning rates to try for --probe-seconds each")
    parser.add_argument("--probe-seconds", type=float, default=12)
    parser.add_argument("--warm-up", type=int, default=200, help="steps")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 3))
    parser.add_argument("--report", type=int, default=50, help="steps between lines")
    parser.add_argument("--save-every", type=float, default=60, help="seconds")
    parser.add_argument("--plan", help="JSON of [[part, share, length, hops], ...] instead of the built-in one")
    parser.add_argument("--longest-evaluation", type=int, default=32768, help="tokens")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="default: with cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.begin = BEGIN
    args.state = args.state or args.out
    for folder in (args.out, args.state):
        folder.mkdir(parents=True, exist_ok=True)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    args.train_until = args.begin + 60 * args.minutes - args.heads_seconds - args.end_seconds
    args.train_seconds = max(1.0, args.train_until - args.begin)
    plan = PLAN if not args.plan else [Part(name, share, Level(length, hops, FARTHEST), 1.1)
                                       for name, share, length, hops in json.loads(args.plan)]
    tokenizer_file = args.tokenizer / "tokenizer.json"
    seed = 1000 + int(time.time()) % 10 ** 6 * 100 if args.resume else 1000 * args.seed
    levels = [p.level for p in plan] + [HEADS_LEVEL]
    source = Source(tokenizer_file, levels, args.tokens, args.workers, seed)
    evaluation = Evaluation(tokenizer_file, args)  # before CUDA starts, because it forks, as Source does
    fast_model.prepare(args.device, args.device == "cuda" if args.compile is None else args.compile)
    run = best_start(args, source, plan[0])
    print("parameters", sum(p.numel() for p in run.model.parameters()), flush=True)
    train(run, source, plan, evaluation)
    model = run.averaged()
    run.export(model)
    run.save()
    print(f"{time.time() - args.begin:6.0f}s trained, {run.step} steps", flush=True)
    evaluation.report(model, [1024, 4096, 16384], "exact attention")
    train_heads(model, source, len(plan), args)
    evaluation.report(model, [32768], "exact attention")
    evaluation.report(run.model.eval(), [4096], "exact attention, weights not averaged")
    source.close()
    print(f"{time.time() - args.begin:6.0f}s done", flush=True)
    os._exit(0)  # does not wait for worker processes, which may be in the middle of a row


if __name__ == "__main__":
    main()
