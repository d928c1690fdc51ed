#!/usr/bin/env python3
"""Accuracy of a running server: asks it about fresh documents and counts the right answers.

    ask_server.py --url http://127.0.0.1:8000 --tokens 32000 --documents 50 --strategy ring_kv

Depths are spread evenly. An answer is right if it contains the secret words that the question asks for; `word for word`
counts the answers that are the expected sentence. With --questions 3, three questions about each document are asked in
turn; with --context, the document is computed once, as a context. Needs plain Python 3. Without the `tokenizers` package,
lengths are estimates.
"""
import argparse
import json
import time
import urllib.request

import generator
import make_prompt


def call(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"},
                                                       method=method)) as response:
        return json.load(response)


class Asker:
    """Asks the questions about each document, as the command line says."""

    def __init__(self, args):
        self.args = args
        self.model = call(args.url + "/v1/models")["data"][0]["id"]
        self.count = make_prompt.counter(make_prompt.HERE / "checkpoint")
        self.tokens = 0

    def document(self, i):
        """The text of document i, and [(question, expected answer, its secret words)]."""
        args = self.args
        depths = [((i + 0.5) / args.documents + k / args.questions) % 1 for k in range(args.questions)]
        text, facts = generator.make_asked(args.seed + i, max(args.tokens - make_prompt.OVERHEAD, 30), depths, args.keys,
                                           self.count)
        return text, [(generator.question_text(n), generator.answer_text(n, v), v) for n, v in facts]

    def answers(self, i):
        """Yields for each question the expected answer, its secret words, and the server's answer."""
        args, (text, asked) = self.args, self.document(i)
        apb = {"strategy": args.strategy, "compressor": args.compressor}
        common = {"model": self.model, "max_tokens": 40, "temperature": 0}
        context = None
        if args.context:
            hint = {"query": asked[0][0]} if args.hint else {}
            context = call(args.url + "/v1/contexts", {
                "messages": [{"role": "user", "content": text}], "apb": {**apb, **hint}})["id"]
        for question, expected, value in asked:
            messages = [{"role": "user", "content": question}]
            if context:
                body = {**common, "context": context, "messages": messages}
            elif args.one_message:
                body = {**common, "messages": [{"role": "user", "content": text + "\n\n" + question}],
                        "apb": {**apb, "query": question}}
            else:
                body = {**common, "messages": [{"role": "user", "content": text}] + messages, "apb": apb}
            answer = call(args.url + "/v1/chat/completions", body)
            self.tokens += answer["usage"]["prompt_tokens"]
            yield expected, value, answer["choices"][0]["message"]["content"]
        if context:
            call(args.url + "/v1/contexts/" + context, method="DELETE")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="begin with this one, to go on with an earlier run")
    parser.add_argument("--keys", type=int, default=1, help="facts hidden in each, at least those asked for")
    parser.add_argument("--questions", type=int, default=1, help="facts asked for, one after the other")
    parser.add_argument("--context", action="store_true", help="compute each document once, as a context")
    parser.add_argument("--hint", action="store_true", help="with --context: give it the first question as apb.query")
    parser.add_argument("--one-message", action="store_true", help="document and question in the same message")
    parser.add_argument("--seed", type=int, default=5 * 10 ** 6)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--compressor", default="", help="default: the server's")
    parser.add_argument("--log", help="a JSON line per answer is added there")
    args = parser.parse_args()
    asker = Asker(args)
    right, exact = [0] * args.questions, [0] * args.questions
    begin = time.time()
    for i in range(args.first, args.documents):
        for k, (expected, value, text) in enumerate(asker.answers(i)):
            right[k] += value in text
            exact[k] += text == expected
            if args.log:
                with open(args.log, "a") as log:
                    log.write(json.dumps({"document": i, "question": k, "depth": (i + 0.5) / args.documents,
                                          "expected": expected, "found": text, "right": value in text,
                                          "exact": text == expected}) + "\n")
        asked = i + 1 - args.first
        if asked % 10 == 0 or i + 1 == args.documents:
            numbers = "; ".join(f"{r} right ({100 * r / asked:.1f} %), {e} word for word"
                                for r, e in zip(right, exact))
            print(f"{asked} documents of {asker.tokens // (asked * args.questions)} tokens, {args.keys} fact(s), "
                  f"strategy {args.strategy}: {numbers}, {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
