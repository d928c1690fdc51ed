"""Goal: every prompt (plain, chat, continued from a context, or a later turn of one) has the tokens that the tokenizers
package makes of its whole text, wherever the query begins; and that place divides document and query.
Method: prompt_cli answers as the server would, for 10,000 random texts with each checkpoint; this file has its own copies of
both chat templates.
Usage: prompt_test.py prompt_cli checkpoint-folder ... (missing folders are skipped, except the first)"""
import json
import random
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "text"))
import text_cases  # noqa: E402

TEXTS = 10_000
BLANK = " \t\r\n\f\v"  # a context's last message does not end with these
BREAKS = ["\n\n", "\n\n", "\r\n\r\n", "\n \n", "\n", "\n\n\n", "\n\n\t", "\n\n  ", " ", "", "\t", "\r\n", "\u3000", ".\n\n", "  \n\n"]


def demo_template(messages, generate=True):
    """Pairs of template text, which may hold special tokens, and the user's text after it, which may not."""
    parts = [("<|begin|>", "")]
    for message in messages:
        parts += [(f"<|{message['role']}|>\n", message["content"].strip()), ("<|end|>\n", "")]
    return parts + ([("<|assistant|>\n", "")] if generate else [])


def smollm2_template(messages, generate=True):
    parts = []
    if messages[0]["role"] != "system":
        parts.append(("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n", ""))
    for message in messages:
        parts += [(f"<|im_start|>{message['role']}\n", message["content"]), ("<|im_end|>\n", "")]
    return parts + ([("<|im_start|>assistant\n", "")] if generate else [])


class Oracle:
    def __init__(self, folder):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.special = [t.content for t in self.tokenizer.get_added_tokens_decoder().values()]
        self.template = smollm2_template if "<|im_start|>" in self.special else demo_template

    def plain(self, text, add=True):
        self.tokenizer.encode_special_tokens = False
        return self.tokenizer.encode(text, add_special_tokens=add).ids

    def chat(self, parts):
        """The ids of a rendered chat, in which a user's special tokens are plain text. The package cannot be told so. But a
        special token cuts its text, so the text between two of the template's special tokens is encoded on its own, with
        all special tokens in it as text."""
        text = "".join(a + b for a, b in parts)
        if not any(s in user for _, user in parts for s in self.special):
            return self.plain(text, add=False)
        ids, pending = [], ""

        def flush():
            self.tokenizer.encode_special_tokens = True
            ids.extend(self.tokenizer.encode(pending, add_special_tokens=False).ids)
        for template, user in parts:
            while template:
                at, token = min(((template.find(s), s) for s in self.special if s in template), default=(-1, ""))
                if at < 0:
                    break
                pending += template[:at]
                flush()
                pending, template = "", template[at + len(token):]
                ids.append(self.tokenizer.token_to_id(token))
            pending += template + user
        flush()
        return ids

    def border(self, text, at):
        """The index of the first token of a plain text that begins at character `at` or later. (Where a character has several
        tokens, the package gives all of them the character's place, which is on the same side of `at`.)"""
        self.tokenizer.encode_special_tokens = False
        encoding = self.tokenizer.encode(text)
        begins = [begin for begin, _ in encoding.offsets]
        texts = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        return next((i for i in texts if begins[i] >= at), len(begins))


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


