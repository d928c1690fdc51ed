"""Trains the demo model on the CPU: train.py --out DIR [--resume] [--only PHASE].

A sample is a chat: a document with hidden facts, then question after question, each with its answer; the loss is on
the answers. The phases lengthen the documents. Positions jump at random line borders, so that far positions are
seen long before far tokens are; the last phases are really long. In a quarter of the samples the first question also
stands at the front of the document, because APB's anchor blocks show it there.
"""
import argparse
import json
import math
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import generator
from model import CONFIG, Llama

# Of a phase: steps, learning rate, batch, share of rows that are plain pairs, tokens of filler (low, high), facts (low,
# high), questions, largest position, share of documents from small word pools. Pairs (random keys, random values) teach
# to look things up; text alone leaves the loss on a plateau for a long time. Small pools repeat the words of facts as
# often as a very long document does.
PHASES = {
    "pairs": (400, 1e-3, 32, 1.0, (0, 0), (6, 6), 6, 0),
    "facts": (160, 1e-3, 24, 0.3, (0, 60), (5, 7), 5, 0),
    "short": (250, 1e-3, 16, 0.1, (50, 400), (4, 8), 5, 20000),
    "medium": (400, 8e-4, 6, 0.0, (200, 2000), (2, 12), 12, 66000),
    "long": (200, 5e-4, 2, 0.0, (2000, 6000), (1, 20), 16, 70000),
    "dense": (250, 5e-4, 2, 0.0, (1500, 5000), (4, 40), 32, 70000, 0.7),
    "longer": (80, 3e-4, 1, 0.0, (6000, 20000), (1, 30), 24, 70000, 0.3),
}
PHRASE_WEIGHT = {"longer": 1.0}  # of the words around the values in the loss; 0.3 in the other phases
PHRASE, VALUE = 1, 2  # marks of answer tokens; the others are 0
ROOT = pathlib.Path(__file__).parent


class Chats:
    """Renders samples to (token ids, positions, answer mask)."""

    def __init__(self, tokenizer, rng):
        self.tok, self.rng = tokenizer, rng
        self.mark = {m: tokenizer.token_to_id(f"<|{m}|>") for m in ("begin", "end", "user", "assistant", "system", "pad")}
        self.newline = self.encode("\n")

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def turn(self, role, text):
        return self.encode(f"<|{role}|>\n{text}<|end|>\n")

    def sample(self, filler_tokens, facts, questions, small):
        rng = self.rng
        pools = generator.small_pools(rng) if rng.random() < small else generator.ALL_WORDS
        facts = generator.draw_facts(rng, facts, pools)
        sentences = int(filler_tokens / generator.TOKENS_PER_SENTENCE)
        document = generator.make_document(rng, sentences, facts, [rng.random() for _ in facts], pools)
        asked = rng.sample(facts, min(questions, len(facts)))
        first = generator.question_text(asked[0][0])
        ids = [self.mark["begin"]]
        front = rng.random()  # an anchor block holds the question (with or without its header) near the begin
        shown = rng.choice(["", "<|user|>\n"]) + first
        if front < 0.25:
            document = shown + rng.choice(["\n", " ", "<|end|>\n", ""]) + document
        elif front < 0.3:
            ids += self.encode(shown)
        if rng.random() < 0.15:
            ids += self.turn("system", rng.choice(["You are a helpful assistant.", "Read the document and answer the question."]))
        head = len(ids)
        mask = []
        same_turn = rng.random() < 0.3
        if same_turn:
            ids += self.turn("user", document + "\n\n" + first)
        else:
            ids += self.turn("user", document)
        borders = [head] + [i + 1 for i, t in enumerate(ids) if t in self.newline and i >= head]
        for i, (name, value) in enumerate(asked):
            if i > 0 or not same_turn:
                ids += self.turn("user", generator.question_text(name))
            ids += self.encode("<|assistant|>\n")
            text = generator.answer_text(name, value)
            split = text.index(" " + value)
            phrase, answer = self.encode(text[:split]), self.encode(text[split:]) + [self.mark["end"]]
            mask += [0] * (len(ids) - len(mask)) + [PHRASE] * len(phrase) + [VALUE] * len(answer)
            ids += phrase + answer + self.newline
        mask += [0] * (len(ids) - len(mask))
        return ids, borders, mask

    def pairs(self, count):
        """Keys of two random tokens, values of three; all are asked again, in another order."""
        rng = self.rng
        draw = lambda n: [rng.randrange(300, CONFIG["vocab_size"]) for _ in range(n)]
        link = rng.choice([[], draw(1), self.encode(" is")])
        pairs = [(draw(2) + link, draw(3)) for _ in range(count)]
        ids, mask = [self.mark["begin"]], [0]
        for k, v in pairs:
            noise = draw(rng.randint(0, 6))
            ids += k + v + noise
        mask = [0] * len(ids)
        for k, v in rng.sample(pairs, count):
            ids += k + v
            mask += [0] * len(k) + [VALUE] * len(v)
        return ids, [1], mask

    def positions(self, length, borders, largest):
        """Contiguous runs with a few jumps; the last position is log-uniform between length and `largest`."""
        rng = self.rng
        end = length if largest <= length or rng.random() < 0.2 else int(
            math.exp(rng.uniform(math.log(length), math.log(largest))))
        spare, jumps = end - length, {}
        cuts = rng.sample(borders, min(len(borders), rng.randint(1, 4)))
        for i, c in enumerate(cuts):
            part = spare if i == len(cuts) - 1 else rng.randint(0, spare)
            jumps[c] = jumps.get(c, 0) + part
            spare -= part
        out, at = [], 0
        for i in range(length):
            at += jumps.get(i, 0)
            out.append(at)
            at += 1
        return out

    def batch(self, size, share, filler, facts, questions, largest, small=0.0):
        rng = self.rng
        base = math.exp(rng.uniform(math.log(filler[0] + 1), math.log(filler[1] + 1))) - 1
        rows = [self.pairs(rng.randint(*facts)) if rng.random() < share else
                self.sample(base, rng.randint(*facts), questions, small) for _ in range(size)]
        width = max(len(r[0]) for r in rows)
        ids = torch.full((size, width), self.mark["pad"])
        pos = torch.zeros((size, width), dtype=torch.long)
        mask = torch.zeros((size, width), dtype=torch.int8)
        for i, (t, borders, m) in enumerate(rows):
            ids[i, :len(t)] = torch.tensor(t)
            pos[i, :len(t)] = torch.tensor(self.positions(len(t), borders, largest))
            mask[i, :len(t)] = torch.tensor(m, dtype=torch.int8)
        return ids, pos, mask


