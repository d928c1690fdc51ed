#!/usr/bin/env python3
"""Goal: checkpoints in the published quantized formats, for packed_matrix_test. Method: writes small random checkpoints in
every format, and beside each of them the same model with the weights that the integers represent.

    quantized_checkpoints.py FOLDER

FOLDER/<case>/quantized and FOLDER/<case>/plain are Hugging Face checkpoints; packed_matrix_test compares them. Integers
are packed as the formats' own code does it: compressed-tensors (pack_to_int32: integers plus 2^(bits-1), from the low
bits up, zero points packed along the outputs), AutoAWQ (WQLinear_GEMM: outputs 0, 2, 4, 6, 1, 3, 5, 7 in the places of
a word), AutoGPTQ and GPTQModel (inputs from the low bits up; checkpoint_format gptq stores zeros minus one).
"""
import json
import pathlib
import shutil
import sys

import numpy as np

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS, VOCABULARY = 128, 4, 2, 32, 256, 2, 80
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def bfloat16(values):
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def save(path, tensors):
    """Writes a safetensors file. Values are arrays, or (array of uint16, "BF16")."""
    header, data, at = {}, [], 0
    names = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "int8": "I8"}
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, names[value.dtype.name])
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def pack(values, bits, axis):
    """Packs unsigned integers into words along an axis, from the low bits up. The last word is filled up with 0."""
    values = np.moveaxis(np.asarray(values, np.uint64), axis, -1)
    per_word = 32 // bits
    short = -values.shape[-1] % per_word
    values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)])
    words = values.reshape(*values.shape[:-1], -1, per_word)
    words = sum(words[..., i] << np.uint64(bits * i) for i in range(per_word))
    return np.moveaxis(words.astype(np.uint32).view(np.int32), -1, axis)


class Quantized:
    """A random quantized matrix: weight = scale * (n - zero), with integers n from 0 on and scales [out, groups]."""

    def __init__(self, rng, shape, bits, group, symmetric, scale_type, mixed_inputs=False):
        out, inputs = shape
        group = inputs if group == -1 else group
        self.bits, self.groups = bits, inputs // group
        top = 2**bits
        self.n = rng.integers(0, top, shape)
        self.zero = (np.full((out, self.groups), top // 2) if symmetric else
                     rng.integers(0, top, (out, self.groups)))
        # No scale is so small that it is subnormal in half precision.
        scale = rng.uniform(0.5, 1.5, (out, self.groups)) / (top / 4) / np.sqrt(inputs)
        if scale_type == "BF16":
            stored = bfloat16(scale)
            self.stored_scale, self.scale = (stored, "BF16"), (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            self.stored_scale = self.scale = scale.astype(np.float16)
        self.group_of = np.arange(inputs) // group
        if mixed_inputs:
            self.group_of = rng.permutation(self.group_of)

    def weights(self):
        """The weights as float32, computed in float64 and rounded once."""
        zero = self.zero.astype(np.float64)[:, self.group_of]
        return (self.scale.astype(np.float64)[:, self.group_of] * (self.n - zero)).astype(np.float32)

    def transposed_scale(self):
        if isinstance(self.stored_scale, tuple):
            return self.stored_scale[0].T, self.stored_scale[1]
        return self.stored_scale.T


def pack_quantized(q, symmetric, order):
    tensors = {"weight_packed": pack(q.n, q.bits, 1), "weight_scale": q.stored_scale,
               "weight_shape": np.array(q.n.shape, np.int64)}
    if not symmetric:
        tensors["weight_zero_point"] = pack(q.zero, q.bits, 0)
    if order:
        tensors["weight_g_idx"] = q.group_of.astype(np.int32)
    return tensors


def int_quantized(q, symmetric, _):
    middle = 2 ** (q.bits - 1)
    tensors = {"weight": (q.n - middle).astype(np.int8), "weight_scale": q.stored_scale}
    if not symmetric:
        tensors["weight_zero_point"] = (q.zero - middle).astype(np.int8)
    return tensors


def awq(q, *_):
    def ordered(values):  # [inputs or groups, outputs]
        words = values.reshape(values.shape[0], -1, 8)[:, :, AWQ_ORDER]
        return pack(words.reshape(values.shape), 4, 1)
    return {"qweight": ordered(q.n.T), "qzeros": ordered(q.zero.T), "scales": q.transposed_scale()}


def gptq(less_one):
    def tensors(q, *_):
        zeros = pack(q.zero.T, q.bits, 1).view(np.uint32)
        # Subtracts from whole words, so that a zero of 0 borrows from the next one; readers add the same to whole words.
        if less_one:
            zeros = zeros - np.uint32(0x11111111 if q.bits == 4 else 0x01010101)
        return {"qweight": pack(q.n.T, q.bits, 0), "qzeros": zeros.view(np.int32), "scales": q.transposed_scale(),
                "g_idx": q.group_of.astype(np.int32)}
    return tensors


def compressed(fmt, bits, group, symmetric, **more):
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False, "actorder": None,
               "strategy": "channel" if group == -1 else "group", "group_size": None if group == -1 else group}
    return {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed",
            "ignore": ["lm_head"], "kv_cache_scheme": None,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None,
                                          "output_activations": None, **more}}}


