#!/usr/bin/env python3
"""Goal: a server of the demo model answers correctly. Method: asks COUNT questions about facts hidden in documents of
TOKENS tokens, and fails unless all answers are the expected ones: answers.py URL STRATEGY TOKENS COUNT
Python's standard library only."""
import json
import pathlib
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference_model"))
from make_prompt import make_prompt  # noqa: E402


def main():
    url, strategy, tokens, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    right = 0
    for i in range(count):
        made = make_prompt(tokens, (i + 0.5) / count, seed=5 * 10 ** 6 + i)
        body = json.dumps({**made["request"], "apb": {"strategy": strategy}}).encode()
        request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)["choices"][0]["message"]["content"].strip()
        right += answer == made["expected"].strip()
        if answer != made["expected"].strip():
            print(f"expected {made['expected']!r}, not {answer!r}")
    print(f"{strategy}, {tokens} tokens: {right} of {count} answers right")
    return 0 if right == count else 1


if __name__ == "__main__":
    sys.exit(main())
