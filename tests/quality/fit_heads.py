#!/usr/bin/env python3
"""Fits retaining heads to the gauge model on the CPU: fit_heads.py --model DIR [--documents 64] [--tokens 8192].

Goal: retaining heads that find the rows which later rows of the document read. Method: in documents of tasks.py, with exact
attention, a row is read if the last row of a fact gives it a share of attention of at least READ; the heads learn the
probability of that (logistic loss). The question's rows do not count, as they see every key without passing. Locret's label
is the largest logit instead; but a logit says little if other rows get larger ones. Needs NumPy and tokenizers; writes
DIR/retaining_heads.safetensors.
"""
import argparse
import hashlib
import json
import pathlib
import re
import time

import numpy as np

import table
import tasks

WIDTH = 128
FLOOR = -7.0
APART = 128  # rows that are nearer are mostly in the same shard
READ = 0.3
OTHERS = 1500  # rows of a document that are kept beside those that get attention
TRAINING = [{}, {}, {}, {"num_hops": 4}]  # parameters of khop: only its facts read others
FACT = re.compile(r"The (?:key|secret word) of [^.?]*\.")


def load(file):
    """The tensors of a safetensors file, as float32, by name."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, t in header.items():
        raw = data[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]]
        bits = np.frombuffer(raw, np.uint16 if t["dtype"] == "BF16" else np.float32)
        out[name] = (((bits.astype(np.uint32) << 16).view(np.float32)) if t["dtype"] == "BF16" else bits).reshape(t["shape"])
    return out


def save(file, tensors, metadata):
    """Writes float32 tensors, rounded to bf16."""
    header, blobs, at = {"__metadata__": metadata}, [], 0
    for name, x in tensors.items():
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + len(raw)]}
        blobs.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def silu(x):
    return x / (1 + np.exp(-np.clip(x, -60, 60)))


class Model:
    """The Llama forward pass with exact attention. Gives the heads' inputs and labels of each layer."""

    def __init__(self, folder):
        self.c, self.w = json.loads((folder / "config.json").read_text()), load(folder / "model.safetensors")

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[name + ".weight"]

    def layers(self, ids, asking):
        """Yields for each layer the rows' [q, k, v] before RoPE, and the labels [rows, KV heads]."""
        n, d = len(ids), self.c["head_dim"]
        nq, nkv = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        angle = np.arange(n)[:, None] * self.c["rope_theta"] ** (-np.arange(0, d, 2) / d)
        cos, sin = (np.tile(f(angle).astype(np.float32), 2) for f in (np.cos, np.sin))
        turn = lambda x: x * cos + np.concatenate([-x[..., d // 2:], x[..., :d // 2]], -1) * sin  # noqa: E731
        x = self.w["model.embed_tokens.weight"][ids]
        for i in range(self.c["num_hidden_layers"]):
            name = f"model.layers.{i}."
            y = self.norm(x, name + "input_layernorm")
            q, k, v = (y @ self.w[f"{name}self_attn.{p}_proj.weight"].T for p in "qkv")
            rows = np.concatenate([q, k, v], -1)
            heads = lambda t, count: t.reshape(n, count, d).transpose(1, 0, 2)  # noqa: E731
            q, k, v = turn(heads(q, nq)), turn(heads(k, nkv)), heads(v, nkv)
            out, label = np.empty((nq, n, d), np.float32), np.full((nkv, n), -np.inf, np.float32)
            for h in range(nq):
                self.attend(q[h] / d ** 0.5, k[h // (nq // nkv)], v[h // (nq // nkv)], out[h], label[h // (nq // nkv)], asking)
            yield rows, np.maximum(label, FLOOR).T
            x = x + out.transpose(1, 0, 2).reshape(n, -1) @ self.w[name + "self_attn.o_proj.weight"].T
            y = self.norm(x, name + "post_attention_layernorm")
            gate, up = (y @ self.w[f"{name}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
            x = x + (silu(gate) * up) @ self.w[name + "mlp.down_proj.weight"].T

    @staticmethod
    def attend(q, k, v, out, label, asking, step=512):
        """Fills `out`, and raises `label` to the largest logarithm of an asking row's attention share."""
        for begin in range(0, len(q), step):
            end = min(begin + step, len(q))
            logits = q[begin:end] @ k[:end].T
            rows, columns = np.arange(begin, end)[:, None], np.arange(end)[None]
            logits[columns > rows] = -1e30
            logits -= logits.max(-1, keepdims=True)
            shares = np.exp(logits)
            total = shares.sum(-1, keepdims=True)
            out[begin:end] = shares @ v[:end] / total
            here = asking[(asking >= begin) & (asking < end)]
            if len(here):
                logs = logits[here - begin] - np.log(total[here - begin])
                logs[columns > here[:, None] - APART] = -np.inf
                label[:end] = np.maximum(label[:end], logs.max(0))


def document(documents, index, tokens):
    """Token ids of a prompt, and its asking rows: the last row of each fact."""
    made = tasks.make("khop", 7 * 10 ** 6 + index, tokens - table.QUESTION_TOKENS, 1.0, lambda t: len(documents.encode(t)),
                      **TRAINING[index % len(TRAINING)])
    text = "<|user|>\n" + made["document"] + "<|end|>\n"
    encoding = documents.tokenizer.encode(text, add_special_tokens=False)
    ends = {m.end() for m in FACT.finditer(text)}
    facts = [1 + i for i, (_, end) in enumerate(encoding.offsets)
             if end in ends or (text[end - 1] == "\n" and end - 1 in ends)]  # ".\n" is one token
    return np.array([documents.bos] + encoding.ids), np.array(facts)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def fit(rows, labels, rng, steps, rate=2e-3):
    """fc1 and fc2, by Adam on the logistic loss. A third of each batch are rows that are read."""
    scale = rows.std(0) + 1e-4  # taken out of the numbers for the fit, and put into fc1
    rows, target_of = rows / scale, (labels > np.log(READ)).astype(np.float32)
    w = [(rng.standard_normal((rows.shape[1], WIDTH)) / rows.shape[1] ** 0.5).astype(np.float32),
         (0.3 * rng.standard_normal((WIDTH, labels.shape[1])) / WIDTH ** 0.5).astype(np.float32)]
    mean, square = [np.zeros_like(x) for x in w], [np.zeros_like(x) for x in w]
    read = np.flatnonzero(target_of.max(-1))
    for t in range(1, steps + 1):
        at = np.concatenate([rng.integers(0, len(rows), 1024), rng.choice(read, 512) if len(read) else read])
        x, target = rows[at], target_of[at]
        z = x @ w[0]
        gate = sigmoid(z)
        p = sigmoid((z * gate) @ w[1])
        if t % (steps // 3) == 0:
            loss = -np.mean(target * np.log(p + 1e-7) + (1 - target) * np.log(1 - p + 1e-7))
            print(f"    step {t}, loss {loss:.3f}", flush=True)
        error = 2 * (p - target) / p.size
        gradient = [x.T @ (error @ w[1].T * gate * (1 + z * (1 - gate))), (z * gate).T @ error]
        for j in range(2):
            mean[j] += 0.1 * (gradient[j] - mean[j])
            square[j] += 0.01 * (gradient[j] ** 2 - square[j])
            step = rate * min(1.0, 2 * (1 - t / (steps + 1)))
            w[j] -= step * ((mean[j] / (1 - 0.9 ** t)) / (np.sqrt(square[j] / (1 - 0.99 ** t)) + 1e-9) + 0.01 * w[j])
    return (w[0] / scale[:, None]).T, w[1].T


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    begin, model, documents, parts = time.time(), Model(args.model), table.Documents(args.model), []
    rng = np.random.default_rng(1)
    for index in range(args.documents):
        ids, asking = document(documents, index, args.tokens)
        parts.append([])
        for rows, labels in model.layers(ids, asking):
            kept = labels.max(-1) > -4
            kept[rng.integers(0, len(ids), OTHERS)] = True
            parts[-1].append((rows[kept].astype(np.float16), labels[kept]))
        print(f"document {index}: {len(ids)} tokens, {len(asking)} rows ask, {time.time() - begin:.0f} s", flush=True)
    tensors = {}
    for i, layer in enumerate(zip(*parts)):
        rows, labels = (np.concatenate(x).astype(np.float32) for x in zip(*layer))
        print(f"layer {i}: {np.mean(labels.max(-1) > np.log(READ)):.4f} of {len(rows)} rows are read", flush=True)
        for name, x in zip(("fc1", "fc2"), fit(rows, labels, rng, args.steps)):
            tensors[f"model.layers.{i}.self_attn.{name}.weight"] = x
    base = hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest()
    save(args.model / "retaining_heads.safetensors", tensors, {  # the metadata of tests/reference_model/export.py
        "format": "pt", "base_model": "reference", "base_model_sha256": base, "query_aware": "true", "activation": "silu"})
    print(f"{time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
