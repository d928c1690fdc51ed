"""Goal: the tokens that the server makes, counts and finds in its KV cache are those that the tokenizers package makes of
the whole text: for plain prompts, chats, contexts, prompts that continue them, and later turns, with every strategy.
Method: a server with two ranks; random texts; `/tokenize` and `usage` against the package, with the oracle of
tests/server/frontend/prompt_test.py.
"""
import random
import sys
import unittest

import fixture

sys.path.insert(0, str(fixture.ROOT / "tests" / "server" / "frontend"))
import prompt_test  # noqa: E402

ORACLE = prompt_test.Oracle(fixture.MODEL)
SERVER = None


def setUpModule():
    global SERVER
    SERVER = unittest.enterModuleContext(fixture.Server())


def post(path, **fields):
    status, answer = SERVER.post(path, fields)
    assert status == 200, answer
    return answer


def usage(path, **fields):
    """Returns (tokens of the prompt, those whose KV was already in the cache)."""
    counted = post(path, max_tokens=1, **fields)["usage"]
    return counted["prompt_tokens"], counted["prompt_tokens_details"]["cached_tokens"]


def user(text):
    return {"role": "user", "content": text}


def chat_ids(messages):
    return ORACLE.chat(ORACLE.template(messages))


class TokensTest(unittest.TestCase):
    def pairs(self, seed, count):
        pairs = prompt_test.text_pairs(random.Random(seed), ORACLE, 10 * count)
        return [(a, b) for a, b in pairs if a.strip() and b.strip()][:count]

    def test_plain(self):
        for a, b in self.pairs(1, 30):
            ids = ORACLE.plain(a + b)
            self.assertEqual(post("/tokenize", prompt=a + b)["tokens"], ids)
            self.assertEqual(usage("/v1/completions", prompt=a + b)[0], len(ids))

    def test_chat(self):
        for a, b in self.pairs(2, 30):
            for messages in ([user(a + "\n\n" + b)], [user(a), {"role": "assistant", "content": "Yes."}, user(b)]):
                ids = chat_ids(messages)
                self.assertEqual(post("/tokenize", messages=messages)["tokens"], ids)
                self.assertEqual(usage("/v1/chat/completions", messages=messages)[0], len(ids))

    def test_every_strategy_has_the_same_tokens(self):
        text = "Dear Sir or Madam,\n\nI am writing to\r\n\r\n\tyou\n \nWhich one?"
        for strategy in ("auto", "full", "apb", "star", "ring_kv", "ring_q", "token_ring", "ulysses"):
            for query in ({}, {"query": "ch one?"}):  # it begins within a token
                self.assertEqual(usage("/v1/completions", prompt=text, apb={"strategy": strategy, **query})[0],
                                 len(ORACLE.plain(text)), strategy)

    def check_behind(self, context, of_context, path, wanted, **fields):
        """Checks that the tokens of the whole are counted, and that those which it shares with its context were cached."""
        count, cached = usage(path, context=context["id"], **fields)
        self.assertEqual(count, len(wanted))
        # Earlier turns may have cached more, but only tokens that this prompt has too.
        self.assertGreaterEqual(cached, min(prompt_test.common(of_context, wanted), len(wanted) - 1))
        self.assertLess(cached, len(wanted))
        return cached

    def test_plain_contexts(self):
        for a, b in self.pairs(3, 20):
            of_context, wanted = ORACLE.plain(a), ORACLE.plain(a + b)
            context = post("/v1/contexts", prompt=a)
            self.assertEqual(context["usage"]["prompt_tokens"], len(of_context))
            self.check_behind(context, of_context, "/v1/completions", wanted, prompt=b)
            SERVER.request("DELETE", "/v1/contexts/" + context["id"])

    def test_chat_contexts(self):
        """A question in the same message, and then another turn."""
        for a, b in self.pairs(4, 20):
            context = post("/v1/contexts", messages=[user(a)])
            of_context = ORACLE.chat(ORACLE.template([user(a)], generate=False)[:-1])
            self.assertEqual(context["usage"]["prompt_tokens"], len(of_context))
            first = user(a.rstrip(prompt_test.BLANK) + "\n\n" + b)
            turns = [{"role": "assistant", "content": "Yes."}, user("And then?")]
            self.check_behind(context, of_context, "/v1/chat/completions", chat_ids([first]), messages=[user(b)])
            self.check_behind(context, of_context, "/v1/chat/completions", chat_ids([first] + turns), messages=[user(b)] + turns)
            SERVER.request("DELETE", "/v1/contexts/" + context["id"])

    def test_a_context_that_ends_within_a_word(self):
        """The context's last token is a different one in the whole, so the KV of all others is used, whatever the strategy."""
        sample = fixture.make_prompt(9000, seed=61)
        document, question = sample["document"].rstrip(), sample["question"]
        cut = document.rindex(" ") + 3
        for strategy in ("apb", "star", "ring_kv", "full"):
            begin, rest = "<|user|>\n" + document[:cut], f"{document[cut:]}\n\n{question}<|end|>\n<|assistant|>\n"
            of_context, wanted = ORACLE.plain(begin), ORACLE.plain(begin + rest)
            same = prompt_test.common(of_context, wanted)
            self.assertLess(same, len(of_context))
            context = post("/v1/contexts", prompt=begin, apb={"strategy": strategy})
            self.assertEqual(self.check_behind(context, of_context, "/v1/completions", wanted, prompt=rest), same)
            answer = post("/v1/completions", context=context["id"], prompt=rest, temperature=0, max_tokens=40)
            self.assertEqual(answer["choices"][0]["text"], sample["expected"])
            SERVER.request("DELETE", "/v1/contexts/" + context["id"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
