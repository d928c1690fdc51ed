"""Prints the main numbers of run.sh next to their targets: report.py results.json
A dash stands for a number that was not measured."""

import json
import sys


def main():
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            values = {row["name"]: row for row in json.load(file)}
    except (OSError, ValueError):
        print("no numbers yet")
        return

    def value(name):
        return values[name]["value"] if name in values else None

    def share(name):
        row = values.get(name, {})
        return 100 * row["value"] / row["ceiling"] if row.get("ceiling") else None

    torch = [value(f"torch {b} causal, d 128, 32768") for b in ("flash", "cudnn")]
    of = ", 131072 tokens on 8 hosts"
    rows = [
        ("attention, 32K causal, d 128, TFLOP/s", value("prefill causal, d 128, 32768"), ">= 550"),
        ("  PyTorch's best there, TFLOP/s", max((t for t in torch if t), default=None), ""),
        ("decode attention, 64K keys, % of copy bandwidth", share("paged, d 128, 1 sequences x 1 rows x 65536 slots"), ">= 85"),
        ("decode step of the 8B shape, 1 x 64K keys, ms as a graph", value("decode, 1 x 65536 tokens, a step as a graph"), ""),
        ("  the same operation by operation, ms", value("decode, 1 x 65536 tokens, a step by operations"), ""),
        ("  of copy bandwidth, %", share("decode, 1 x 65536 tokens, it reads"), ""),
        ("prefill of the 8B shape, 32K, % of matrix peak", share("prefill of 32768 tokens, whole model rate"), ">= 60"),
        ("prefill of the 8B shape, 128K, % of matrix peak", share("prefill of 131072 tokens, whole model rate"), ""),
    ]
    for link in ("NVLink 400 GB/s, 10 us", "network 200 Gbit/s, 20 us"):
        for other, paper in (("full", 9.2), ("ring_kv", 4.2), ("star", 1.6)):
            name = f"apb is faster than {other}{of}, {link}"
            rows.append((f"{name}, times", value(name), f"paper {paper}"))
    for name, number, asked in rows:
        print(f"{name:88} {'-' if number is None else f'{number:.2f}':>9}  {asked}")


if __name__ == "__main__":
    main()
