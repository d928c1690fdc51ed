"""Writes a training state as a checkpoint in Hugging Face layout: export.py STATE [DIR]. Weights become bf16."""
import hashlib
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file

from model import CONFIG


def main():
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).resolve().parent / "checkpoint"
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in torch.load(sys.argv[1])["model"].items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(
        {"bos_token_id": CONFIG["bos_token_id"], "eos_token_id": [CONFIG["eos_token_id"]],
         "pad_token_id": CONFIG["pad_token_id"], "do_sample": False}, indent=2) + "\n")
    data = (out / "model.safetensors").read_bytes()
    print(f"{out / 'model.safetensors'}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
