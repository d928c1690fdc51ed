#!/usr/bin/env python3
"""Prints a long document with hidden facts, a question and the expected answer as JSON, ready to send to the server.

Needs plain Python. With the `tokenizers` package, tokens are counted exactly ("counted": true), and the prompt has at most
--tokens tokens, within 1 %. Without it, the length is estimated from the mean tokens per sentence (mostly within 2 %), so
the document differs by a few sentences.

  make_prompt.py --tokens 32000 --depth 0.4 --seed 7 | jq .request |
    curl -s http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' -d @- |
    jq -r '.choices[0].message.content'
"""
import argparse
import json
import pathlib

import generator

HERE = pathlib.Path(__file__).resolve().parent
OVERHEAD = 40  # upper bound for the tokens of the chat template and the question


def counter(directory):
    """A function that counts a text's tokens; None if the tokenizers package is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def render(messages):
    """The messages in the checkpoint's chat template, without the begin token, which a server adds to a prompt."""
    turns = "".join(f"<|{m['role']}|>\n{m['content'].strip()}<|end|>\n" for m in messages)
    return turns + "<|assistant|>\n"


def make_prompt(tokens, depth, seed, keys=1, model="demo", count=None, one_message=False):
    sample = generator.make_sample(seed, max(tokens - OVERHEAD, 30), depth, keys, count)
    document, question = sample["document"], sample["question"]
    if one_message:
        messages = [{"role": "user", "content": document + "\n\n" + question}]
    else:
        messages = [{"role": "user", "content": document}, {"role": "user", "content": question}]
    prompt = render(messages)
    common = {"model": model, "max_tokens": 40, "temperature": 0}
    return {
        "expected": sample["answer"], "value": sample["value"], "question": question,
        "prompt_tokens_estimate": count(prompt) + 1 if count else int(
            sum(c in " .,;?\n" for c in document) * generator.TOKENS_PER_SEPARATOR) + OVERHEAD,
        "counted": count is not None,
        "request": {**common, "messages": messages},
        "completions_request": {**common, "prompt": prompt, "apb": {"query": question}},
        "messages": messages, "document": document,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=8000, help="length of the prompt")
    parser.add_argument("--depth", type=float, default=0.5, help="place of the asked fact, 0 = first, 1 = last")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keys", type=int, default=1, help="facts hidden; the one at --depth is asked for")
    parser.add_argument("--model", default="demo", help="model name in the request")
    parser.add_argument("--one-message", action="store_true", help="document and question in the same message")
    parser.add_argument("--stream", action="store_true", help="ask for a streamed answer")
    parser.add_argument("--only", metavar="KEY", help="print this part alone, for example request")
    args = parser.parse_args()
    if args.tokens < 64 or not 0 <= args.depth <= 1 or args.keys < 1 or args.keys * 16 > args.tokens:
        parser.error("--tokens is at least 64 and 16 per key, --depth in [0, 1], --keys at least 1")
    count = counter(HERE / "checkpoint")
    made = make_prompt(args.tokens, args.depth, args.seed, args.keys, args.model, count, args.one_message)
    if args.stream:
        made["request"]["stream"] = made["completions_request"]["stream"] = True
    if args.only and args.only not in made:
        parser.error(f"--only is one of {', '.join(made)}")
    print(json.dumps(made[args.only] if args.only else made))


if __name__ == "__main__":
    main()
