"""Goal: our prefill computes APB, Star and full attention as docs/algorithms.md defines them. Method: the algorithms are
written once more, in NumPy float64, with hosts that share nothing (each has its own copy of the anchor), and compared
with the hidden states that `prefill_dump` writes. Usage: apb_reference.py PATH_OF_PREFILL_DUMP"""

import json
import subprocess
import sys
import tempfile

import numpy as np

TOLERANCE = 1e-3  # float32 against float64, hidden states of size 1 to 10


def rms_norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def rope(x, positions, theta):  # x [T, heads, d]; pairs (i, i + d / 2)
    half = x.shape[2] // 2
    angle = positions[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, visible):  # q [T, n_q, d], k and v [S, n_kv, d], visible [T, S]
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[2])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v)


def random_scores(layer, tokens, heads):
    mask, out = (1 << 64) - 1, np.zeros((len(tokens), heads))
    for i, token in enumerate(tokens):
        for head in range(heads):
            z = ((token * 4099 + head) * 1031 + layer + 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            out[i, head] = (z ^ (z >> 31)) >> 40
    return out


def max_pool(scores, window=5):
    reach, rows = window // 2, len(scores)
    return np.stack([scores[max(0, t - reach):min(rows, t + reach + 1)].max(0) for t in range(rows)])


class Host:
    """One host. Its rows are the anchor's, then its shard's; `anchor` is the number of anchor rows."""

    def __init__(self, tokens, positions, anchor, embedding):
        self.x, self.positions, self.anchor = embedding[tokens], np.array(positions, dtype=float), anchor
        self.first_token = positions[anchor] if len(tokens) > anchor else 0

    def project(self, w, m):
        y, d = rms_norm(self.x, w["input_norm"], m["epsilon"]), m["head_dim"]
        q, k, v = (y @ w[name].T + w[name + "_bias"] for name in ("q", "k", "v"))
        self.qkv = np.concatenate([q, k, v], 1)  # with biases, before RoPE
        self.q = rope(q.reshape(len(y), m["query_heads"], d), self.positions, m["theta"])
        self.k = rope(k.reshape(len(y), m["kv_heads"], d), self.positions, m["theta"])
        self.v = v.reshape(len(y), m["kv_heads"], d)

    def select(self, layer, w, case, count, barred, query):
        """K and V of the `count` best tokens of the shard, for each KV head. The first `barred` tokens are left out."""
        heads = self.k.shape[1]
        if case["compressor"] == "retaining_heads":
            scores = max_pool(silu(self.qkv @ w["fc1"].T) @ w["fc2"].T)
        elif case["compressor"] == "query_aware":
            group = self.q.shape[1] // heads
            mean = query.reshape(len(query), heads, group, -1).mean((0, 2)) if len(query) else np.zeros_like(self.k[0])
            scores = max_pool(np.einsum("tjd,jd->tj", self.k, mean))
        else:
            block = len(self.x) - self.anchor
            scores = np.zeros((len(self.x), heads))
            scores[self.anchor:] = random_scores(layer, range(self.first_token, self.first_token + block), heads)
        first = self.anchor + barred
        best = first + np.argsort(-scores[first:], axis=0, kind="stable")[:count]  # [count, heads]; ties: lower row
        return np.take_along_axis(self.k, best[..., None], 0), np.take_along_axis(self.v, best[..., None], 0)

    def finish(self, w, m, passing):
        rows, keys = len(self.x), len(passing[0])
        local = np.tril(np.ones((rows, rows), bool))  # the anchor comes first, so the shard's rows see all of it
        to_passing = np.repeat(np.arange(rows)[:, None] >= self.anchor, keys, 1)
        out = attend(self.q, np.concatenate([passing[0], self.k]), np.concatenate([passing[1], self.v]),
                     np.concatenate([to_passing, local], 1))
        self.x = self.x + out.reshape(rows, -1) @ w["o"].T
        y = rms_norm(self.x, w["post_norm"], m["epsilon"])
        self.x = self.x + (silu(y @ w["gate"].T) * (y @ w["up"].T)) @ w["down"].T


def block_lengths(n, hosts, anchor, passing, row_cost):
    """Shard lengths: equal, or (row_cost > 0) the longest ones that cost no more than a common budget."""
    if row_cost == 0:
        b = -(-n // hosts)
        return [max(0, min(b, n - h * b)) for h in range(hosts)]

    def cost(h, b):
        seen = anchor if h else 0
        return 0 if b == 0 else b * (row_cost + seen + h * passing + b / 2) + seen * (row_cost + seen / 2)

    def lengths(budget):
        return [max(b for b in range(n + 1) if cost(h, b) <= budget) for h in range(hosts)]
    budget = max(c for c in (cost(h, b) for h in range(hosts) for b in range(n + 1)) if sum(lengths(c)) <= n)
    first, *others = lengths(budget)
    return [n - sum(others)] + others


def prefill(m, case):
    document, query = case["document"], case["query"]
    n, count = len(document), 1 if case["strategy"] == "full" else case["hosts"]
    b = -(-n // count)
    if case["strategy"] == "star":
        length, query, s, passing_length = b, [], 0, 0
    else:
        length, s, passing_length = min(max(case["anchor_length"], 0), b), min(case["insert"], b), case["passing_length"]
        kept = max(0, min(len(query), length - s))
        query = query[len(query) - kept:]
    in_anchor = length - len(query)  # number of document tokens in the anchor
    s = min(s, in_anchor)
    anchor = document[:s] + query + document[s:in_anchor]
    hosts, begin = [], 0
    for h, block in enumerate(block_lengths(n, count, length, min(passing_length, b), case["row_cost"])):
        tokens, own = document[begin:begin + block], anchor if h > 0 else []
        if tokens:
            hosts.append(Host(own + tokens, list(range(len(own))) + list(range(begin, begin + block)),
                              len(own), m["embedding"]))
        begin += block
    alone = Host(anchor, list(range(len(anchor))), len(anchor), m["embedding"])  # host 0 scores by its query rows
    nothing = np.zeros((2, 0, m["kv_heads"], m["head_dim"]))
    for layer, w in enumerate(m["layers"]):
        parts = []
        for host in hosts + [alone]:
            host.project(w, m)
        for h, host in enumerate(hosts[:-1]):
            barred = in_anchor if h == 0 else 0
            best = min(passing_length, len(host.x) - host.anchor - barred)
            if best > 0:
                parts.append((h, host.select(layer, w, case, best, barred, alone.q[s:s + len(query)])))
        for h, host in enumerate(hosts):
            earlier = [part for source, part in parts if source < h]
            host.finish(w, m, [np.concatenate([nothing[i]] + [part[i] for part in earlier]) for i in (0, 1)])
        if anchor:
            alone.finish(w, m, nothing)
    return np.concatenate([host.x[host.anchor:] for host in hosts])


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], folder], check=True)
        with open(folder + "/manifest.json") as file:
            manifest = json.load(file)
        data = np.fromfile(folder + "/data.bin", dtype=np.float32)

    def array(entry):
        return data[entry["offset"]:][:int(np.prod(entry["shape"]))].reshape(entry["shape"]).astype(np.float64)

    model = manifest["model"]
    model["embedding"] = array(model["embedding"])
    model["layers"] = [{name: array(entry) for name, entry in layer.items()} for layer in model["layers"]]
    worst = {case["name"]: abs(array(case["hidden"]) - prefill(model, case)).max() for case in manifest["cases"]}
    for name, difference in worst.items():
        print(f"{difference:.2e} {'ok' if difference < TOLERANCE else 'WRONG'} {name}")
    return 0 if worst and max(worst.values()) < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
