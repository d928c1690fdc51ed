"""Writes a training state as a checkpoint in Hugging Face layout: export.py STATE [DIR]. Weights become bf16.

Needs PyTorch only: a safetensors file is the length of a JSON header, the header, and the tensors.
"""
import hashlib
import json
import pathlib
import shutil
import struct
import sys

import torch

from model import CONFIG

ROOT = pathlib.Path(__file__).resolve().parent


def write_safetensors(tensors, path, metadata):
    """Writes the tensors as bf16. Replaces the file in one step."""
    header, data, at = {"__metadata__": metadata}, [], 0
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    new = path.with_name(path.name + ".new")
    new.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    new.replace(path)


def export(weights, out, tokenizer=None):
    """Writes the model's files. The tokenizer's files are copied from the folder `tokenizer`."""
    write_safetensors(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": [CONFIG["eos_token_id"]],
         "pad_token_id": CONFIG["pad_token_id"], "do_sample": False}, indent=2) + "\n")
    if tokenizer and tokenizer.resolve() != out.resolve():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, out / name)


def export_heads(heads, out, query_aware=True):
    """Writes the heads' weights, given by (layer, fc). The file's metadata names the model that they were trained for."""
    base = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    write_safetensors({f"model.layers.{i}.self_attn.{fc}.weight": w for (i, fc), w in heads.items()},
                      out / "retaining_heads.safetensors", {
                          "format": "pt", "base_model": "reference", "base_model_sha256": base,
                          "query_aware": str(query_aware).lower(), "activation": "silu"})


def main():
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "gauge_checkpoint"
    export(torch.load(sys.argv[1], map_location="cpu")["model"], out)
    data = (out / "model.safetensors").read_bytes()
    print(f"{out / 'model.safetensors'}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
