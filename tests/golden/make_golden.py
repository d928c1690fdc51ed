"""Makes the golden cases: tiny random models with the logits that Hugging Face transformers computes for them.

Usage: make_golden.py [CASE ...]   (needs torch and transformers; the versions used are in README.md)

Each case is a folder that loads as a checkpoint, with golden.json (tokens) and golden.safetensors (logits) in it. The
config is written here in the form of published checkpoints, and transformers reads it; so the comparison also covers the
reading of configs.
"""
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).parent
PROMPT, STEPS = 56, 32

BASE = {
    "vocab_size": 192, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}
LLAMA = {**BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
         "mlp_bias": False}
QWEN2 = {**BASE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 128, "max_window_layers": 2}
QWEN3 = {**QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32,
         "attention_bias": False, "sliding_window": None}
MISTRAL = {**BASE, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None,
           "num_key_value_heads": 1}


def newer(config, **rope):
    """The same config in the spelling of transformers 5: dtype and rope_parameters."""
    config = dict(config)
    config["dtype"] = config.pop("torch_dtype")
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), "rope_type": "default", **rope}
    return config


# The original context lengths (before scaling) are short, so that a prompt of 56 tokens with its answer exceeds most.
CASES = {
    "llama": LLAMA,
    "llama_tied_three_layers": {**LLAMA, "tie_word_embeddings": True, "num_hidden_layers": 3, "num_key_value_heads": 4},
    "llama_attention_bias": {**LLAMA, "attention_bias": True},
    "llama_rope_llama3": {**LLAMA, "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}},
    "llama_rope_linear": {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_rope_yarn": {**LLAMA, "head_dim": 32, "rope_scaling": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}},
    "llama_rope_yarn_mscale": newer({**LLAMA, "head_dim": 32}, rope_type="yarn", factor=16.0,
                                    original_max_position_embeddings=32, beta_fast=16.0, beta_slow=2.0, mscale=0.7,
                                    mscale_all_dim=0.4, truncate=False),
    "qwen2": QWEN2,
    "qwen2_rope_yarn": {**QWEN2, "rope_scaling": {"type": "yarn", "factor": 4.0,
                                                  "original_max_position_embeddings": 128}},
    "qwen3": QWEN3,
    "qwen3_rope_parameters": newer({**QWEN3, "tie_word_embeddings": True}),
    "mistral_sharded": MISTRAL,
    "llama_bf16": {**LLAMA, "torch_dtype": "bfloat16", "vocab_size": 64},  # few tokens, wide margins
}


def draw(model, seed, half):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.3 * noise)
            else:
                p.copy_(0.16 * noise)
            if half:  # not model.to(), which would round the rotary frequencies as well
                p.copy_(p.to(torch.bfloat16).float())


def build(folder, dtype):
    config = transformers.AutoConfig.from_pretrained(folder)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()


def save_weights(model, folder, sharded, dtype):
    tensors = {n: p.detach().to(dtype).contiguous() for n, p in model.named_parameters()}
    if not sharded:
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return
    names = sorted(tensors)
    parts = [names[:len(names) // 2], names[len(names) // 2:]]
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())}, "weight_map": {}}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file({n: tensors[n] for n in part}, str(folder / file), metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


@torch.no_grad()
def decode(model, prompt, forced=None):
    """Logits of the prompt's rows, the answer's tokens, and logits of the decode steps (row i after token i of the answer)."""
    out = model(torch.tensor([prompt]), use_cache=True)
    prompt_rows, past, tokens, rows = out.logits[0].float(), out.past_key_values, [], []
    last = prompt_rows[-1]
    for step in range(STEPS):
        tokens.append(forced[step] if forced else int(last.argmax()))
        out = model(torch.tensor([[tokens[-1]]]), past_key_values=past, use_cache=True)
        past, last = out.past_key_values, out.logits[0, -1].float()
        rows.append(last)
    return prompt_rows, tokens, torch.stack(rows)


def margin(prompt_rows, decode_rows):
    """The smallest lead of a greedy token's logit over the second best, over all rows that choose a token."""
    rows = torch.cat([prompt_rows[-1:], decode_rows[:-1]])
    best = rows.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def make(case, config):
    folder = ROOT / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    half = config.get("torch_dtype") == "bfloat16"
    for seed in range(1, 3000):
        model = build(folder, torch.float32)
        draw(model, seed, half)
        prompt = torch.randint(3, config["vocab_size"], (PROMPT,),
                               generator=torch.Generator().manual_seed(seed)).tolist()
        prompt_rows, tokens, decode_rows = decode(model, prompt)
        lead, needed, deviation = margin(prompt_rows, decode_rows), 0.15 if half else 0.02, 0.0
        if lead > 0.15 and half:
            rounded = build(folder, torch.bfloat16)
            rounded.load_state_dict(model.state_dict())
            p, _, d = decode(rounded, prompt, tokens)
            deviation = max(float((p - prompt_rows).abs().max()), float((d - decode_rows).abs().max()))
            needed = 1.5 * deviation
        if lead > needed and len(set(tokens)) >= (2 if half else 8):
            break
    else:
        raise SystemExit(f"{case}: no seed without near ties")
    save_weights(model, folder, "sharded" in case, torch.bfloat16 if half else torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    again = decode(loaded.eval(), prompt)
    assert torch.equal(again[0], prompt_rows) and torch.equal(again[2], decode_rows), case
    save_file({"prompt_logits": prompt_rows.contiguous(), "decode_logits": decode_rows.contiguous()},
              str(folder / "golden.safetensors"))
    (folder / "golden.json").write_text(json.dumps({
        "case": case, "seed": seed, "prompt_tokens": prompt, "greedy_tokens": tokens,
        "smallest_margin": round(lead, 5), "bf16_max_deviation": round(deviation, 5),
        "transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{case}: seed {seed}, {len(set(tokens))} different tokens, margin {lead:.4f}, "
          f"bf16 deviation {deviation:.4f}, {size / 1e3:.0f} KB", flush=True)


def main():
    torch.set_num_threads(1)
    for case in sys.argv[1:] or CASES:
        make(case, CASES[case])


if __name__ == "__main__":
    main()
