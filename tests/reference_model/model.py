"""A minimal Llama in PyTorch, for training the demo model. Parameter names are Hugging Face's."""
import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2304, "hidden_size": 256,
    "intermediate_size": 768, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 1e12, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 5, "initializer_range": 0.05, "torch_dtype": "bfloat16", "use_cache": True,
}
# Heads of the first two layers that initially look this many tokens back: in layer 0 at the last four words; in layer 1,
# from the end of a sentence "The key of A B is that of C D.", at the words before its "is" (or before a root's "is").
FAST_PLANES = 8  # rotary planes that separate neighbouring rows
LOOK_BACK = {0: (1, 2, 3, 4), 1: (3, 5)}


def rope(positions, head_dim, theta):
    inv = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    angle = positions.double()[..., None] * inv
    angle = torch.cat([angle, angle], -1)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.nq, self.nkv, self.d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        h = c["hidden_size"]
        self.q_proj = nn.Linear(h, self.nq * self.d, bias=False)
        self.k_proj = nn.Linear(h, self.nkv * self.d, bias=False)
        self.v_proj = nn.Linear(h, self.nkv * self.d, bias=False)
        self.o_proj = nn.Linear(self.nq * self.d, h, bias=False)

    def forward(self, x, cos, sin, tap=None, past=None, rows=None):
        b, t, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = lambda y, n: y.view(b, t, n, self.d).transpose(1, 2)
        qr = rotate(heads(q, self.nq), cos, sin).to(v.dtype)
        kr = rotate(heads(k, self.nkv), cos, sin).to(v.dtype)
        if tap is not None:
            tap.append((torch.cat([q, k, v], -1), qr, kr))
        v, mask = heads(v, self.nkv), None
        if past is not None:
            seen = past[0].shape[2]
            kr, v = torch.cat([past[0], kr], 2), torch.cat([past[1], v], 2)
            mask = torch.ones(t, seen + t, dtype=torch.bool).tril(seen)
        elif rows is not None:
            qr = qr.gather(2, rows[:, None, :, None].expand(-1, self.nq, -1, self.d))
            mask = (torch.arange(t) <= rows[..., None])[:, None]
        g = self.nq // self.nkv
        y = F.scaled_dot_product_attention(qr, kr.repeat_interleave(g, 1), v.repeat_interleave(g, 1), mask,
                                           is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(b, qr.shape[2], -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        h, m = c["hidden_size"], c["intermediate_size"]
        self.gate_proj = nn.Linear(h, m, bias=False)
        self.up_proj = nn.Linear(h, m, bias=False)
        self.down_proj = nn.Linear(m, h, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RmsNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        x = x.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, cos, sin, tap=None, past=None, rows=None):
        """With `rows` [b, r], the result has only those rows."""
        y = self.self_attn(self.input_layernorm(x), cos, sin, tap, past, rows)
        if rows is not None:
            x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RmsNorm(c["hidden_size"], c["rms_norm_eps"])


@torch.no_grad()
def initialize(model, c):
    """Random weights from which the model learns to look up facts within minutes instead of hours.

    At first the embeddings dominate the residual stream (they are larger than the layers' outputs), and all embeddings
    share one direction. Along it, the heads in LOOK_BACK are rotated so that they look at the token that many places back:
    their scores on the four fastest rotary planes peak there. All other heads look for rows like their own at any distance
    (query = key projection, on slow planes only). Heads pass on what they see (output = transposed value projection).
    Learning such heads from random weights takes the most time.
    """
    h, d = c["hidden_size"], c["head_dim"]
    for name, p in model.named_parameters():
        if p.dim() == 2:
            nn.init.normal_(p, std=0.01 if "down_proj" in name else 0.05)
    shared = torch.randn(h).sign()
    embedding = model.model.embed_tokens.weight
    embedding.normal_(std=0.2).add_(0.15 * shared)
    model.model.norm.weight.fill_(0.3)
    direction = shared / (0.6 * h)  # its dot product with a normalized row is about 1
    half = d // 2
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        group = attention.nq // attention.nkv
        for j in range(attention.nq):
            kv = slice(j // group * d, (j // group + 1) * d)
            attention.o_proj.weight[:, j * d:(j + 1) * d] += 0.2 * attention.v_proj.weight[kv].T
            if j < len(LOOK_BACK.get(index, ())):
                continue
            for plane in list(range(FAST_PLANES)) + list(range(half, half + FAST_PLANES)):
                attention.k_proj.weight[kv.start + plane] *= 0.2
            attention.q_proj.weight[j * d:(j + 1) * d] *= 0.3
            attention.q_proj.weight[j * d:(j + 1) * d] += attention.k_proj.weight[kv]
    strength = 6.0
    for index, places in LOOK_BACK.items():
        attention = model.model.layers[index].self_attn
        group = attention.nq // attention.nkv
        for plane in range(4):
            frequency = c["rope_theta"] ** (-plane / half)
            for j, back in enumerate(places):
                kv = j // group
                attention.q_proj.weight[j * d + plane] = strength * math.cos(back * frequency) * direction
                attention.q_proj.weight[j * d + plane + half] = -strength * math.sin(back * frequency) * direction
                attention.k_proj.weight[kv * d + plane] = strength * direction
                attention.k_proj.weight[kv * d + plane + half] = 0


def orthonormal(rows, columns):
    return torch.linalg.qr(torch.randn(rows, columns))[0]


@torch.no_grad()
def initialize_chains(model, c):
    """Initializes the first head of each layer as one that roughly follows chains of keys.

    The residual stream has random subspaces of one head's width. The last row of "The key of A B is that of C D." gets the
    code of C D in layer 0 and the code of A B in layer 1, both by the heads that look back. Each later layer looks for the
    sentence whose A B is the C D that the layer before led to, and takes the name or value that this sentence leads to: 2,
    4, 8, 16 links. The subspaces overlap, and nothing separates values from names, so this is only a beginning.
    """
    h, d = c["hidden_size"], c["head_dim"]
    half = d // 2
    layers = [layer.self_attn for layer in model.model.layers]
    last, first, subject, *leads = *orthonormal(h, h).split(d, 1)[:4], *(orthonormal(h, d) for _ in layers[4:])
    mix = orthonormal(d, d)
    code = torch.cat([mix[:half] @ last.T, mix[half:] @ first.T])  # code of the two words before a row
    slow = torch.arange(half - 20, half)
    planes = torch.cat([slow, half + slow])  # 20 numbers of each word's code, on rotary planes that hardly rotate
    chosen = torch.cat([torch.arange(20), half + torch.arange(20)])
    gain, sharp = 0.8, 2.4
    layers[0].o_proj.weight[:, :d], layers[0].o_proj.weight[:, d:2 * d] = gain * last, gain * first
    layers[1].v_proj.weight[:d] = code
    layers[1].o_proj.weight[:, :d] = layers[1].o_proj.weight[:, d:2 * d] = gain * subject
    asked = code
    for attention, found in zip(layers[2:-1], leads):
        attention.q_proj.weight[planes] = sharp * asked[chosen]
        attention.k_proj.weight[planes] = sharp * subject.T[chosen]
        attention.v_proj.weight[:d] = asked
        attention.o_proj.weight[:, :d] = gain * found
        asked = found.T
    layers[-1].q_proj.weight[planes] = sharp * code[chosen]  # the row before an answer looks for the name before it
    layers[-1].k_proj.weight[planes] = sharp * subject.T[chosen]
    layers[-1].v_proj.weight[:d] = asked
    decode = torch.zeros(h, d)
    decode[:, half:] = layers[0].v_proj.weight[:d].T @ mix[half:].T
    layers[-1].o_proj.weight[:, :d] = 0.3 * decode


class Llama(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c, self.model = c, Body(c)
        initialize(self, c)
        initialize_chains(self, c)

    def forward(self, ids, positions, keep=None, tap=None, past=None):
        """Logits [rows, vocab] of the rows that `keep` (bool [b, t]) selects; of all rows if it is None.

        `tap` (a list) receives for each layer q, k, v before RoPE [b, t, width], and q and k after it [b, heads, t, d].
        `past` has for each layer k after RoPE and v of earlier rows; not together with `keep`.
        """
        cos, sin = rope(positions, self.c["head_dim"], self.c["rope_theta"])
        cos, sin = cos[:, None], sin[:, None]
        x = self.model.embed_tokens(ids)
        for i, layer in enumerate(self.model.layers[:-1]):
            x = layer(x, cos, sin, tap, past[i] if past else None)
        if keep is None:
            x = self.model.layers[-1](x, cos, sin, tap, past[-1] if past else None)
        else:  # the last layer computes only the kept rows
            count = keep.sum(1)
            rows = keep.int().argsort(dim=1, descending=True, stable=True)[:, :max(1, int(count.max()))]
            x = self.model.layers[-1](x, cos, sin, tap, None, rows)[torch.arange(rows.shape[1]) < count[:, None]]
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)
