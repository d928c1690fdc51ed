"""Goal: our tokenizer and detokenizer give the results of the tokenizers package, on 10,000 strings for each kind of tokenizer.
Method: text_cli and the package read the same tokenizer.json; the test compares ids, their offsets, texts and token-by-token
texts.
Usage: tokenizer_test.py text_cli checkpoint-folder [kind ...]"""
import bisect
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

import text_cases
import tokenizer_kinds

STRINGS = 10_000
# Their normalizers compose characters. Inside a changed part it is a matter of taste where a token
# begins.
COMPOSING = ("qwen", "digits")
BYTE_FALLBACK = ("llama2", "gemma", "metaspace_first", "metaspace_always", "metaspace_never")


def ask(cli, requests):
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    done = subprocess.run([cli], input=lines, capture_output=True, text=True, encoding="utf-8", check=True)
    answers = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert len(answers) == len(requests), (len(answers), len(requests))
    return answers


def characters(text, offsets):
    """For each byte offset, the index of the character of `text` in which it lies."""
    begins, at = [], 0
    for character in text:
        begins.append(at)
        at += len(character.encode())
    return [bisect.bisect_right(begins, byte) - 1 for byte in offsets]


class Kind:
    def __init__(self, cli, name, path):
        self.cli, self.name, self.path = cli, name, str(path)
        self.theirs = Tokenizer.from_file(self.path)
        self.failures = 0

    def ask(self, requests):
        answers = ask(self.cli, [{"tokenizer": self.path}] + requests)
        assert "error" not in answers[0], answers[0]
        return answers[1:]

    def check(self, what, subject, ours, wanted):
        if ours == wanted:
            return
        self.failures += 1
        if self.failures <= 5:
            print(f"{self.name}: {what} of {subject!r}:\n  ours   {ours}\n  theirs {wanted}")

    def encode(self, strings, plain):
        """Checks and returns the ids of all strings. `plain`: special tokens in the text are plain text."""
        self.theirs.encode_special_tokens = plain
        ids = []
        for add in (True, False):
            part = strings[0 if add else 1::2]
            ours = self.ask([{"text": s, "add_special_tokens": add, "parse_special": not plain} for s in part])
            wanted = self.theirs.encode_batch(part, add_special_tokens=add)
            for string, a, b in zip(part, ours, wanted):
                self.check("plain ids" if plain else "ids", string, a.get("ids", a), b.ids)
                if a.get("ids") == b.ids and self.keeps(string):
                    texts = [i for i, added in enumerate(b.special_tokens_mask) if not added]
                    self.check("begins", string, characters(string, [a["begins"][i] for i in texts]),
                               [b.offsets[i][0] for i in texts])
                self.check("order of begins", string, a.get("begins"), sorted(a.get("begins", [])))
            ids += [e.ids for e in wanted]
        return ids

    def keeps(self, string):
        """Whether the normalizer replaces no character by one that came from a different place."""
        return self.name not in COMPOSING or self.theirs.normalizer.normalize_str(string) == string

    def decode(self, all_ids, skip, same_text=True):
        ours = self.ask([{"ids": ids, "skip_special": skip} for ids in all_ids])
        wanted = self.theirs.decode_batch(all_ids, skip_special_tokens=skip)
        for ids, a, b in zip(all_ids, ours, wanted):
            if same_text:
                self.check("text", ids, a.get("text", a), b)
            self.check("token by token", ids, a.get("pieces", a), a.get("text", a))


def run(cli, name, path):
    kind = Kind(cli, name, path)
    special = [t.content for t in kind.theirs.get_added_tokens_decoder().values()]
    seed = sum(map(ord, name))
    ids = kind.encode(text_cases.make(seed, STRINGS, special), plain=False)
    kind.encode(text_cases.make(seed + 1, STRINGS // 5, special), plain=True)
    kind.decode(ids[::2], skip=False)
    kind.decode(ids[1::2], skip=True)
    rng = random.Random(seed)
    size = kind.theirs.get_vocab_size()
    chaos = [[rng.randrange(size) for _ in range(rng.randrange(1, 20))] for _ in range(2000)]
    # The package gives one U+FFFD for each byte of a broken run of byte tokens, we one for each
    # broken character: a stream cannot know.
    kind.decode(chaos, skip=False, same_text=name not in BYTE_FALLBACK)
    print(f"{name}: {len(ids)} strings, {sum(map(len, ids))} tokens, {kind.failures} differences")
    return kind.failures


def main():
    cli, checkpoint = sys.argv[1], Path(sys.argv[2])
    wanted = sys.argv[3:] or ["checkpoint", *tokenizer_kinds.KINDS]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            if name == "checkpoint":
                failures += run(cli, name, checkpoint / "tokenizer.json")
                continue
            path = Path(folder) / name / "tokenizer.json"
            path.parent.mkdir()
            tokenizer_kinds.KINDS[name]().save(str(path))
            failures += run(cli, name, path)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
