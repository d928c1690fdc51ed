"""The demo model's forward pass for training. The parts of a layer are compiled for flat rows: batches of few long rows and
of many short rows have the same shapes, so nothing is compiled twice. Computes in bf16 on GPUs, from float32 weights.
"""
import torch
import torch.nn.functional as F

from model import rope

_state = {"before": None, "after": None, "compiled": False}
_dtype = torch.bfloat16


def normalized(x, weight, eps=1e-5):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps) * weight).to(_dtype)


def before(x, norm, wq, wk, wv, cos, sin):
    """q and k after RoPE, and v, of flat rows, [n, heads, d]; k and v are repeated for each query head."""
    y = normalized(x, norm)
    n, d = x.shape[0], cos.shape[-1]

    def rotated(z):
        z = z.float().view(n, -1, d)
        half = d // 2
        turned = torch.cat([-z[..., half:], z[..., :half]], -1)
        return (z * cos[:, None] + turned * sin[:, None]).to(_dtype)

    q, k, v = rotated(y @ wq.to(_dtype).T), rotated(y @ wk.to(_dtype).T), (y @ wv.to(_dtype).T).view(n, -1, d)
    group = q.shape[1] // k.shape[1]
    k = k[:, :, None].expand(-1, -1, group, -1).reshape(n, -1, d)
    v = v[:, :, None].expand(-1, -1, group, -1).reshape(n, -1, d)
    return q, k, v


def after(x, attended, wo, norm, gate, up, down):
    x = x + attended @ wo.to(_dtype).T
    y = normalized(x, norm)
    return x + (F.silu(y @ gate.to(_dtype).T) * (y @ up.to(_dtype).T)) @ down.to(_dtype).T


def prepare(device, compiled):
    global _dtype
    _dtype = torch.bfloat16 if device == "cuda" else torch.float32
    _state["before"], _state["after"], _state["compiled"] = before, after, compiled
    if compiled:
        _state["before"], _state["after"] = torch.compile(before, dynamic=False), torch.compile(after, dynamic=False)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def call(name, eager, *args):
    """Calls a compiled part, or the part itself if compiling fails (for example, without a compiler on the machine)."""
    if _state["compiled"] and not eager:
        try:
            return _state[name](*args)
        except Exception as error:  # noqa: BLE001: any error of the compiler; an error of ours is raised again below
            print(f"fast_model: not compiled: {str(error)[:300]}", flush=True)
            _state["compiled"] = False
    return {"before": before, "after": after}[name](*args)


def forward(model, ids, positions, tap=None, eager=False):
    """The states after each layer, flat [rows, hidden], and the last of them. `tap` gets x, q, k of each layer's flat rows."""
    size, length = ids.shape
    c = model.c
    cos, sin = rope(positions.flatten(), c["head_dim"], c["rope_theta"])
    x = F.embedding(ids.flatten(), model.model.embed_tokens.weight).to(_dtype)
    states = []
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        q, k, v = call("before", eager, x, layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, cos, sin)
        if tap is not None:
            tap.append((x, q, k))
        heads = [t.view(size, length, -1, c["head_dim"]).transpose(1, 2) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        y = y.transpose(1, 2).reshape(size * length, -1)
        x = call("after", eager, x, y, a.o_proj.weight, layer.post_attention_layernorm.weight, m.gate_proj.weight,
                 m.up_proj.weight, m.down_proj.weight)
        states.append(x)
    return states, x
