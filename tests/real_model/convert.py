#!/usr/bin/env python3
"""Converts a GGUF file (Llama architecture, byte-level BPE tokenizer) into a Hugging Face checkpoint.

  convert.py --dtype bf16 model.gguf folder

Quantized weights are dequantized to float32 and rounded to the wanted type. Numbers, vocabulary, merges, special tokens
and the chat template come from the GGUF file. A GGUF file does not say the stages of its pre-tokenizer: PRE_TOKENIZERS has
the known kinds. Anything that this script cannot convert faithfully is an error.
"""
import argparse
import json
import pathlib
import sys

import gguf
import numpy as np
import safetensors
import tokenizers
from gguf.quants import dequantize
from tokenizers import AddedToken, decoders, models, pre_tokenizers

TYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
# The stages before ByteLevel splits words, by GGUF's name of the kind of pre-tokenizer.
PRE_TOKENIZERS = {"smollm": [pre_tokenizers.Digits(individual_digits=True)]}
SPECIAL = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
LAYER_TENSORS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class Fields:
    """The metadata of a GGUF file."""

    def __init__(self, reader):
        self._fields = reader.fields

    def get(self, name, default=None):
        return self._fields[name].contents() if name in self._fields else default

    def __getitem__(self, name):
        if name not in self._fields:
            sys.exit(f"convert.py: the GGUF file does not say {name}")
        return self.get(name)


def short(number):
    """The shortest decimal number that rounds to this float32."""
    return float(str(np.float32(number)))


def make_config(fields, dtype, tied):
    if fields["general.architecture"] != "llama":
        sys.exit(f"convert.py: architecture {fields['general.architecture']}; only llama is known")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        sys.exit("convert.py: scaled rotary embeddings are not known")
    heads, hidden = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    head_dim = fields.get("llama.attention.key_length", hidden // heads)
    if fields["llama.rope.dimension_count"] != head_dim:
        sys.exit("convert.py: rotary embeddings of a part of the head are not known")
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]), "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"], "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads, "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": head_dim, "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": short(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": short(fields["llama.rope.freq_base"]), "rope_scaling": None,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": tied, "torch_dtype": TYPES[dtype],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"], "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def hugging_face_name(name):
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in LAYER_TENSORS and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{LAYER_TENSORS[parts[2]]}.weight"
    if parts[0] in OTHER_TENSORS and parts[1] == "weight":
        return OTHER_TENSORS[parts[0]] + ".weight"
    sys.exit(f"convert.py: tensor {name} has no place in this architecture")


def unpermute(weights, heads):
    """The rows of q or k in Hugging Face's order. In GGUF, the two rows that RoPE rotates together are neighbours."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def rounded(array, dtype):
    """A float32 array rounded to `dtype`, to nearest, ties to even; bf16 as the upper 16 bits."""
    if dtype == "f32":
        return array
    if dtype == "f16":
        return array.astype(np.float16)
    bits = array.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_weights(reader, config, dtype, path):
    specs, arrays = {}, []
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]).astype(np.float32)
        if not np.isfinite(array).all():
            sys.exit(f"convert.py: tensor {tensor.name} holds numbers that are not finite")
        if ".attn_q." in tensor.name:
            array = unpermute(array, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            array = unpermute(array, config["num_key_value_heads"])
        array = np.ascontiguousarray(rounded(np.ascontiguousarray(array), dtype))
        arrays.append(array)  # kept, because the specs point into the arrays
        specs[hugging_face_name(tensor.name)] = safetensors.TensorSpec(
            dtype=TYPES[dtype], shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
    safetensors.serialize_file(specs, path, {"format": "pt"})


def write_tokenizer(fields, path):
    if fields["tokenizer.ggml.model"] != "gpt2" or fields["tokenizer.ggml.pre"] not in PRE_TOKENIZERS:
        sys.exit(f"convert.py: tokenizer {fields['tokenizer.ggml.model']} / {fields['tokenizer.ggml.pre']} is not known")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        PRE_TOKENIZERS[fields["tokenizer.ggml.pre"]] + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)
                                  for token, kind in zip(tokens, kinds) if kind in SPECIAL])
    if tokenizer.get_vocab_size() != len(tokens):
        sys.exit("convert.py: the vocabulary holds a token twice")
    tokenizer.save(str(path))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--dtype", choices=TYPES, default="bf16")
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.gguf)
    fields = Fields(reader)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = make_config(fields, args.dtype, tied)
    tokens = fields["tokenizer.ggml.tokens"]
    named = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
             for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown"))}

    args.folder.mkdir(parents=True)
    write_weights(reader, config, args.dtype, args.folder / "model.safetensors")
    write_tokenizer(fields, args.folder / "tokenizer.json")
    write_json(args.folder / "config.json", config)
    write_json(args.folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **named, "add_bos_token": fields["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": fields["tokenizer.ggml.add_space_prefix"], "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"], "chat_template": fields["tokenizer.chat_template"]})
    write_json(args.folder / "generation_config.json", {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    print(f"{args.folder}: {len(reader.tensors)} tensors as {TYPES[args.dtype]}, {len(tokens)} tokens")


if __name__ == "__main__":
    main()
