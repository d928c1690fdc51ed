"""The server against a float64 reference, on a real model.

Goal: the server answers what the model says. A token must be the reference's if the reference's two best tokens are further
apart than the stated gap, and log-probabilities must be within a stated bound. This holds for exact strategies on one and on
two ranks, for follow-up turns and contexts, and for texts as for token ids. Method: greedy completions of
SmolLM2-135M-Instruct over HTTP are compared with golden.json (make_golden.py). If a near tie goes the other way, the
comparison continues after the reference's token, so every token is compared.
"""
import concurrent.futures
import hashlib
import json
import pathlib
import random
import sys
import unittest

from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
import fixture  # noqa: E402

import cases  # noqa: E402
import reference  # noqa: E402

CHECKPOINT = HERE.parents[1] / "build" / "real_model" / "smollm2"
GOLDEN = json.loads((HERE / "golden.json").read_text())
CASES = GOLDEN["cases"]
TOKENIZER = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
# Timeout of one request, in seconds: four run at a time, and the machine may be busy.
PATIENCE = 600
# The ids of the tokens that an answer shows as this text (several for parts of characters).
IDS_OF_TEXT = {}
for token_id in range(TOKENIZER.get_vocab_size()):
    IDS_OF_TEXT.setdefault(TOKENIZER.decode([token_id], skip_special_tokens=False), set()).add(token_id)


def start_server(dtype, ranks):
    return fixture.Server("--served-model-name", "smollm2", "--kv-cache-tokens", 16384,
                          "--worker-args", f"--calibration off --dtype {dtype}", model=CHECKPOINT, ranks=ranks)


def user(text):
    return {"role": "user", "content": text}


def question_of(prompt):
    """The prompt's last words, as the query: the rest is a document, which a strategy spreads over the ranks."""
    words = prompt.rsplit(" ", 3)
    return " ".join(words[1:]) if len(words) == 4 else prompt


class Answer:
    """A greedy answer: for each token its text, and the log-probabilities of its alternatives by text."""

    def __init__(self, server, body):
        chat = "messages" in body
        fields = {"model": "smollm2", "temperature": 0, "ignore_eos": True,
                  **({"logprobs": True, "top_logprobs": 5} if chat else {"logprobs": 5}), **body}
        status, _, text = server.request("POST", "/v1/chat/completions" if chat else "/v1/completions", json.dumps(fields),
                                         {"Content-Type": "application/json"}, timeout=PATIENCE)
        answer = json.loads(text)
        assert status == 200, answer
        self.usage = answer["usage"]
        logprobs = answer["choices"][0]["logprobs"]
        if chat:
            self.tokens = [token["token"] for token in logprobs["content"]]
            self.top = [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in logprobs["content"]]
        else:
            self.tokens, self.top = logprobs["tokens"], logprobs["top_logprobs"]


class Comparison:
    """Compares answers of one server and strategy with golden.json."""

    def __init__(self, test, server, strategy):
        self.test, self.server, self.strategy = test, server, strategy
        self.near_ties = 0
        self.widest_tie = 0.0
        self.worst = 0.0

    def check(self, name, body, strategy_of_prompt=True):
        """Asks for the whole answer, and after each near tie for the rest of it."""
        golden = CASES[name]
        body = {**body, "max_tokens": len(golden["top"])}
        if strategy_of_prompt:
            body.setdefault("apb", {})["strategy"] = self.strategy
        answer = Answer(self.server, body)
        self.test.assertEqual(answer.usage["prompt_tokens"], len(golden["prompt"]), name)
        done = self.compare(name, answer, 0)
        while done < len(golden["top"]):
            self.near_ties += 1
            ids = golden["prompt"] + [top[0] for top in golden["top"][:done]]
            rest = Answer(self.server, {"prompt": ids, "max_tokens": len(golden["top"]) - done,
                                        "apb": {"strategy": self.strategy}})
            done = self.compare(name, rest, done)
        return answer

    def compare(self, name, answer, begin):
        """Compares an answer that begins at token `begin` of the case. Returns the first token that it does not cover."""
        golden = CASES[name]
        self.test.assertEqual(len(answer.tokens), len(golden["top"]) - begin, name)
        for i, (ids, logprobs) in enumerate(zip(golden["top"][begin:], golden["logprobs"][begin:])):
            where = f"{name}, token {begin + i}, {self.strategy}"
            found = answer.top[i]
            texts = [TOKENIZER.decode([token], skip_special_tokens=False) for token in ids]
            for text, expected in zip(texts, logprobs):
                if text in found and len(IDS_OF_TEXT[text]) == 1:
                    self.worst = max(self.worst, abs(found[text] - expected))
                    self.test.assertLess(abs(found[text] - expected), self.test.bound, f"{where}: {text!r}")
            if answer.tokens[i] != texts[0]:
                gap = logprobs[0] - logprobs[1]
                self.widest_tie = max(self.widest_tie, gap)
                self.test.assertLess(gap, self.test.gap, f"{where}: {answer.tokens[i]!r} instead of {texts[0]!r}")
                return begin + i + 1
            self.test.assertIn(texts[0], found, where)
        return len(golden["top"])

    def check_all(self, bodies):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for result in [pool.submit(self.check, name, body) for name, body in bodies.items()]:
                result.result()
        tokens = sum(len(CASES[name]["top"]) for name in bodies)
        print(f"{self.test.dtype} {self.strategy}: {tokens} tokens, {self.near_ties} near ties (up to {self.widest_tie:.2g}) "
              f"went the other way, log-probabilities off by up to {self.worst:.1e}")
        # Near ties are rare: many of them mean an error, even if each of them is within the gap.
        self.test.assertLess(self.near_ties, self.test.share_of_ties * tokens)


