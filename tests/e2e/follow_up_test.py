"""Follow-up turns, and second questions about a document.

Goal: KV that is already in the cache is used, reported in `usage`, given back when a request needs the room, and never
mixed up between exact and approximate requests; answers stay right. Method: conversations on the demo model through the
HTTP API of a server with two ranks.
"""
import unittest

import fixture

SERVER = None
SMALL = None  # has room for one long document only


def setUpModule():
    global SERVER, SMALL
    SERVER = unittest.enterModuleContext(fixture.Server())
    SMALL = unittest.enterModuleContext(fixture.Server("--kv-cache-tokens", 12000))


def chat(server, messages, **apb):
    status, answer = server.post("/v1/chat/completions", {
        "model": "demo", "messages": messages, "temperature": 0, "max_tokens": 40, "apb": apb})
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"], answer["usage"]


def cached(usage):
    return usage["prompt_tokens_details"]["cached_tokens"]


def user(text):
    return {"role": "user", "content": text}


class FollowUpTest(unittest.TestCase):
    def check_conversation(self, strategy, tokens):
        sample = fixture.make_prompt(tokens, seed=31, keys=2)
        messages = [user(sample["document"]), user(sample["question"])]
        answer, usage = chat(SERVER, messages, strategy=strategy)
        self.assertEqual(answer, sample["expected"])
        before = usage["total_tokens"]
        for _ in range(3):
            messages += [{"role": "assistant", "content": answer}, user(sample["question"])]
            answer, usage = chat(SERVER, messages, strategy=strategy)
            self.assertEqual(answer, sample["expected"])
            self.assertGreater(cached(usage), before - 16)  # all but the end of the last answer
            self.assertLess(usage["prompt_tokens"] - cached(usage), 64)
            before = usage["total_tokens"]

    def test_exact_conversation(self):
        self.check_conversation("ring_kv", 3000)

    def test_conversation_after_apb(self):
        self.check_conversation("apb", 9000)

    def test_long_second_turn(self):
        # The second turn has a document of its own, which is prefilled over the KV of the first
        # turn.
        first, second = (fixture.make_prompt(tokens, seed=seed, keys=2) for tokens, seed in ((3000, 51), (2500, 52)))
        messages = [user(first["document"]), user(first["question"])]
        answer, usage = chat(SERVER, messages, strategy="ring_kv")
        self.assertEqual(answer, first["expected"])
        before = usage["total_tokens"]
        messages += [{"role": "assistant", "content": answer}, user(second["document"] + "\n" + second["question"])]
        scratch, usage = chat(SMALL, messages, strategy="full")
        self.assertEqual(cached(usage), 0)
        answer, usage = chat(SERVER, messages, exact=True)
        self.assertEqual(answer, scratch)
        self.assertEqual(answer, second["expected"])
        self.assertIn(cached(usage), range(before - 16, before + 1))
        self.assertGreater(usage["prompt_tokens"] - cached(usage), 2000)

    def test_second_question_about_a_document(self):
        sample = fixture.make_prompt(9000, seed=32)
        other = [user(sample["document"]), user("Please: " + sample["question"])]
        first = [user(sample["document"]), user(sample["question"])]
        chat(SERVER, other, strategy="apb")
        answer, usage = chat(SERVER, first, strategy="apb")
        self.assertEqual(answer, sample["expected"])
        self.assertGreater(cached(usage), 8000)
        # KV that APB computed serves neither exact requests nor Star's.
        for apb in ({"strategy": "star"}, {"exact": True}):
            answer, usage = chat(SERVER, first, **apb)
            self.assertEqual(answer, sample["expected"])
            self.assertEqual(cached(usage), 0)
        # But exact KV serves all requests.
        _, usage = chat(SERVER, first, exact=True)
        self.assertGreater(cached(usage), 8000)
        _, usage = chat(SERVER, first, strategy="star")
        self.assertGreater(cached(usage), 8000)

    def test_room_is_given_back(self):
        samples = [fixture.make_prompt(7000, seed=seed) for seed in (41, 42)]
        for sample in samples + samples:  # each document takes the other's room
            answer, usage = chat(SMALL, sample["messages"], strategy="ring_kv")
            self.assertEqual(answer, sample["expected"])
            self.assertEqual(cached(usage), 0)
        answer, usage = chat(SMALL, samples[1]["messages"], strategy="ring_kv")
        self.assertEqual(answer, samples[1]["expected"])
        self.assertGreater(cached(usage), 6000)
        SMALL.await_idle()
        fixture.wait_until(lambda: any(value > 0 for series, value in SMALL.metrics().items()
                                       if 'state="cached"' in series), "cached blocks in the metrics")


if __name__ == "__main__":
    unittest.main()