INT8_INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}


def cases():
    """The cases: name, architecture, quantization_config, the function that writes a layer, and properties of integers."""
    def case(name, config, write, bits, group, symmetric, scale_type="F16", arch="Llama", **more):
        return dict(name=name, config=config, write=write, bits=bits, group=group, symmetric=symmetric,
                    scale_type=scale_type, arch=arch, **more)
    for group, symmetric, scale in ((32, True, "BF16"), (64, False, "BF16"), (128, True, "F16"), (-1, False, "F16")):
        yield case(f"pack_int4_{group}", compressed("pack-quantized", 4, group, symmetric), pack_quantized, 4, group,
                   symmetric, scale, arch="Qwen2" if group == 64 else "Llama")
    yield case("pack_int8_128", compressed("pack-quantized", 8, 128, True), pack_quantized, 8, 128, True, "BF16")
    yield case("pack_int8_zeros", compressed("pack-quantized", 8, 64, False), pack_quantized, 8, 64, False, again=True)
    yield case("pack_int4_mixed_inputs", compressed("pack-quantized", 4, 32, True), pack_quantized, 4, 32, True,
               again=True, mixed_inputs=True)
    yield case("int8_channel", compressed("int-quantized", 8, -1, True, input_activations=INT8_INPUTS), int_quantized,
               8, -1, True, "BF16", arch="Qwen2")
    for group in (64, 128):
        yield case(f"awq_{group}", {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True,
                                    "version": "gemm", "modules_to_not_convert": None}, awq, 4, group, False,
                   arch="Qwen2" if group == 64 else "Llama")

    def gptq_config(bits, group, fmt, desc_act=False):
        return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": desc_act, "sym": False,
                "checkpoint_format": fmt, "static_groups": False, "true_sequential": True}
    yield case("gptq_v1_32", gptq_config(4, 32, "gptq"), gptq(True), 4, 32, False)
    yield case("gptq_v1_symmetric", gptq_config(4, 128, "gptq"), gptq(True), 4, 128, True, arch="Qwen2")
    yield case("gptq_v2_64", gptq_config(4, 64, "gptq_v2"), gptq(False), 4, 64, False)
    yield case("gptq_v2_all", gptq_config(4, -1, "gptq_v2"), gptq(False), 4, -1, False)
    yield case("gptq_int8", gptq_config(8, 128, "gptq"), gptq(True), 8, 128, True)
    yield case("gptq_mixed_inputs", gptq_config(4, 32, "gptq", True), gptq(True), 4, 32, False, again=True,
               mixed_inputs=True)


def write(folder, case, seed):
    rng = np.random.default_rng(seed)
    quantized, plain = {}, {}

    def both(name, values):
        quantized[name] = plain[name] = values.astype(np.float32)

    def layer(name, out, inputs):
        if name in case.get("plain", ()):
            return both(name + ".weight", rng.normal(0, inputs**-0.5, (out, inputs)))
        q = Quantized(rng, (out, inputs), case["bits"], case["group"], case["symmetric"], case["scale_type"],
                      case.get("mixed_inputs", False))
        for end, values in case["write"](q, case["symmetric"], case.get("mixed_inputs", False)).items():
            quantized[f"{name}.{end}"] = values
        plain[name + ".weight"] = q.weights()

    both("model.embed_tokens.weight", rng.normal(0, 1, (VOCABULARY, HIDDEN)))
    both("model.norm.weight", rng.normal(1, 0.1, HIDDEN))
    both("lm_head.weight", rng.normal(0, HIDDEN**-0.5, (VOCABULARY, HIDDEN)))  # published checkpoints do not quantize it
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            both(f"{prefix}{norm}.weight", rng.normal(1, 0.1, HIDDEN))
        for name, out, inputs in (("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
                                  ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                                  ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                                  ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM), ("mlp.gate_proj", MLP, HIDDEN),
                                  ("mlp.up_proj", MLP, HIDDEN), ("mlp.down_proj", HIDDEN, MLP)):
            layer(prefix + name, out, inputs)
            if case["arch"] == "Qwen2" and name[-6] in "qkv":
                both(f"{prefix}{name}.bias", rng.normal(0, 0.3, out))
    config = {"architectures": [case["arch"] + "ForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": MLP,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
              "head_dim": HEAD_DIM, "vocab_size": VOCABULARY, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "float32"}
    for kind, tensors, more in (("quantized", quantized, {"quantization_config": case["config"]}),
                                ("plain", plain, {})):
        target = folder / case["name"] / kind
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps({**config, **more}))
        save(target / "model.safetensors", tensors)
    expected = {"bits": 8 if case.get("again") else case["bits"], "again": bool(case.get("mixed_inputs")),
                "exact": not case.get("again"), "plain": len(case.get("plain", ()))}
    (folder / case["name"] / "expected.json").write_text(json.dumps(expected))


def main():
    folder = pathlib.Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    for seed, case in enumerate(cases()):
        if case["name"] == "pack_int4_32":  # this case has layers on the ignore list
            case["plain"] = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.k_proj")
            case["config"]["ignore"] += case["plain"]
        write(folder, case, seed)


if __name__ == "__main__":
    main()
