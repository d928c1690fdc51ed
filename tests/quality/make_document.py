#!/usr/bin/env python3
"""Prints documents with a question and the answer as JSON lines: make_document.py khop --length 8192 --set num_hops=4.

tasks.py describes the tasks and their parameters. Lengths are counted with the `tokenizers` package if it is installed,
and estimated as one token per word or mark otherwise.
"""
import argparse
import json
import pathlib
import re
import sys

import tasks

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "reference_model"))
import make_prompt  # noqa: E402

CHECKPOINT = make_prompt.HERE / "checkpoint"


def estimate(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def parameter(text):
    name, _, value = text.partition("=")
    for convert in (int, float):
        try:
            return name, convert(value)
        except ValueError:
            pass
    return name, value


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=sorted(tasks.PRESETS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1, help="documents, with seeds one after the other")
    parser.add_argument("--length", type=int, default=8192, help="tokens of a document, at most")
    parser.add_argument("--depth", type=float, help="0 = first, 1 = last; default: spread evenly over the documents")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the task")
    args = parser.parse_args()
    count = make_prompt.counter(CHECKPOINT) or estimate
    for i in range(args.count):
        depth = args.depth if args.depth is not None else (
            1.0 if args.task == "khop" else (i + 0.5) / args.count)
        try:
            made = tasks.make(args.task, args.seed + i, args.length, depth, count, **dict(map(parameter, args.set)))
        except (TypeError, ValueError) as error:
            parser.error(f"{args.task}: {error}")
        print(json.dumps(made))


if __name__ == "__main__":
    main()
