#!/usr/bin/env python3
"""The Llama architecture in NumPy and float64: the oracle of the tests on the real model. It shares no code with the engine.

  reference.py build/real_model/smollm2 "Once upon a time"     continues a text greedily
  reference.py --chat build/real_model/smollm2 "Who are you?"  answers a message, with the model's chat template
"""
import argparse
import json
import pathlib
import struct

import numpy as np


def read_tensors(path):
    """The tensors of a safetensors file as float64 arrays, by name."""
    data = np.memmap(path, np.uint8, "r")
    size = struct.unpack("<Q", data[:8].tobytes())[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + size].tobytes()).items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            bits = data[begin:end]
            if entry["dtype"] == "BF16":
                numbers = (bits.view("<u2").astype("<u4") << 16).view("<f4")
            else:
                numbers = bits.view({"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
            tensors[name] = numbers.reshape(entry["shape"]).astype(np.float64)
    return tensors


class Cache:
    """K and V of each layer: [KV heads, positions, head dimension]."""

    def __init__(self, layers):
        self.keys = [None] * layers
        self.values = [None] * layers

    def length(self):
        return 0 if self.keys[0] is None else self.keys[0].shape[1]

    def append(self, layer, keys, values):
        if self.keys[layer] is not None:
            keys = np.concatenate([self.keys[layer], keys], axis=1)
            values = np.concatenate([self.values[layer], values], axis=1)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Model:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.config = config = json.loads((folder / "config.json").read_text())
        tensors = read_tensors(folder / "model.safetensors")
        self.embedding = tensors["model.embed_tokens.weight"]
        self.head = self.embedding if config["tie_word_embeddings"] else tensors["lm_head.weight"]
        self.norm = tensors["model.norm.weight"]
        self.layers = [{name.split(".", 3)[3].removesuffix(".weight"): array for name, array in tensors.items()
                        if name.startswith(f"model.layers.{i}.")} for i in range(config["num_hidden_layers"])]
        self.head_dim = config["head_dim"]
        self.frequencies = config["rope_theta"] ** (-np.arange(0, self.head_dim, 2) / self.head_dim)

    def cache(self):
        return Cache(len(self.layers))

    def _normalized(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * weight

    def _heads(self, x, weight):
        """[heads, tokens, head dimension]"""
        return (x @ weight.T).reshape(len(x), -1, self.head_dim).swapaxes(0, 1)

    def _rotated(self, x, begin):
        angles = np.outer(np.arange(begin, begin + x.shape[1]), self.frequencies)
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _attention(self, layer, number, x, cache, begin):
        """The attention output of one sequence's tokens, before the output projection."""
        queries = self._rotated(self._heads(x, layer["self_attn.q_proj"]), begin)
        keys, values = cache.append(number, self._rotated(self._heads(x, layer["self_attn.k_proj"]), begin),
                                    self._heads(x, layer["self_attn.v_proj"]))
        group = len(queries) // len(keys)
        scores = queries.reshape(len(keys), group * len(x), -1) @ keys.swapaxes(1, 2) / np.sqrt(self.head_dim)
        scores = scores.reshape(len(keys), group, len(x), -1)
        hidden = np.arange(scores.shape[-1]) > begin + np.arange(len(x))[:, None]
        weights = np.exp(log_softmax(np.where(hidden, -np.inf, scores)))
        out = weights.reshape(len(keys), group * len(x), -1) @ values
        return out.reshape(len(queries), len(x), -1).swapaxes(0, 1).reshape(len(x), -1)

    def hidden_states(self, batch):
        """Hidden states [tokens of all sequences, hidden size] for a batch of (tokens, cache); extends the caches."""
        ends = np.cumsum([len(tokens) for tokens, _ in batch])
        begins = [cache.length() for _, cache in batch]
        x = self.embedding[np.concatenate([np.asarray(tokens, int) for tokens, _ in batch])]
        for number, layer in enumerate(self.layers):
            parts = np.split(self._normalized(x, layer["input_layernorm"]), ends[:-1])
            attended = [self._attention(layer, number, part, cache, begin)
                        for part, begin, (_, cache) in zip(parts, begins, batch)]
            x = x + np.concatenate(attended) @ layer["self_attn.o_proj"].T
            y = self._normalized(x, layer["post_attention_layernorm"])
            gate = y @ layer["mlp.gate_proj"].T
            x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["mlp.up_proj"].T)) @ layer["mlp.down_proj"].T
        return x

    def logits(self, hidden):
        return self._normalized(hidden, self.norm) @ self.head.T


def greedy(model, prompts, count):
    """Yields `count` times (tokens, logits) of all prompts; the tokens are the logits' arg-max."""
    batch = [(prompt, model.cache()) for prompt in prompts]
    last = np.cumsum([len(prompt) for prompt in prompts]) - 1
    for _ in range(count):
        logits = model.logits(model.hidden_states(batch)[last])
        tokens = logits.argmax(-1)
        yield tokens, logits
        batch = [([token], cache) for token, (_, cache) in zip(tokens, batch)]
        last = np.arange(len(prompts))


def render(messages):
    """The messages in SmolLM2's chat template, with the beginning of an answer."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
                    *messages]
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n"


def main():
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("text")
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--tokens", type=int, default=60)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    model = Model(args.checkpoint)
    text = render([{"role": "user", "content": args.text}]) if args.chat else args.text
    found = []
    for (token,), _ in greedy(model, [tokenizer.encode(text).ids], args.tokens):
        if token == model.config["eos_token_id"]:
            break
        found.append(token)
    print(tokenizer.decode(found, skip_special_tokens=False))


if __name__ == "__main__":
    main()
