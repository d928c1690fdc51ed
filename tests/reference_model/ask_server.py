#!/usr/bin/env python3
"""Accuracy of a running server: asks it about fresh documents and counts the right answers.

ask_server.py --url http://127.0.0.1:8000 --tokens 32000 --documents 50 --strategy ring_kv. Depths are spread evenly. An
answer is right if it has the secret words that were asked for; `word for word` counts those that are the expected
sentence. Needs plain Python 3 (lengths are estimates without the `tokenizers` package).
"""
import argparse
import json
import time
import urllib.request

import make_prompt


def ask(url, request):
    body = json.dumps(request).encode()
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/chat/completions", body,
                                                       {"Content-Type": "application/json"})) as response:
        return json.load(response)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="begin with this one, to go on with an earlier run")
    parser.add_argument("--keys", type=int, default=1, help="facts hidden in each")
    parser.add_argument("--seed", type=int, default=5 * 10 ** 6)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--log", help="a JSON line per document is added there")
    args = parser.parse_args()
    with urllib.request.urlopen(args.url + "/v1/models") as response:
        model = json.load(response)["data"][0]["id"]
    count = make_prompt.counter(make_prompt.HERE / "checkpoint")
    asked = right = exact = tokens = 0
    begin = time.time()
    for i in range(args.first, args.documents):
        depth = (i + 0.5) / args.documents
        sample = make_prompt.make_prompt(args.tokens, depth, args.seed + i, args.keys, model, count)
        answer = ask(args.url, {**sample["request"], "apb": {"strategy": args.strategy}})
        text = answer["choices"][0]["message"]["content"]
        asked += 1
        right += sample["value"] in text
        exact += text == sample["expected"]
        tokens += answer["usage"]["prompt_tokens"]
        if args.log:
            with open(args.log, "a") as log:
                log.write(json.dumps({"depth": depth, "expected": sample["expected"], "found": text,
                                      "right": sample["value"] in text, "exact": text == sample["expected"]}) + "\n")
        if asked % 10 == 0 or i + 1 == args.documents:
            print(f"{asked} documents of {tokens // asked} tokens, {args.keys} fact(s), strategy {args.strategy}: "
                  f"{right} right ({100 * right / asked:.1f} %), {exact} word for word, {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
