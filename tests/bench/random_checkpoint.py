#!/usr/bin/env python3
"""Writes a checkpoint of random bf16 weights: random_checkpoint.py --shape 125m DIR

Goal: the whole server can be measured at sizes for which no weights are committed, because its speed depends on shapes
only. Method: random weights, with the demo model's tokenizer. Python's standard library only.
"""
import argparse
import array
import json
import pathlib
import random
import shutil
import struct

# Layers, hidden size, query heads, KV heads, head size, MLP size, vocabulary; as in bench_shapes.cc.
SHAPES = {
    "tiny": (4, 256, 4, 2, 64, 512, 2048),
    "125m": (12, 768, 12, 4, 64, 2048, 32000),
    "1b": (16, 2048, 32, 8, 64, 8192, 128256),
    "8b": (32, 4096, 32, 8, 128, 14336, 128256),
}
DEMO = pathlib.Path(__file__).resolve().parent.parent / "reference_model" / "checkpoint"


def tensors(shape):
    layers, hidden, heads, kv_heads, head, mlp, vocabulary = SHAPES[shape]
    yield "model.embed_tokens.weight", [vocabulary, hidden]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocabulary, hidden]
    for i in range(layers):
        prefix = f"model.layers.{i}."
        yield prefix + "input_layernorm.weight", [hidden]
        yield prefix + "post_attention_layernorm.weight", [hidden]
        for name, rows, columns in (("self_attn.q_proj", heads * head, hidden), ("self_attn.k_proj", kv_heads * head, hidden),
                                    ("self_attn.v_proj", kv_heads * head, hidden), ("self_attn.o_proj", hidden, heads * head),
                                    ("mlp.gate_proj", mlp, hidden), ("mlp.up_proj", mlp, hidden), ("mlp.down_proj", hidden, mlp)):
            yield f"{prefix}{name}.weight", [rows, columns]


def bf16(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def write(shape, folder):
    layers, hidden, heads, kv_heads, head, mlp, vocabulary = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(DEMO / name, folder / name)
    config = json.loads((DEMO / "config.json").read_text())
    config.update(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
                  head_dim=head, intermediate_size=mlp, vocab_size=vocabulary, tie_word_embeddings=False,
                  max_position_embeddings=1 << 20)
    (folder / "config.json").write_text(json.dumps(config, indent=1))

    rng = random.Random(1)
    normal = [rng.gauss(0, 1) for _ in range(1 << 16)]
    tables = {}  # by mean and deviation
    header, offset = {}, 0
    for name, extents in tensors(shape):
        size = 2
        for extent in extents:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": extents, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, extents in tensors(shape):
            mean, deviation = (1.0, 0.1) if len(extents) == 1 else (0.0, extents[-1] ** -0.5)
            if (mean, deviation) not in tables:
                numbers = array.array("H", (bf16(mean + deviation * x) for x in normal))
                tables[mean, deviation] = memoryview(numbers).cast("B")
            table = tables[mean, deviation]
            left = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
            while left > 0:  # each run begins at a random place of the table, so that no two rows are equal
                run = table[2 * rng.randrange(len(normal)):][:left]
                out.write(run)
                left -= len(run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--shape", choices=SHAPES, default="125m")
    args = parser.parse_args()
    write(args.shape, args.folder)


if __name__ == "__main__":
    main()
