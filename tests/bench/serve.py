#!/usr/bin/env python3
"""Load generator: sends streamed completions to a running server and prints TTFT, ITL and percentiles.

    serve.py --url http://127.0.0.1:8000 --lengths 128,8192 --concurrency 1,8

Prompts are token ids, so lengths are exact. Generation ignores the end token, so every request has --max-tokens tokens.
`overhead` is the difference between the client's times and the workers': TTFT minus queue and prefill time, and the time
per token minus the workers' decode time. Python's standard library only. The client is one process and costs about
0.05 ms per token.
"""
import argparse
import asyncio
import json
import random
import time
import urllib.parse
import urllib.request


class Result:
    def __init__(self):
        self.start = time.perf_counter()
        self.tokens = []  # arrival times
        self.timings = None
        self.error = None
        self.second = None  # the Result of the second turn (--follow-up)

    def ttft(self):
        return (self.tokens[0] - self.start) * 1e3

    def gaps(self):
        return [(b - a) * 1e3 for a, b in zip(self.tokens, self.tokens[1:])]


async def read_events(reader):
    """Yields the data of each server-sent event of a chunked response."""
    buffer = b""
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        if size == 0:
            return
        buffer += (await reader.readexactly(size + 2))[:-2]
        while b"\n\n" in buffer:
            event, buffer = buffer.split(b"\n\n", 1)
            if event.startswith(b"data: "):
                yield event[6:]


async def complete(address, body, key):
    result = Result()
    try:
        reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
        head = (f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n" + (f"Authorization: Bearer {key}\r\n" if key else ""))
        result.start = time.perf_counter()
        writer.write(head.encode() + b"\r\n" + body)
        status = await reader.readline()
        while (await reader.readline()) not in (b"\r\n", b""):
            pass
        if b" 200 " not in status:
            result.error = (status + await reader.read()).decode(errors="replace")[:300]
        else:
            async for data in read_events(reader):
                now = time.perf_counter()
                if data == b"[DONE]":
                    break
                event = json.loads(data)
                if "error" in event:
                    result.error = str(event["error"])
                    break
                result.timings = event.get("timings") or result.timings
                if event["choices"] and event["choices"][0].get("finish_reason") is None:
                    result.tokens.append(now)
        writer.close()
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        result.error = repr(error)
    return result


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def summary(results, seconds, length, concurrency, strategy):
    good = [r for r in results if r.error is None and r.tokens and r.timings]
    row = {"prompt_tokens": length, "concurrency": concurrency, "strategy": strategy, "requests": len(results),
           "errors": len(results) - len(good), "seconds": seconds}
    if not good:
        return row
    ttft = [r.ttft() for r in good]
    gaps = [g for r in good for g in r.gaps()]
    overhead = [r.ttft() - r.timings["queue_ms"] - r.timings["prompt_ms"] for r in good]
    generated = sum(len(r.tokens) for r in good)
    token_overhead = [((r.tokens[-1] - r.tokens[0]) * 1e3 - r.timings["predicted_ms"]) / (len(r.tokens) - 1)
                      for r in good if len(r.tokens) > 1]
    for name, values in (("ttft_ms", ttft), ("itl_ms", gaps)):
        for label, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            row[f"{name}_{label}"] = percentile(values, share)
    row["ttft_overhead_ms_p50"] = percentile(overhead, 0.5)
    row["token_overhead_ms_p50"] = percentile(token_overhead, 0.5)
    second = [r.second for r in good if r.second and r.second.error is None and r.second.tokens]
    if second:
        row["second_turn_ttft_ms_p50"] = percentile([r.ttft() for r in second], 0.5)
        row["second_turn_cached_tokens_p50"] = percentile([r.timings["cache_n"] for r in second], 0.5)
    row["requests_per_second"] = len(good) / seconds
    row["generated_tokens_per_second"] = generated / seconds
    row["prompt_tokens_per_second"] = length * len(good) / seconds
    return row


async def measure(args, address, length, concurrency, strategy, model, vocabulary):
    rng = random.Random(f"{args.seed} {length} {concurrency} {strategy}")  # prompts of two lines share no prefix
    queue = list(range(args.requests or 4 * concurrency))
    results = []

    async def client():
        while queue:
            queue.pop()
            ids = [rng.randrange(300, vocabulary) for _ in range(length)]
            body = {"model": model, "prompt": ids, "max_tokens": args.max_tokens, "ignore_eos": True, "temperature": 0,
                    "stream": True, "apb": {"strategy": strategy}}
            results.append(await complete(address, json.dumps(body).encode(), args.api_key))
            if args.follow_up:
                body["prompt"] = ids + [rng.randrange(300, vocabulary) for _ in range(args.follow_up)]
                results[-1].second = await complete(address, json.dumps(body).encode(), args.api_key)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return summary(results, time.perf_counter() - start, length, concurrency, strategy), results


COLUMNS = [("prompt", "prompt_tokens", "d"), ("conc", "concurrency", "d"), ("strategy", "strategy", "s"), ("req", "requests", "d"),
           ("err", "errors", "d"), ("TTFT p50", "ttft_ms_p50", ".1f"), ("p90", "ttft_ms_p90", ".1f"), ("p99", "ttft_ms_p99", ".1f"),
           ("ITL p50", "itl_ms_p50", ".2f"), ("p90", "itl_ms_p90", ".2f"), ("p99", "itl_ms_p99", ".2f"),
           ("over TTFT", "ttft_overhead_ms_p50", ".2f"), ("over tok", "token_overhead_ms_p50", ".3f"),
           ("gen tok/s", "generated_tokens_per_second", ".0f"), ("prompt tok/s", "prompt_tokens_per_second", ".0f"),
           ("2nd TTFT", "second_turn_ttft_ms_p50", ".1f"), ("cached", "second_turn_cached_tokens_p50", ".0f")]


def line(cells):
    return "| " + " | ".join(f"{cell:>8}" for cell in cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = lambda text: [int(x) for x in text.split(",")]
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--lengths", type=numbers, default=[128, 2048, 8192], help="prompt tokens")
    parser.add_argument("--concurrency", type=numbers, default=[1, 4])
    parser.add_argument("--strategies", default="auto")
    parser.add_argument("--requests", type=int, default=0, help="of each line; 0: four times the concurrency")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--follow-up", type=int, default=0, metavar="N",
                        help="after each answer a second turn: the same prompt and N more tokens")
    parser.add_argument("--vocabulary", type=int, default=2048, help="token ids of prompts are below")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    url = urllib.parse.urlparse(args.url)
    address = (url.hostname, url.port or 80)
    model = json.load(urllib.request.urlopen(args.url + "/v1/models"))["data"][0]["id"]
    rows, failed = [], None
    print("times in ms\n" + line([c[0] for c in COLUMNS]) + "\n" + line(["---:"] * len(COLUMNS)))
    for strategy in args.strategies.split(","):
        for length in args.lengths:
            for concurrency in args.concurrency:
                row, results = asyncio.run(measure(args, address, length, concurrency, strategy, model, args.vocabulary))
                rows.append(row)
                failed = next((r.error for r in results if r.error), failed)
                print(line([format(row[key], spec) if key in row else "-" for _, key, spec in COLUMNS]), flush=True)
    if failed:
        print("an error:", failed)
    if args.json:
        with open(args.json, "w") as out:
            json.dump({"benchmark": "serve", "model": model, "max_tokens": args.max_tokens, "rows": rows}, out, indent=1)


if __name__ == "__main__":
    main()