class Cases:
    """Requests for prompt_cli, each with the values that its answer must have."""

    def __init__(self, oracle, seed):
        self.oracle = oracle
        self.rng = random.Random(seed)
        self.requests, self.expected = [], []

    def add(self, request, **expected):
        self.requests.append(request)
        self.expected.append(expected)

    def plain(self, a, b):
        add = self.rng.random() < 0.5
        self.add({"prompt": a + b, "add_special_tokens": add}, ids=self.oracle.plain(a + b, add))

    def plain_with_query(self, a, b):
        query = b.strip(BLANK)
        if not query:
            return
        text, begin_tokens = a + b, len(self.oracle.plain(""))
        expected = {"ids": self.oracle.plain(text)}
        # After a byte that the vocabulary lacks, the package's offsets are those of the text
        # without that byte.
        if self.oracle.tokenizer.decode(expected["ids"][begin_tokens:], skip_special_tokens=False) == text:
            border = self.oracle.border(text, text.rindex(query))
            expected["query_begin"] = 0 if border <= begin_tokens else border
        self.add({"prompt": text, "query": b}, **expected)

    def chat(self, a, b):
        messages = [{"role": "system", "content": a}] if self.rng.random() < 0.3 else []
        messages += [{"role": "user", "content": b}, {"role": "assistant", "content": "So it is."}, {"role": "user", "content": a + b}]
        messages = messages[:self.rng.choice([1, 3, 4])]
        self.add({"messages": messages}, ids=self.oracle.chat(self.oracle.template(messages)))

    def plain_context(self, a, b):
        add = self.rng.random() < 0.5
        if a:
            self.add({"prompt": b, "add_special_tokens": add, "context": {"prompt": a, "add_special_tokens": add}},
                     ids=self.oracle.plain(a + b, add), context=self.oracle.plain(a, add))

    def chat_context(self, a, b):
        """A context's message; then more text of the same message or another message; then further turns."""
        a = a.rstrip(BLANK)
        head = self.oracle.template([{"role": "user", "content": a}], generate=False)[:-1]
        if not head[-1][1]:
            return
        question, answer = {"role": "user", "content": b}, {"role": "assistant", "content": "Yes:\n\n" + a[:20]}
        if self.rng.random() < 0.5:
            behind, whole = [question], [{"role": "user", "content": a + "\n\n" + b}]
        else:
            behind, whole = [answer, question], [{"role": "user", "content": a}, answer, question]
        for turns in (behind, behind + [answer, question]):
            self.add({"messages": turns, "context": {"messages": [{"role": "user", "content": a}]}},
                     ids=self.oracle.chat(self.oracle.template(whole + turns[len(behind):])),
                     context=self.oracle.chat(head))

    def chat_context_continued(self, a, b):
        """A completion that continues the context's message; its text may hold special tokens."""
        a = a.rstrip(BLANK)
        head = self.oracle.template([{"role": "user", "content": a}], generate=False)[:-1]
        if not head[-1][1] or any(s in head[-1][1] + b for s in self.oracle.special):
            return
        self.add({"prompt": b, "add_special_tokens": False, "context": {"messages": [{"role": "user", "content": a}]}},
                 ids=self.oracle.chat(head[:-1] + [(head[-1][0], head[-1][1] + b)]), context=self.oracle.chat(head))


def text_pairs(rng, oracle, count):
    """Pairs of a document and a question, with a break between them that may belong to either; or two parts of one text."""
    texts = text_cases.make(rng.randrange(1 << 30), 2 * count, oracle.special)
    rng.shuffle(texts)
    for a, b in zip(texts[::2], texts[1::2]):
        between = rng.choice(BREAKS)
        whole = a + between + b
        cut = len(a) + rng.randrange(len(between) + 1) if rng.random() < 0.7 else rng.randrange(len(whole) + 1)
        yield whole[:cut], whole[cut:]


def ask(cli, requests):
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    done = subprocess.run([cli], input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
    answers = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert len(answers) == len(requests), (len(answers), len(requests))
    return answers


def run(cli, folder):
    oracle = Oracle(folder)
    cases = Cases(oracle, 1)
    kinds = [cases.plain, cases.plain_with_query, cases.chat, cases.plain_context, cases.chat_context, cases.chat_context_continued]
    for i, (a, b) in enumerate(text_pairs(random.Random(sum(map(ord, folder.name))), oracle, TEXTS)):
        kinds[i % len(kinds)](a, b)
    loaded, *answers = ask(cli, [{"checkpoint": str(folder)}] + cases.requests)
    assert "error" not in loaded, loaded
    failures, shared, of_contexts = 0, 0, 0
    for request, answer, expected in zip(cases.requests, answers, cases.expected):
        for name, value in expected.items():
            if answer.get(name) != value:
                failures += 1
                if failures <= 5:
                    print(f"{folder.name}: {name} of {request}:\n  ours   {answer.get(name, answer)}\n  theirs {value}")
        if "context" in request and "ids" in answer:
            shared += common(answer["context"], answer["ids"])
            of_contexts += len(answer["context"])
        if "ids" in answer:
            failures += not 0 <= answer["insert"] <= answer["query_begin"] <= len(answer["ids"])
    print(f"{folder.name}: {len(answers)} prompts, {failures} differences; prompts share {shared} of {of_contexts} tokens with their contexts")
    # Otherwise the checks above would only have seen texts that no token crosses, or contexts that
    # are of no use.
    assert 0.95 * of_contexts < shared < of_contexts
    assert len(answers) > 0.9 * TEXTS
    return failures


def main():
    cli, first, *others = sys.argv[1:]
    folders = [Path(first)] + [Path(f) for f in others if Path(f, "tokenizer.json").exists()]
    sys.exit(1 if sum(run(cli, folder) for folder in folders) else 0)


if __name__ == "__main__":
    main()