def bodies_of_prompts():
    texts = {**cases.PROSE, **cases.CODE, **cases.LISTS}
    bodies = {name: {"prompt": text, "apb": {"query": question_of(text)}} for name, text in texts.items()}
    return bodies | {name: {"messages": [user(text)]} for name, text in cases.CHAT.items()}


class CheckpointTest(unittest.TestCase):
    def test_golden_belongs_to_the_weights(self):
        with open(CHECKPOINT / "model.safetensors", "rb") as file:
            self.assertEqual(hashlib.file_digest(file, "sha256").hexdigest(), GOLDEN["weights_sha256"],
                             "the weights have changed: make_golden.py makes golden.json anew")

    def test_reference_agrees_with_golden(self):
        model = reference.Model(CHECKPOINT)
        batch = [(CASES[name]["prompt"] + [top[0] for top in CASES[name]["top"][:-1]], model.cache())
                 for name in ("letter", "capital")]
        hidden = model.hidden_states(batch)
        end = 0
        for name, (tokens, _) in zip(("letter", "capital"), batch):
            end += len(tokens)
            golden = CASES[name]
            logprobs = reference.log_softmax(model.logits(hidden[end - len(golden["top"]):end]))
            for row, ids, expected in zip(logprobs, golden["top"], golden["logprobs"]):
                self.assertEqual(row.argmax(), ids[0], name)
                for token, number in zip(ids, expected):
                    self.assertAlmostEqual(row[token], number, delta=2e-6, msg=name)


class ExactStrategies:
    """The tests for one type of activations. Subclasses name the type and its gap and bound."""

    @classmethod
    def setUpClass(cls):
        cls.one_rank = cls.enterClassContext(start_server(cls.dtype, 1))
        cls.two_ranks = cls.enterClassContext(start_server(cls.dtype, 2))

    def test_full(self):
        Comparison(self, self.one_rank, "full").check_all(bodies_of_prompts())

    def test_ring_kv_on_two_ranks(self):
        Comparison(self, self.two_ranks, "ring_kv").check_all(bodies_of_prompts())

    def test_token_ids(self):
        # Prompts of ids get the same answers, with as many prompt tokens, as prompts of text.
        names = ("story", "news", "python", "log")
        Comparison(self, self.one_rank, "full").check_all({name: {"prompt": CASES[name]["prompt"]} for name in names})

    def test_follow_up_turns(self):
        comparison = Comparison(self, self.two_ranks, "ring_kv")
        for name, messages in GOLDEN["conversations"].items():
            for turn in (1, 2, 3):
                answer = comparison.check(f"{name} {turn}", {"messages": messages[:2 * turn - 1]})
                if turn > 1:
                    cached = answer.usage["prompt_tokens_details"]["cached_tokens"]
                    self.assertGreater(cached, len(CASES[f"{name} {turn - 1}"]["prompt"]) - 16)

    def test_context_of_messages(self):
        self.check_context({"messages": [user(cases.CONTEXT_MESSAGE)]},
                           {f"question {i + 1}": {"messages": [user(text)]} for i, text in enumerate(cases.CONTEXT_QUESTIONS)})

    def test_context_of_text(self):
        self.check_context({"prompt": cases.CONTEXT_TEXT},
                           {f"ending {i + 1}": {"prompt": text} for i, text in enumerate(cases.CONTEXT_ENDINGS)})

    def check_context(self, body, questions):
        status, context = self.two_ranks.post("/v1/contexts", {**body, "apb": {"strategy": "ring_kv"}})
        self.assertEqual(status, 200, context)
        comparison = Comparison(self, self.two_ranks, "ring_kv")
        for name, question in questions.items():
            answer = comparison.check(name, {**question, "context": context["id"]}, strategy_of_prompt=False)
            # The whole context is cached, except for tokens that may change where the question follows it.
            self.assertGreater(answer.usage["prompt_tokens_details"]["cached_tokens"], context["usage"]["prompt_tokens"] - 4)
        status, _, _ = self.two_ranks.request("DELETE", "/v1/contexts/" + context["id"])
        self.assertEqual(status, 200)


class Float32Test(ExactStrategies, unittest.TestCase):
    dtype, gap, bound, share_of_ties = "float32", 1e-3, 1e-3, 0.005


class Bfloat16Test(ExactStrategies, unittest.TestCase):
    dtype, gap, bound, share_of_ties = "bfloat16", 0.4, 0.8, 0.03


class TokenizerTest(unittest.TestCase):
    """The server's token ids are those of the tokenizers package."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(start_server("float32", 1))

    def tokenize(self, **body):
        status, answer = self.server.post("/tokenize", body)
        self.assertEqual(status, 200, answer)
        return answer["tokens"]

    def test_prompts(self):
        for name, text in {**cases.PROSE, **cases.CODE, **cases.LISTS}.items():
            self.assertEqual(self.tokenize(prompt=text), CASES[name]["prompt"], name)
        for name, text in cases.CHAT.items():
            self.assertEqual(self.tokenize(messages=[user(text)]), CASES[name]["prompt"], name)

    def test_random_texts(self):
        rng = random.Random(5)
        pieces = ["\n", "\n\n", "\t", " ", "   ", "a", "The", "ing", "2024", "3.14", "n't", "'ll", "é", "ß", "日本", "한국", "🚢", "👩‍🚀",
                  "\r\n", "\u00a0", "\u200b", "\x06", "<|im_end|>", "<|im_start|>user\n", "{}", "();", "_x", "==", "--", "…", "ÀÉ", "½"]
        for _ in range(300):
            text = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 40)))
            self.assertEqual(self.tokenize(prompt=text), TOKENIZER.encode(text).ids, repr(text))


if __name__ == "__main__":
    unittest.main(verbosity=2)
