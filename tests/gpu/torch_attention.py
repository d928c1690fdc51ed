"""Goal: the speed of PyTorch's causal attention, to compare with. Method: times its back-ends at the shapes of cuda_bench;
prints TFLOP/s and appends one JSON line for each to FILE.json.
usage: torch_attention.py FILE.json"""

import json
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS = 32, 8
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def seconds(call):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for i in range(11):
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times[2:])[4]


def main():
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        for d in (64, 128):
            for n in (4096, 8192, 16384, 32768, 65536, 131072):
                q = torch.randn(1, HEADS, n, d, device="cuda", dtype=torch.bfloat16)
                k, v = (torch.randn(1, KV_HEADS, n, d, device="cuda", dtype=torch.bfloat16) for _ in "kv")
                for name, backend in BACKENDS.items():
                    try:
                        with sdpa_kernel(backend):
                            time = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(
                                q, k, v, is_causal=True, enable_gqa=True))
                    except RuntimeError as error:
                        print(f"torch {name}, d {d}, {n}: {str(error).splitlines()[0]}")
                        continue
                    rate = 4 * HEADS * d * 0.5 * n * (n + 1) / time / 1e12
                    label = f"torch {name} causal, d {d}, {n}"
                    print(f"{label:64} {rate:9.1f} TFLOP/s", flush=True)
                    file.write(json.dumps({"name": label, "value": rate, "unit": "TFLOP/s"}) + "\n")


if __name__ == "__main__":
    main()