def step_loss(model, ids, pos, mask, phrase=0.3):
    """The loss (values count more than the phrase around them) and the shares of right value and phrase tokens."""
    keep = torch.zeros_like(mask, dtype=torch.bool)
    keep[:, :-1] = mask[:, 1:] > 0
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids, pos, keep)
    target, value = ids[mask > 0], mask[mask > 0] == VALUE
    weight = torch.where(value, 1.0, phrase)
    loss = (F.cross_entropy(logits.float(), target, reduction="none") * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == target).float()
    return loss, right[value], right[~value]


def save(model, opt, done, step, out):
    state = {"model": model.state_dict(), "opt": opt.state_dict(), "done": done, "step": step}
    torch.save(state, out / "state.new")
    (out / "state.new").replace(out / "state.pt")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", required=True)
    ap.add_argument("--resume", action="store_true")
    ap.add_argument("--only", help="run this phase only (with --resume)")
    ap.add_argument("--steps", type=int, help="steps of that phase")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(args.threads)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(ROOT / "checkpoint" / "tokenizer.json"))
    model = Llama()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    done, first = [], 0
    if args.resume and (out / "state.pt").exists():
        state = torch.load(out / "state.pt")
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        done, first = state["done"], state.get("step", 0)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    start = saved = time.time()
    for index, (name, (steps, lr, *shape)) in enumerate(PHASES.items()):
        if (args.only and name != args.only) or (not args.only and name in done):
            continue
        steps = args.steps or steps
        chats = Chats(tokenizer, random.Random(1000 * index + first))
        recent = []
        for step in range(first, steps):
            warm = min(1.0, (step + 1) / (100 if index == 0 else 20))
            for group in opt.param_groups:
                group["lr"] = lr * warm * (1 - 0.5 * step / steps)
            loss, *right = step_loss(model, *chats.batch(*shape), PHRASE_WEIGHT.get(name, 0.3))
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            recent.append((loss.item(), *(r.mean().item() if len(r) else 1.0 for r in right)))
            if (step + 1) % 20 == 0:
                mean = [sum(x) / len(recent) for x in zip(*recent)]
                print(f"{time.time() - start:7.0f}s {name} {step + 1}/{steps} loss {mean[0]:.4f} right: "
                      f"value tokens {mean[1]:.4f}, others {mean[2]:.4f}", flush=True)
                recent = []
            if time.time() - saved > 90:
                save(model, opt, done, step + 1, out)
                saved = time.time()
        done, first = done + [name], 0
        save(model, opt, done, 0, out)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    main()
